"""The queue: one at a time, bounded, cancelled, abandoned, too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.app import jobs as module
from ssm_metarl.app.jobs import Busy, Job, JobQueue, JobState

SLEEPER = """\
import signal, sys, time
def stop(*_):
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    made = JobQueue()
    yield made
    made.close()


@pytest.fixture
def script(tmp_path: Path, queue: JobQueue) -> Callable[..., Job]:
    """Submit a Python script as a job."""

    def submit(text: str, name: str = "script", **options: Any) -> Job:
        (tmp_path / f"{name}.py").write_text(text)
        return queue.submit(Job(name, (name,), tmp_path, **{"limit_seconds": 60.0, **options}))

    return submit


def wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_runs_in_its_folder_and_ends(script: Callable[..., Job], tmp_path: Path) -> None:
    job = script("import os; print(os.getcwd())")
    wait(lambda: not job.active)
    assert job.state == JobState.DONE and job.why == ""
    assert job.output.read_text().strip() == str(tmp_path)


def test_a_job_that_cannot_be_started_fails_alone(
    script: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_processes(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(module.subprocess, "Popen", no_processes)
        job = script("print()")
        wait(lambda: not job.active)
    assert job.state == JobState.FAILED and job.why.endswith("Resource temporarily unavailable")
    job = script("print()")
    wait(lambda: not job.active)
    assert job.state == JobState.DONE


def test_a_failure_says_its_last_line(script: Callable[..., Job]) -> None:
    job = script("import sys; print('first', file=sys.stderr); sys.exit('it is broken')")
    wait(lambda: not job.active)
    assert (job.state, job.why) == (JobState.FAILED, "it is broken")


def test_a_running_job_is_asked_to_stop_and_saves(
    queue: JobQueue, script: Callable[..., Job]
) -> None:
    job = script(SLEEPER)
    wait(lambda: job.last_line() == "ready")
    queue.cancel(job)
    wait(lambda: not job.active)
    assert (job.state, job.why) == (JobState.STOPPED, "cancelled")
    assert job.output.read_text() == "saved\n"


def test_one_that_does_not_listen_is_ended(
    queue: JobQueue, script: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    job = script(SLEEPER.replace("stop)", "signal.SIG_IGN)"))
    wait(lambda: job.last_line() == "ready")
    queue.cancel(job)
    wait(lambda: not job.active)
    assert job.state == JobState.STOPPED


def test_jobs_wait_for_one_another_and_a_waiting_one_never_starts(
    queue: JobQueue, script: Callable[..., Job], tmp_path: Path
) -> None:
    first = script(SLEEPER, "first")
    wait(lambda: first.state == JobState.RUNNING)
    second, third = script("open('second', 'w')", "second"), script("open('third', 'w')", "third")
    assert [queue.ahead_of(job) for job in (first, second, third)] == [0, 1, 2]
    queue.cancel(second)
    assert (second.state, second.why) == (JobState.STOPPED, "cancelled before it began")
    assert queue.ahead_of(third) == 1
    queue.cancel(first)
    wait(lambda: not third.active)
    assert third.state == JobState.DONE
    assert (tmp_path / "third").exists() and not (tmp_path / "second").exists()


def test_too_many_are_told_that_it_is_busy(script: Callable[..., Job]) -> None:
    first = script(SLEEPER, "first")
    wait(lambda: first.state == JobState.RUNNING)
    for i in range(module.MAX_WAITING):
        script("", f"waiting_{i}")
    with pytest.raises(Busy, match=f"busy: {module.MAX_WAITING} runs are waiting"):
        script("", "one_too_many")


def test_a_job_that_nobody_looks_at_is_stopped(script: Callable[..., Job]) -> None:
    long_ago = time.monotonic() - module.ABANDONED_SECONDS - 1
    job = script(SLEEPER, last_seen=lambda: long_ago)
    wait(lambda: not job.active)
    assert (job.state, job.why) == (JobState.STOPPED, "nobody was looking")


def test_a_job_may_not_take_forever(script: Callable[..., Job]) -> None:
    job = script(SLEEPER, limit_seconds=0.2)
    wait(lambda: not job.active)
    assert job.state == JobState.STOPPED and "longer than" in job.why


def test_closing_stops_what_runs_and_what_waits(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    queue = JobQueue()
    running, waiting, late = (Job("sleeper", ("sleeper",), tmp_path, 60.0) for _ in range(3))
    queue.submit(running)
    queue.submit(waiting)
    wait(lambda: running.last_line() == "ready")
    queue.close()
    assert {running.state, waiting.state} == {JobState.STOPPED}
    with pytest.raises(Busy):
        queue.submit(late)
