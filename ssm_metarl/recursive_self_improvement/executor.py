"""Where jobs run: in this process, or in a pool of spawned workers watched from outside.

Place in the flow: stage 8, under `agent`: jobs are pure, so where they run changes nothing.
`worker` is one process of the pool; `ray_executor` keeps the same contract on a cluster.

A job that crashes, hangs, raises or grows too big costs its own outcome and its worker, never
another job. Failures are texts without process ids, addresses or measured sizes: the ledger
hashes them. Nothing heavy is imported here.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, Self

from ssm_metarl.recursive_self_improvement.worker import GRACE_SECONDS, Outcome, Worker, failure_of

_SLICE_SECONDS = 0.1  # the longest that a stop, a timeout or a death goes unnoticed
_MEMORY_SECONDS = 0.5  # between two looks at the workers' memory
_START_SECONDS = 60.0  # a worker that takes longer to start never will
_LONGEST_TICK_SECONDS = 1.0  # what a standstill of this process counts against a job

Job = Callable[[], Any]
"""Picklable, as is its result; a pure function of what it holds, which starts no processes."""


class Stopped(Exception):
    """Raised by `Executor.run` when ``should_stop()`` turned True; no job is running any more."""


class Executor:
    """Runs jobs and says what came of each of them, exactly once.

    Args:
        should_stop: Asked before each job, or several times a second.
    """

    def __init__(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._should_stop = should_stop

    def run(
        self, jobs: Sequence[Job], *, on_done: Callable[[int, Outcome], None] | None = None
    ) -> list[Outcome]:
        """Run all jobs; whatever ends a run early ends its jobs first.

        Args:
            jobs: What to run.
            on_done: Called in this process with a job's index and outcome as soon as it is known,
                once a job, in the order in which they end.

        Returns:
            One outcome a job, in the order of the jobs.

        Raises:
            Stopped: If ``should_stop()`` turned True before the last job ended.
        """
        outcomes: dict[int, Outcome] = {}
        try:
            for index, outcome in self._outcomes(jobs):
                outcomes[index] = outcome
                if on_done is not None:
                    on_done(index, outcome)
        except BaseException:
            self._abandon()
            raise
        return [outcomes[index] for index in range(len(jobs))]

    def _outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Indices and outcomes in the order in which jobs end."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """End the jobs that still run."""

    def _check_stop(self, left: int, total: int) -> None:
        if self._should_stop():
            raise Stopped(f"{left} of {total} jobs had not ended")

    def close(self) -> None:
        """End what was started; may be called again. A later `run` starts afresh."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class InlineExecutor(Executor):
    """Runs jobs one after another in this process, without limits."""

    def _outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        for index, job in enumerate(jobs):
            self._check_stop(len(jobs) - index, len(jobs))
            try:
                outcome = Outcome(job())
            except Exception as error:
                outcome = Outcome(failure=failure_of(error))
            yield index, outcome


class LimitedExecutor(Executor):
    """An executor whose jobs run in other processes, under limits.

    Args:
        timeout_seconds: The longest a job may take, imports included.
        memory_limit_mb: The most resident memory of a job's process, in units of 2**20 bytes.
        should_stop: Asked at least ten times a second during a run.

    Raises:
        ValueError: A limit is not above 0.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float,
        memory_limit_mb: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(should_stop)
        self.timeout_seconds = timeout_seconds
        self.memory_limit_mb = memory_limit_mb
        for name in ("timeout_seconds", "memory_limit_mb"):
            if not getattr(self, name) > 0:
                received = getattr(self, name)
                raise ValueError(f"{name}: expected a number above 0, received {received!r}")


def next_payload(jobs: Sequence[Job], waiting: deque[int]) -> tuple[int, bytes | Outcome]:
    """Take a job from the queue: its index, and its pickle, or that it has none."""
    index = waiting.popleft()
    try:
        return index, pickle.dumps(jobs[index])
    except Exception as error:
        return index, Outcome(failure=failure_of(error))


class LocalExecutor(LimitedExecutor):
    """Runs jobs in a pool of spawned worker processes, one thread each.

    Workers start when they are first needed and stay for later runs. They ignore SIGINT and
    SIGTERM, which are the supervisor's to act on, and end when the supervisor does.

    Time is measured on the monotonic clock, and time in which this process stood still (Ctrl-Z)
    does not count. Only in a fresh worker is a job to blame for a crash or for memory: where the
    worker has run other jobs, which leave something behind, the job is run again in a new one.

    Args:
        num_workers: Processes; the CPUs this process may use by default.
        limits: See `LimitedExecutor`.
    """

    def __init__(self, *, num_workers: int | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers: expected at least 1, received {num_workers!r}")
        self.num_workers = num_workers or _usable_cpus()
        self._workers: list[Worker] = []
        self._awake = 0.0  # seconds; this process's own time, see `_now`
        self._last_tick = time.monotonic()
        # multiprocessing waits for all children when the interpreter exits, after finalizers.
        Finalize(self, _end_all, args=(self._workers,), exitpriority=10)

    def close(self) -> None:
        """End all workers: idle ones leave, after a second they are killed."""
        _end_all(self._workers, GRACE_SECONDS)

    def _abandon(self) -> None:
        _end_all(self._workers)

    def _outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        waiting = deque(range(len(jobs)))
        next_memory = time.monotonic()
        while waiting or self._busy():
            self._check_stop(len(waiting) + len(self._busy()), len(jobs))
            while waiting and (worker := self._free_worker()) is not None:
                index, payload = next_payload(jobs, waiting)
                if isinstance(payload, Outcome):
                    yield index, payload
                else:
                    worker.give(index, payload, self._now())
            busy = self._busy()
            wait([s for w in busy for s in (w.connection, w.process.sentinel)], _SLICE_SECONDS)
            memory_due = time.monotonic() >= next_memory
            if memory_due:
                next_memory = time.monotonic() + _MEMORY_SECONDS
            for worker in busy:
                given = worker.index
                outcome = self._judge(worker, memory_due)
                if given is not None and outcome is not None:
                    yield given, outcome

    def _free_worker(self) -> Worker | None:
        """An idle worker, or a new one while there may be more, or None."""
        for worker in [w for w in self._workers if w.index is None]:
            if worker.process.is_alive():
                return worker
            worker.end()  # killed by somebody while it had nothing to do
            self._workers.remove(worker)
        return self._start_worker() if len(self._workers) < self.num_workers else None

    def _start_worker(self) -> Worker:
        self._workers.append(Worker())
        return self._workers[-1]

    def _judge(self, worker: Worker, memory_due: bool) -> Outcome | None:
        """The worker's outcome, by itself or by a limit it broke; None while its job goes on."""
        outcome = worker.look(self._now())
        again = worker.ended
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
                again = True
        if worker.ended:
            self._workers.remove(worker)
        if again and worker.finished > 0 and worker.index is not None:
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


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
