"""One contract for every executor, and what only a pool of processes must withstand.

Jobs are partials of functions that a spawned worker can import, which this module is not;
`python` evaluates an expression where nothing else will do.
"""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from ssm_metarl.recursive_self_improvement.executor import (
    Executor,
    InlineExecutor,
    LocalExecutor,
    Stopped,
)
from ssm_metarl.recursive_self_improvement.worker import (
    THREAD_VARIABLES,
    Outcome,
    attempt,
    failure_of,
    read_outcome,
)


def python(expression: str) -> partial[Any]:
    """A job that evaluates an expression; modules are imported where it names them."""
    named = [name for name in ("os", "sys", "time", "torch") if f"{name}." in expression]
    imports = ", ".join(f"{name!r}: __import__({name!r})" for name in named)
    return partial(eval, f"eval({expression!r}, {{{imports}}})")


MINUTE = partial(time.sleep, 60)
# A string's pages are written to, unlike those of a bytearray of zeros.
BIG = partial(exec, "import time; pages = b'x' * (300 << 20); time.sleep(60)")


def local(
    num_workers: int = 2, timeout: float = 60, memory: float = 1000, **options: Any
) -> LocalExecutor:
    return LocalExecutor(
        num_workers=num_workers, timeout_seconds=timeout, memory_limit_mb=memory, **options
    )


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(workers: list[psutil.Process]) -> bool:
    return all(not w.is_running() or w.status() == psutil.STATUS_ZOMBIE for w in workers)


def workers_of(pid: int) -> list[psutil.Process]:
    """Spawned workers of a process; its resource tracker is none."""
    children = [child for child in psutil.Process(pid).children() if not gone([child])]
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalExecutor]:
    with local() as executor:
        yield executor


@pytest.fixture(params=["inline", "local"])
def executor(request: pytest.FixtureRequest, pool: LocalExecutor) -> Executor:
    return InlineExecutor() if request.param == "inline" else pool


# ---- the contract


def test_results_stand_in_the_order_of_the_jobs(executor: Executor) -> None:
    delays = [0.3, 0.0, 0.1, 0.0, 0.0]
    jobs = [python(f"time.sleep({d}) or {i}") for i, d in enumerate(delays)]
    calls: list[tuple[int, Outcome]] = []
    outcomes = executor.run(jobs, on_done=lambda *call: calls.append(call))
    assert outcomes == [Outcome(i) for i in range(5)]
    assert sorted(calls, key=lambda call: call[0]) == list(enumerate(outcomes))


def test_an_exception_is_one_line_and_costs_no_other_job(executor: Executor) -> None:
    jobs = [
        partial(int, "x"),
        partial(operator.add, 2, 3),
        partial(exec, "raise KeyError('a\\nb')"),
    ]
    failed, added, two_lines = executor.run(jobs)
    assert failed.failure == "error: ValueError: invalid literal for int() with base 10: 'x'"
    assert added == Outcome(5)
    assert two_lines.failure is not None and "\n" not in two_lines.failure


def test_no_jobs_give_no_outcomes(executor: Executor) -> None:
    assert executor.run([]) == []


def test_what_on_done_raises_ends_the_run_and_a_new_one_may_follow(executor: Executor) -> None:
    def fail(index: int, outcome: Outcome) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        executor.run([os.getpid, os.getpid, os.getpid], on_done=fail)
    assert executor.run([partial(abs, -1)]) == [Outcome(1)]


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_a_stop_that_stands_already_runs_nothing(kind: str) -> None:
    stop = partial(bool, 1)
    executor = InlineExecutor(stop) if kind == "inline" else local(should_stop=stop)
    with pytest.raises(Stopped, match="2 of 2 jobs"):
        executor.run([MINUTE, MINUTE])
    executor.close()
    executor.close()


def test_a_stop_after_the_last_job_discards_nothing() -> None:
    done: list[int] = []
    executor = InlineExecutor(should_stop=lambda: len(done) == 2)
    jobs = [os.getpid, os.getpid]
    assert len(executor.run(jobs, on_done=lambda index, _: done.append(index))) == 2


