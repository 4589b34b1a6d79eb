"""Jobs on a Ray cluster: `executor`'s contract, on as many machines as there are.

Place in the flow: stage 8, under `agent`: jobs are pure, so where they run changes nothing.

A Ray task does not run its job itself: on its node it hands it to a `LocalExecutor` with one
worker. So a job's limits and failures are judged, and told, exactly as on one machine, its time
counts from where it starts and not from where it queues, and what Ray reports is never the job's
fault. That is resubmitted; running a pure job twice does no harm, and only one answer is taken.

A node that is lost shows in two ways. A job that ran on it fails (NodeDiedError,
WorkerCrashedError; ObjectLostError if only its result was lost): it goes out again, at most three
times. A job that was queued for it does not fail: Ray keeps it, places it elsewhere, and says
nothing, not even when no node is left to place it on. So silence has a limit too: when nothing
has ended for the time that the longest job may take and a minute, all that is out is cancelled
and counts as failed once.

The traps: every node needs this package, the jobs' modules (a job from a main module cannot be
unpickled there) and Ray of the same version. The node that the supervisor itself is connected to
is not replaceable: the ledger's resume is for that.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ssm_metarl.recursive_self_improvement.executor import (
    THREAD_VARIABLES,
    Job,
    LocalExecutor,
    Outcome,
    Stopped,
    attempt,
    check_limits,
    failure_of,
    read_outcome,
)

RESUBMISSIONS = 3
"""How often a job goes out again after failures that are not its own."""

_SLICE_SECONDS = 0.1  # the longest that a stop or an answer goes unnoticed
_SILENCE_SECONDS = 60.0  # beyond a job's own time: Ray starting workers, results travelling
_CANCEL_SECONDS = 1.0


@dataclass(frozen=True)
class _Packed:
    """A pickled job whose outcome stays pickled too: neither is opened on the way."""

    payload: bytes

    def __call__(self) -> bytes:
        return attempt(self.payload)


_node_pool: dict[tuple[float, float], LocalExecutor] = {}  # of a Ray worker, for its later tasks


def run_on_node(payload: bytes, timeout_seconds: float, memory_limit_mb: float) -> bytes:
    """A Ray task: run a pickled job in this node's guarded worker and return a pickled outcome."""
    limits = (timeout_seconds, memory_limit_mb)
    if limits not in _node_pool:
        for pool in _node_pool.values():
            pool.close()
        _node_pool.clear()
        _node_pool[limits] = LocalExecutor(
            num_workers=1, timeout_seconds=timeout_seconds, memory_limit_mb=memory_limit_mb
        )
    (outcome,) = _node_pool[limits].run([_Packed(payload)])
    return pickle.dumps(outcome) if outcome.failure is not None else outcome.value


class RayExecutor:
    """Runs jobs as Ray tasks of one CPU each.

    Connects with the first run. A connection that was there before is used and left alone.

    Args:
        address: Of a running cluster (``"host:port"``, ``"auto"``); None starts Ray on this
            machine, without dashboard, and stops it with `close`.
        timeout_seconds: The longest a job may run, imports included, queueing not.
        memory_limit_mb: The most resident memory of a job's process, in units of 2**20 bytes.
        should_stop: Asked about ten times a second during a run.

    Raises:
        ValueError: If Ray is not installed, or a limit is not above 0.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        timeout_seconds: float,
        memory_limit_mb: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        check_limits(timeout_seconds, memory_limit_mb)
        self.address = address
        self.timeout_seconds = timeout_seconds
        self.memory_limit_mb = memory_limit_mb
        self._should_stop = should_stop
        self._ray = _import_ray()
        self._connected_here = False

    def run(
        self, jobs: Sequence[Job], *, on_done: Callable[[int, Outcome], None] | None = None
    ) -> list[Outcome]:
        """See `Executor.run`; whatever ends a run early cancels its tasks first."""
        outcomes: dict[int, Outcome] = {}
        out: dict[Any, int] = {}  # which job a task's reference belongs to
        try:
            for index, outcome in self._outcomes(jobs, out):
                outcomes[index] = outcome
                if on_done is not None:
                    on_done(index, outcome)
        except BaseException:
            self._cancel(list(out))
            raise
        return [outcomes[index] for index in range(len(jobs))]

    def close(self) -> None:
        """Leave the cluster, and stop it if it was started here."""
        if self._connected_here:
            self._connected_here = False
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _outcomes(self, jobs: Sequence[Job], out: dict[Any, int]) -> Iterator[tuple[int, Outcome]]:
        """Indices and outcomes in the order in which jobs end; `out` is kept up to date."""
        waiting = deque(range(len(jobs)))
        failures: Counter[int] = Counter()
        heard = time.monotonic()
        while waiting or out:
            if self._should_stop():
                raise Stopped(f"{len(waiting) + len(out)} of {len(jobs)} jobs had not ended")
            if waiting:
                yield from self._submit(jobs, waiting, out)
            for index, answer in self._answers(out, time.monotonic() - heard):
                heard = time.monotonic()
                if isinstance(answer, bytes):
                    yield index, read_outcome(answer)
                    continue
                failures[index] += 1
                if failures[index] <= RESUBMISSIONS:
                    waiting.appendleft(index)
                else:
                    yield index, Outcome(failure=f"crash: {answer}, {failures[index]} times")

    def _submit(
        self, jobs: Sequence[Job], waiting: deque[int], out: dict[Any, int]
    ) -> Iterator[tuple[int, Outcome]]:
        """Send jobs, two a CPU; yields the ones that cannot be pickled."""
        self._connect()
        task = self._ray.remote(run_on_node).options(
            num_cpus=1, max_retries=0, runtime_env={"env_vars": THREAD_VARIABLES}
        )
        most = 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        while waiting and len(out) < most:
            index = waiting.popleft()
            try:
                payload = pickle.dumps(jobs[index])
            except Exception as error:
                yield index, Outcome(failure=failure_of(error))
                continue
            out[task.remote(payload, self.timeout_seconds, self.memory_limit_mb)] = index

    def _answers(self, out: dict[Any, int], silence: float) -> list[tuple[int, bytes | str]]:
        """Take what came back out of `out`: pickled outcomes, or the name of what failed in Ray."""
        if not out:
            return []
        ready, _ = self._ray.wait(list(out), num_returns=1, timeout=_SLICE_SECONDS)
        if not ready and silence > self.timeout_seconds + _SILENCE_SECONDS:
            self._cancel(list(out))
            indices = list(out.values())
            out.clear()
            return [(index, "no answer from the cluster") for index in indices]
        return [(out.pop(reference), self._read(reference)) for reference in ready]

    def _read(self, reference: Any) -> bytes | str:
        """A task's answer. Names of failures have no node or process in them: see `executor`."""
        try:
            answer: bytes = self._ray.get(reference)
            return answer
        except self._ray.exceptions.RayTaskError as error:
            return failure_of(error.cause).removeprefix("error: ")
        except self._ray.exceptions.RayError as error:
            return type(error).__name__

    def _cancel(self, references: list[Any]) -> None:
        for reference in references:
            self._ray.cancel(reference, force=True)
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=_CANCEL_SECONDS)

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        local = {"address": "local", "include_dashboard": False}
        where = local if self.address is None else {"address": self.address}
        self._ray.init(**where, log_to_driver=False, logging_level=logging.WARNING)
        self._connected_here = True


def _import_ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            "executor: expected Ray, received a Python without it; pip install 'ssm-metarl[ray]'"
        ) from error
