"""Where jobs run: in this process, or in a pool of spawned workers watched from outside.

Place in the flow: stage 8, under `agent`: jobs are pure, so where they run changes nothing.
`worker` is one process of the pool, and says what an outcome is; `ray_executor` keeps the same
contract on a cluster. Nothing heavy is imported here.

A job that crashes, hangs, raises or grows too big costs its own outcome and its worker, never
another job. Failures are texts without process ids, addresses or measured sizes: the ledger
hashes them, and two runs of the same jobs must tell the same story.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, Protocol, Self

from ssm_metarl.recursive_self_improvement.worker import (
    GRACE_SECONDS,
    THREAD_VARIABLES,
    Outcome,
    Worker,
    attempt,
    failure_of,
    read_outcome,
)

__all__ = [
    "THREAD_VARIABLES",
    "Executor",
    "InlineExecutor",
    "Job",
    "LocalExecutor",
    "Outcome",
    "Stopped",
    "attempt",
    "check_limits",
    "failure_of",
    "read_outcome",
]

_SLICE_SECONDS = 0.1  # the longest that a stop, a timeout or a death goes unnoticed
_MEMORY_SECONDS = 0.5  # between two looks at the workers' memory
_START_SECONDS = 60.0  # a worker that takes longer to start never will
_LONGEST_TICK_SECONDS = 1.0  # what a standstill of this process counts against a job


class Job(Protocol):
    """A picklable callable without arguments: a pure function of what it holds.

    It starts no processes of its own (workers are daemonic) and changes nothing it holds.
    """

    def __call__(self) -> Any:
        """Do the work and return its value, which must be picklable too."""
        ...


class Stopped(Exception):
    """Raised by `Executor.run` when ``should_stop()`` turned True; no job is running any more."""


class Executor(Protocol):
    """Runs jobs and says what came of each of them, exactly once."""

    def run(
        self, jobs: Sequence[Job], *, on_done: Callable[[int, Outcome], None] | None = None
    ) -> list[Outcome]:
        """Run all jobs.

        Args:
            jobs: What to run.
            on_done: Called in this process with a job's index and outcome as soon as it is known,
                once a job, in the order in which they end.

        Returns:
            One outcome a job, in the order of the jobs.

        Raises:
            Stopped: If ``should_stop()`` turned True before the last job ended.
        """
        ...

    def close(self) -> None:
        """End what was started; may be called again. A later `run` starts afresh."""
        ...


def check_limits(timeout_seconds: float, memory_limit_mb: float) -> None:
    """Refuse limits that no job could keep.

    Raises:
        ValueError: If one of them is not above 0.
    """
    for name, limit in (("timeout_seconds", timeout_seconds), ("memory_limit_mb", memory_limit_mb)):
        if not limit > 0:
            raise ValueError(f"{name}: expected a number above 0, received {limit!r}")


class InlineExecutor:
    """Runs jobs one after another in this process: no limits, nothing to close.

    Args:
        should_stop: Asked before each job.
    """

    def __init__(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._should_stop = should_stop

    def run(
        self, jobs: Sequence[Job], *, on_done: Callable[[int, Outcome], None] | None = None
    ) -> list[Outcome]:
        """See `Executor.run`; KeyboardInterrupt and SystemExit pass."""
        outcomes = []
        for index, job in enumerate(jobs):
            if self._should_stop():
                raise Stopped(f"{len(jobs) - index} of {len(jobs)} jobs had not ended")
            try:
                outcome = Outcome(job())
            except Exception as error:
                outcome = Outcome(failure=failure_of(error))
            outcomes.append(outcome)
            if on_done is not None:
                on_done(index, outcome)
        return outcomes

    def close(self) -> None:
        """Nothing was started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _end_all(workers: list[Worker], grace_seconds: float = 0.0) -> None:
    """End all workers: idle ones may leave by themselves, which closing the pipe asks them to."""
    for worker in workers:
        worker.connection.close()
        if worker.index is not None:
            worker.process.kill()
    deadline = time.monotonic() + grace_seconds
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.end()
    workers.clear()