def test_keyboard_interrupt_passes_inline() -> None:
    # A background job of a shell starts with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            InlineExecutor().run([partial(signal.raise_signal, signal.SIGINT)])
    finally:
        signal.signal(signal.SIGINT, before)


def test_failures_hold_no_addresses() -> None:
    assert failure_of(ValueError(f"no {object()!r}")) == "error: ValueError: no <object object>"
    assert failure_of(ValueError()) == "error: ValueError:"
    assert read_outcome(attempt(b"no pickle")).failure is not None
    assert read_outcome(b"no pickle").failure is not None


# ---- a pool of processes


@pytest.mark.parametrize(
    "limits",
    [{"timeout_seconds": 0}, {"memory_limit_mb": -1}, {"num_workers": 0}],
    ids=lambda limits: next(iter(limits)),
)
def test_impossible_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limits))}: expected"):
        LocalExecutor(**{"timeout_seconds": 1, "memory_limit_mb": 1} | limits)


def test_workers_stay_from_run_to_run(pool: LocalExecutor) -> None:
    nap = python("time.sleep(0.2) or os.getpid()")
    first, second = ({outcome.value for outcome in pool.run([nap] * 4)} for _ in range(2))
    assert first == second
    assert len(first) == 2 and os.getpid() not in first


def test_one_thread_a_worker() -> None:
    torch_threads = python("torch.get_num_threads()")
    # Set by a careless job, or by a main module that imports torch before the worker can speak.
    careless = python("torch.set_num_threads(2) or torch.get_num_threads()")
    with local(num_workers=1) as executor:
        jobs = [partial(os.getenv, name) for name in THREAD_VARIABLES]
        values = [o.value for o in executor.run([*jobs, torch_threads, careless, torch_threads])]
    assert values == ["1"] * len(jobs) + [1, 2, 1]


def test_what_cannot_be_pickled_is_an_error(pool: LocalExecutor) -> None:
    lock = threading.Lock()
    jobs = [lambda: 1, threading.Lock, partial(abs, -1), lock.acquire]
    outcomes = pool.run(jobs)
    assert [outcome.failure is None for outcome in outcomes] == [False, False, True, False]
    assert outcomes[1].failure == "error: TypeError: cannot pickle '_thread.lock' object"
    assert all((outcome.failure or "error:").startswith("error:") for outcome in outcomes)


def test_megabytes_pass_both_ways(pool: LocalExecutor) -> None:
    size = 5_000_000
    there, back = pool.run([partial(len, b"x" * size), partial(operator.mul, b"x", size)] * 3)[:2]
    assert there.value == size
    assert back.value == b"x" * size


def test_a_job_that_exits_is_a_crash(pool: LocalExecutor) -> None:
    segfault = partial(signal.raise_signal, signal.SIGSEGV)
    jobs = [partial(os._exit, 3), partial(abs, -1), partial(sys.exit, 4), segfault]
    assert [outcome.failure for outcome in pool.run(jobs)] == [
        "crash: worker ended with exit code 3",
        None,
        "error: SystemExit: 4",
        "crash: worker ended with signal SIGSEGV",
    ]


def test_a_worker_killed_from_outside_is_a_crash_and_others_go_on() -> None:
    def kill(index: int, outcome: Outcome) -> None:
        if index == 1:
            os.kill(outcome.value, signal.SIGKILL)  # the idle one: no job is blamed for that
        elif index == 2:
            (sleeper,) = {w for w in workers_of(os.getpid()) if w.pid != outcome.value} - before
            sleeper.kill()

    before = set(workers_of(os.getpid()))
    with local() as executor:
        outcomes = executor.run([MINUTE, os.getpid, os.getpid, partial(abs, -1)], on_done=kill)
    assert outcomes[0] == Outcome(failure="crash: worker ended with signal SIGKILL")
    assert outcomes[2].failure is None and outcomes[2].value != outcomes[1].value
    assert outcomes[3] == Outcome(1)


def test_time_is_limited() -> None:
    with local(timeout=1.5) as executor:
        start = time.monotonic()
        jobs = [MINUTE, partial(exec, "while True: pass"), partial(abs, -1)]
        outcomes = executor.run(jobs)
        assert time.monotonic() - start < 10
    slow = Outcome(failure="timeout: more than 1.5 s")
    assert outcomes == [slow, slow, Outcome(1)]


