"""Long work: ``ssm-metarl`` commands as processes of their own, one at a time, the others queued.

Place in the flow: stage 10, under the handlers. A training takes a whole processor and hundreds of
megabytes; in a process of its own it leaves the page responsive, outlives a reload of it, and gives
everything back when it ends. SIGTERM asks a command to stop, and every command saves first.

The trap: a visitor who closed the page stays in the queue. A job whose owner was not heard of for
`ABANDONED_SECONDS` is stopped, so that it keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

MAX_WAITING = 6
GRACE_SECONDS = 20.0
"""From the request to stop until a job is ended at once."""
ABANDONED_SECONDS = 300.0
"""A hidden browser tab still asks for news every minute."""
POLL_SECONDS = 0.1
NICENESS = 3
MESSAGE_BYTES = 4000


class Busy(RuntimeError):
    """There is no room now; the message says for what."""


class JobState(StrEnum):
    """What has become of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    """It was cancelled, before or while it ran."""
    FAILED = "failed"


@dataclass(eq=False)
class Job:
    """A command in the queue."""

    kind: str
    arguments: tuple[str, ...]
    """After ``python -m``."""
    folder: Path
    """Where it works; its output is written here."""
    limit_seconds: float
    """Time after which it is stopped."""
    last_seen: Callable[[], float] | None = None
    """When its owner was last heard of, on the queue's clock; None where nobody need be there."""
    state: JobState = JobState.WAITING
    started: float | None = None
    why: str = ""
    """Why it was stopped or failed, in words."""
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def active(self) -> bool:
        """Whether it is still to end."""
        return self.state in (JobState.WAITING, JobState.RUNNING)

    @property
    def output(self) -> Path:
        """Its stdout."""
        return self.folder / f"{self.kind}.out"

    @property
    def messages(self) -> Path:
        """Its stderr: progress, and what went wrong."""
        return self.folder / f"{self.kind}.err"

    def last_line(self) -> str:
        """The last line that it said; empty before the first."""
        with contextlib.suppress(OSError), open(self.messages, "rb") as file:
            file.seek(max(0, self.messages.stat().st_size - MESSAGE_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def end(self, state: JobState, why: str = "") -> None:
        """Say what has become of it."""
        self.state, self.why = state, why


class JobQueue:
    """Runs jobs one after another.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: list[Job] = []  # those still to end, in their order
        self._lock = threading.Lock()
        self._closed = False
        self._worker = ThreadPoolExecutor(1, "jobs")

    def submit(self, job: Job) -> Job:
        """Put a job at the end of the queue."""
        with self._lock:
            self._jobs = [each for each in self._jobs if each.active]
            waiting = sum(each.state == JobState.WAITING for each in self._jobs)
            if self._closed or waiting >= MAX_WAITING:
                raise Busy(
                    f"The server is busy: {waiting} runs are waiting already. "
                    f"Try again in a few minutes."
                )
            self._jobs.append(job)
            self._worker.submit(self._work, job)
        return job

    def cancel(self, job: Job) -> None:
        """Ask a job to stop; one that waits never starts."""
        job.cancelled.set()
        with self._lock:
            if job.state == JobState.WAITING:
                job.end(JobState.STOPPED, "cancelled before it began")

    def ahead_of(self, job: Job) -> int:
        """How many jobs come before one that waits; 0 for others."""
        active = [each for each in self._jobs if each.active]
        return active.index(job) if job in active else 0

    def describe(self, job: Job) -> str:
        """A job's state in a sentence."""
        match job.state:
            case JobState.WAITING:
                ahead = self.ahead_of(job)
                return f"Waiting: {ahead} before it." if ahead else "About to start."
            case JobState.RUNNING if job.cancelled.is_set():
                return "Stopping: it saves its last epoch first."
            case JobState.RUNNING:
                return job.last_line() or "Starting."
            case JobState.DONE:
                return "Done."
            case JobState.STOPPED:
                return f"Stopped ({job.why}); what it had saved stays."
            case JobState.FAILED:
                return f"It failed: {job.why}"

    def close(self) -> None:
        """Stop everything, and wait until it has."""
        with self._lock:
            self._closed = True
        for job in self._jobs:
            self.cancel(job)
        self._worker.shutdown()

    def _work(self, job: Job) -> None:
        with self._lock:
            if job.state != JobState.WAITING:  # cancelled meanwhile
                return
            if reason := self._reason_to_stop(job):
                job.end(JobState.STOPPED, reason)
                return
            job.state, job.started = JobState.RUNNING, self._clock()
        try:
            self._run(job)
        except OSError as error:  # a full disk, no more processes: the next one may run
            job.end(JobState.FAILED, f"it could not be started: {error.strerror}")

    def _run(self, job: Job) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(job.output, "wb") as output, open(job.messages, "wb") as messages:
            process = subprocess.Popen(
                [sys.executable, "-m", *job.arguments],
                cwd=job.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=messages,
                env=environment, start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(OSError):  # visitors who press a button come first
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        asked, reason = None, ""
        while process.poll() is None:
            if asked is None and (reason := self._reason_to_stop(job)):
                asked = self._clock()
                process.send_signal(signal.SIGTERM)
            elif asked is not None and self._clock() - asked > GRACE_SECONDS:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        if asked is not None:
            job.end(JobState.STOPPED, reason)
        elif process.returncode == 0:
            job.end(JobState.DONE)
        else:
            job.end(JobState.FAILED, job.last_line() or f"exit code {process.returncode}")

    def _reason_to_stop(self, job: Job) -> str:
        now = self._clock()
        if job.cancelled.is_set():
            return "cancelled"
        if job.started is not None and now - job.started > job.limit_seconds:
            return f"it took longer than {job.limit_seconds / 60:.0f} minutes"
        if job.last_seen is not None and now - job.last_seen() > ABANDONED_SECONDS:
            return "nobody was looking"
        return ""
