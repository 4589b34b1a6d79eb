"""The executors' contract on a Ray cluster of two nodes, one of which is killed."""

from __future__ import annotations

import operator
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.recursive_self_improvement import ray_executor
from ssm_metarl.recursive_self_improvement.executor import Stopped
from ssm_metarl.recursive_self_improvement.ray_executor import RayExecutor
from ssm_metarl.recursive_self_improvement.worker import Outcome

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
MINUTE = partial(time.sleep, 60)
SLOW_LINE = """
import os, time
with open({path!r}, "a") as file:
    print(os.getpid(), file=file)
time.sleep(2)
"""


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"executor: expected Ray, .*ssm-metarl\[ray\]"):
        RayExecutor(timeout_seconds=1, memory_limit_mb=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args=NODE | {"include_dashboard": False}
    )
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def executor(cluster: Any) -> Iterator[RayExecutor]:
    with RayExecutor(address=cluster.address, timeout_seconds=20, memory_limit_mb=200) as executor:
        yield executor


@pytest.mark.nightly
def test_outcomes_are_those_of_one_machine(executor: RayExecutor) -> None:
    size = 5_000_000
    jobs = [
        partial(int, "x"),
        partial(operator.mul, b"x", size),
        partial(len, b"x" * size),
        lambda: 1,
        threading.Lock,
        partial(os._exit, 3),
        partial(signal.raise_signal, signal.SIGKILL),
        partial(exec, "import time; pages = b'x' * (300 << 20); time.sleep(60)"),
        partial(os.getenv, "OMP_NUM_THREADS"),
    ]
    calls: list[tuple[int, Outcome]] = []
    outcomes = executor.run(jobs, on_done=lambda *call: calls.append(call))
    assert sorted(calls, key=lambda call: call[0]) == list(enumerate(outcomes))
    assert outcomes[1].value == b"x" * size
    assert [outcomes[i].value for i in (2, 8)] == [size, "1"]
    assert outcomes[3].failure is not None and outcomes[3].failure.startswith("error: ")
    assert [outcomes[i].failure for i in (0, 4, 5, 6, 7)] == [
        "error: ValueError: invalid literal for int() with base 10: 'x'",
        "error: TypeError: cannot pickle '_thread.lock' object",
        "crash: worker ended with exit code 3",
        "crash: worker ended with signal SIGKILL",
        "memory: more than 200 MB",
    ]


@pytest.mark.nightly
def test_time_is_limited_and_queueing_takes_none_of_it(executor: RayExecutor) -> None:
    executor.timeout_seconds = 3.0
    try:
        nap = partial(eval, "__import__('time').sleep(1.5) or 7")
        outcomes = executor.run([MINUTE, nap, nap, nap])
    finally:
        executor.timeout_seconds = 20.0
    assert outcomes == [Outcome(failure="timeout: more than 3 s"), *[Outcome(7)] * 3]


@pytest.mark.nightly
def test_a_stop_cancels_what_runs(executor: RayExecutor, tmp_path: Path) -> None:
    line = tmp_path / "line"
    begun = partial(exec, SLOW_LINE.format(path=str(line)) + "time.sleep(60)")
    executor._should_stop = line.exists
    try:
        with pytest.raises(Stopped, match="2 of 2 jobs"):
            executor.run([begun, MINUTE])
        stopped = time.monotonic()
    finally:
        executor._should_stop = lambda: False
    job = int(line.read_text())
    while os.path.exists(f"/proc/{job}"):
        assert time.monotonic() - stopped < 5
        time.sleep(0.05)
    assert executor.run([partial(abs, -1)]) == [Outcome(1)]


@pytest.mark.nightly
def test_silence_is_a_failure_of_the_cluster(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_SILENCE_SECONDS", -19.5)  # half a second in all
    assert executor.run([MINUTE]) == [Outcome(failure="crash: no answer from the cluster, 4 times")]


@pytest.mark.nightly
def test_a_node_is_lost_and_no_job(cluster: Any, executor: RayExecutor, tmp_path: Path) -> None:
    executor.run([os.getpid])
    second = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    lines = [tmp_path / str(index) for index in range(6)]
    jobs = [partial(exec, SLOW_LINE.format(path=str(line))) for line in lines]
    jobs = [
        partial(eval, f"exec({job.args[0]!r}) or {index * index}") for index, job in enumerate(jobs)
    ]
    calls: list[tuple[int, Outcome]] = []

    def kill_the_second_node_while_both_work() -> None:
        while sum(line.exists() for line in lines) - len(calls) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill_the_second_node_while_both_work, daemon=True)
    killer.start()
    outcomes = executor.run(jobs, on_done=lambda *call: calls.append(call))
    killer.join(30)
    assert not killer.is_alive()
    assert outcomes == [Outcome(index * index) for index in range(6)]
    assert sorted(index for index, _ in calls) == list(range(6))
    runs = [len(line.read_text().splitlines()) for line in lines]
    assert sorted(runs) == [1, 1, 1, 1, 1, 2]  # the one that was lost ran again