class LocalExecutor:
    """Runs jobs in a pool of spawned worker processes, one thread each, under limits.

    Workers start when they are first needed and stay for later runs. They ignore SIGINT and
    SIGTERM, which are the supervisor's to act on, and end when the supervisor does.

    Args:
        num_workers: Processes; the CPUs this process may use by default.
        timeout_seconds: The longest a job may take, imports included. Measured on the monotonic
            clock, and time in which this process stood still (Ctrl-Z) does not count.
        memory_limit_mb: The most resident memory of a worker, in units of 2**20 bytes, looked at
            twice a second. Only a fresh worker is judged by it: where the worker has run other
            jobs, whose leftovers would count, the job is run again in a new one.
        should_stop: Asked at least ten times a second during a run.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        timeout_seconds: float,
        memory_limit_mb: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        check_limits(timeout_seconds, memory_limit_mb)
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers: expected at least 1, received {num_workers!r}")
        self.num_workers = _usable_cpus() if num_workers is None else num_workers
        self.timeout_seconds = timeout_seconds
        self.memory_limit_mb = memory_limit_mb
        self._should_stop = should_stop
        self._workers: list[Worker] = []
        self._awake = 0.0  # seconds; this process's own time, see `_now`
        self._last_tick = time.monotonic()
        # multiprocessing waits for all children when the interpreter exits, after finalizers.
        Finalize(self, _end_all, args=(self._workers,), exitpriority=10)

    def run(
        self, jobs: Sequence[Job], *, on_done: Callable[[int, Outcome], None] | None = None
    ) -> list[Outcome]:
        """See `Executor.run`; whatever ends a run early ends the workers first."""
        outcomes: dict[int, Outcome] = {}
        try:
            for index, outcome in self._outcomes(jobs):
                outcomes[index] = outcome
                if on_done is not None:
                    on_done(index, outcome)
        except BaseException:
            _end_all(self._workers)
            raise
        return [outcomes[index] for index in range(len(jobs))]

    def close(self) -> None:
        """End all workers: idle ones leave, after a second they are killed."""
        _end_all(self._workers, GRACE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Indices and outcomes in the order in which jobs end."""
        waiting = deque(range(len(jobs)))
        next_memory = time.monotonic()
        while waiting or self._busy():
            if self._should_stop():
                left = len(waiting) + len(self._busy())
                raise Stopped(f"{left} of {len(jobs)} jobs had not ended")
            yield from self._hand_out(waiting, jobs)
            busy = self._busy()
            wait([s for w in busy for s in (w.connection, w.process.sentinel)], _SLICE_SECONDS)
            memory_due = time.monotonic() >= next_memory
            if memory_due:
                next_memory = time.monotonic() + _MEMORY_SECONDS
            for worker in busy:
                index = worker.index
                assert index is not None
                outcome = self._judge(worker, memory_due)
                if outcome is not None:
                    yield index, outcome

    def _hand_out(self, waiting: deque[int], jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Give waiting jobs to free workers; yields the ones that cannot be pickled."""
        while waiting and (worker := self._free_worker()) is not None:
            index = waiting.popleft()
            try:
                payload = pickle.dumps(jobs[index])
            except Exception as error:
                yield index, Outcome(failure=failure_of(error))
                continue
            worker.give(index, payload, self._now())

    def _free_worker(self) -> Worker | None:
        """An idle worker, or a new one while there may be more, or None."""
        for worker in [w for w in self._workers if w.index is None]:
            if worker.process.is_alive():
                return worker
            worker.end()  # killed by somebody while it had nothing to do
            self._workers.remove(worker)
        return self._start_worker() if len(self._workers) < self.num_workers else None

    def _start_worker(self) -> Worker:
        worker = Worker()
        self._workers.append(worker)
        return worker

    def _judge(self, worker: Worker, memory_due: bool) -> Outcome | None:
        """The worker's outcome, by itself or by a limit it broke; None while its job goes on."""
        outcome = worker.look(self._now())
        # A fresh worker is always judged, so a job starts again once at most.
        excused = worker.ended and not worker.begun and worker.finished > 0  # it died while idle
        if outcome is None:
            limit = self.timeout_seconds
            if not worker.ready:
                limit = max(limit, _START_SECONDS)
            if self._now() - worker.since > limit:
                worker.end()
                outcome = Outcome(failure=f"timeout: more than {limit:g} s")
            elif memory_due and worker.resident_mb() > self.memory_limit_mb:
                worker.end()
                outcome = Outcome(failure=f"memory: more than {self.memory_limit_mb:g} MB")
                excused = worker.finished > 0
        if worker.ended:
            self._workers.remove(worker)
        if excused and worker.index is not None:
            self._start_worker().give(worker.index, worker.payload, self._now())
            return None
        return outcome

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.index is not None]

    def _now(self) -> float:
        """Seconds this process was awake: a stop of an hour must not time out every job."""
        now = time.monotonic()
        self._awake += min(now - self._last_tick, _LONGEST_TICK_SECONDS)
        self._last_tick = now
        return self._awake


def _usable_cpus() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