def test_memory_is_limited_and_only_a_fresh_worker_is_judged() -> None:
    over = Outcome(failure="memory: more than 200 MB")
    leak = partial(exec, "import sys; sys.leak = b'x' * (120 << 20)")
    grow = partial(exec, "import time; pages = b'x' * (120 << 20); time.sleep(1.2)")
    with local(num_workers=1, memory=200) as executor:
        # The leak stays below the limit, and so does what comes after it, in a worker of its own.
        assert executor.run([BIG, leak, grow, partial(abs, -1), BIG]) == [
            over, Outcome(), Outcome(), Outcome(1), over,
        ]  # fmt: skip


def test_a_stop_ends_busy_workers_within_a_second() -> None:
    pids: list[int] = []
    asked: list[float] = []

    def should_stop() -> bool:
        if pids and not asked:
            asked.append(time.monotonic())
        return bool(asked)

    before = workers_of(os.getpid())
    executor = local(should_stop=should_stop)
    with pytest.raises(Stopped, match="1 of 2 jobs"):
        executor.run([MINUTE, os.getpid], on_done=lambda _, outcome: pids.append(outcome.value))
    assert time.monotonic() - asked[0] < 1
    assert workers_of(os.getpid()) == before


def test_close_ends_workers_and_may_be_repeated() -> None:
    executor = local()
    (pid,) = (outcome.value for outcome in executor.run([os.getpid]))
    executor.close()
    executor.close()
    assert not psutil.pid_exists(pid)
    assert executor.run([os.getpid])[0].value != pid
    executor.close()


def test_signals_that_are_the_supervisors_leave_workers_alone() -> None:
    def interrupt(index: int, outcome: Outcome) -> None:
        if index == 0:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(outcome.value, number)

    nap = python("time.sleep(0.3) or os.getpid()")
    with local(num_workers=1) as executor:
        first, second = executor.run([os.getpid, nap], on_done=interrupt)
    assert first == second


SUPERVISOR = """
import os, sys
from functools import partial
from ssm_metarl.recursive_self_improvement.executor import LocalExecutor
assert not {"torch", "numpy", "numba"} & set(sys.modules)
if __name__ == "__main__":
    pool = LocalExecutor(num_workers=2, timeout_seconds=float(sys.argv[1]), memory_limit_mb=999)
    pool.run([os.getpid, os.getpid])
    print("ready", flush=True)
    print([outcome.value for outcome in pool.run([partial(eval, s) for s in sys.argv[2:]])])
"""
SLEEP = "__import__('time').sleep"


def supervise(folder: Path, timeout: float, *sources: str) -> subprocess.Popen[str]:
    """Another process with a pool, which it forgets to close; its two workers are ready."""
    script = folder / "supervisor.py"
    script.write_text(SUPERVISOR)
    command = [sys.executable, script, str(timeout), *sources]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    # The second job holds the interpreter's lock, so that no thread of the worker can run.
    with supervise(tmp_path, 99, f"{SLEEP}(60)", "sum(range(10**12))") as process:
        time.sleep(0.5)
        workers = workers_of(process.pid)
        process.kill()
        assert len(workers) == 2
        assert wait_until(lambda: gone(workers), 5)


def test_time_in_which_the_supervisor_stood_still_does_not_count(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    job = f"open({str(begun)!r}, 'w').close() or {SLEEP}(4.5) or 7"
    with supervise(tmp_path, 4.0, job) as process:
        assert wait_until(begun.exists, 20)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.5)
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None and process.stdout.read() == "[7]\n"


def test_a_supervisor_that_forgets_to_close_still_ends(tmp_path: Path) -> None:
    with supervise(tmp_path, 99, f"{SLEEP}(1) or 7") as process:
        workers = workers_of(process.pid)
        assert process.stdout is not None and process.stdout.read() == "[7]\n"
        assert process.wait(timeout=20) == 0
        assert wait_until(lambda: gone(workers), 5)
