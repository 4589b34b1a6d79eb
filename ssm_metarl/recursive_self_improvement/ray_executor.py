"""Jobs on a Ray cluster: `executor`'s contract, on as many machines as there are.

Place in the flow: stage 8, under `agent`. A Ray task does not run its job itself: on its node it
hands it to a `LocalExecutor` with one worker. So limits and failures are judged, and told, exactly
as on one machine, a job's time does not count while it queues, and what Ray reports is never the
job's fault: the job goes out again. Running a pure one twice does no harm; one answer is taken.

A job on a node that is lost fails (NodeDiedError, WorkerCrashedError, ObjectLostError). One that
was queued for it does not, and where no node is left Ray says nothing: so silence has a limit too.
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
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ssm_metarl.recursive_self_improvement.executor import (
    Job,
    LimitedExecutor,
    LocalExecutor,
    next_payload,
)
from ssm_metarl.recursive_self_improvement.worker import (
    THREAD_VARIABLES,
    Outcome,
    attempt,
    failure_of,
    read_outcome,
)

RESUBMISSIONS = 3
"""How often a job goes out again after failures that are not its own."""

_SLICE_SECONDS = 0.1  # the longest that a stop or an answer goes unnoticed
_SILENCE_SECONDS = 60.0  # beyond a job's own time: Ray starting workers, results travelling
_CANCEL_SECONDS = 1.0
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
    (outcome,) = _node_pool[limits].run([partial(attempt, payload)])  # not opened on the way
    return pickle.dumps(outcome) if outcome.failure is not None else outcome.value


class RayExecutor(LimitedExecutor):
    """Runs jobs as Ray tasks of one CPU each.

    Connects with the first run. A connection that was there before is used and left alone.

    Args:
        address: Of a running cluster (``"host:port"``, ``"auto"``); None starts Ray on this
            machine, without dashboard, and stops it with `close`.
        limits: See `LimitedExecutor`.

    Raises:
        ValueError: If Ray is not installed, or a limit is not above 0.
    """

    def __init__(self, *, address: str | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self.address = address
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise ValueError(
                "executor: expected Ray, received a Python without it; "
                "pip install 'ssm-metarl[ray]'"
            ) from None
        self._connected_here = False
        self._out: dict[Any, int] = {}
        """Which job a task's reference belongs to, of those that are out."""

    def close(self) -> None:
        """Leave the cluster, and stop it if it was started here."""
        if self._connected_here:
            self._connected_here = False
            self._ray.shutdown()

    def _abandon(self) -> None:
        references = list(self._out)
        self._out.clear()
        for reference in references:
            self._ray.cancel(reference, force=True)
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=_CANCEL_SECONDS)

    def _outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        waiting = deque(range(len(jobs)))
        failures: Counter[int] = Counter()
        heard = time.monotonic()
        while waiting or self._out:
            self._check_stop(len(waiting) + len(self._out), len(jobs))
            if waiting:
                yield from self._submit(jobs, waiting)
            for index, answer in self._answers(time.monotonic() - heard):
                heard = time.monotonic()
                if isinstance(answer, bytes):
                    yield index, read_outcome(answer)
                    continue
                failures[index] += 1
                if failures[index] <= RESUBMISSIONS:
                    waiting.appendleft(index)
                else:
                    yield index, Outcome(failure=f"crash: {answer}, {failures[index]} times")

    def _submit(self, jobs: Sequence[Job], waiting: deque[int]) -> Iterator[tuple[int, Outcome]]:
        """Send jobs, two a CPU; yields the ones that cannot be pickled."""
        if not self._ray.is_initialized():
            local = {"address": "local", "include_dashboard": False}
            where = local if self.address is None else {"address": self.address}
            self._ray.init(**where, log_to_driver=False, logging_level=logging.WARNING)
            self._connected_here = True
        task = self._ray.remote(run_on_node).options(
            num_cpus=1, max_retries=0, runtime_env={"env_vars": THREAD_VARIABLES}
        )
        most = 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        while waiting and len(self._out) < most:
            index, payload = next_payload(jobs, waiting)
            if isinstance(payload, Outcome):
                yield index, payload
            else:
                reference = task.remote(payload, self.timeout_seconds, self.memory_limit_mb)
                self._out[reference] = index

    def _answers(self, silence: float) -> list[tuple[int, bytes | str]]:
        """What came back: pickled outcomes, or the name of what failed in Ray."""
        if not self._out:
            return []
        ready, _ = self._ray.wait(list(self._out), num_returns=1, timeout=_SLICE_SECONDS)
        if not ready and silence > self.timeout_seconds + _SILENCE_SECONDS:
            indices = list(self._out.values())
            self._abandon()
            return [(index, "no answer from the cluster") for index in indices]
        return [(self._out.pop(reference), self._read(reference)) for reference in ready]

    def _read(self, reference: Any) -> bytes | str:
        """A task's answer. Names of failures have no node or process in them: see `executor`."""
        try:
            answer: bytes = self._ray.get(reference)
            return answer
        except self._ray.exceptions.RayTaskError as error:
            return failure_of(error.cause).removeprefix("error: ")
        except self._ray.exceptions.RayError as error:
            return type(error).__name__
