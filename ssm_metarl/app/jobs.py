"""Long work: ``ssm-metarl`` commands as processes of their own, one at a time, the others queued.

Place in the flow: stage 10, under the handlers. A training takes a whole processor and hundreds of
megabytes; in a process of its own it leaves the page responsive, and gives everything back when it
ends. SIGTERM asks a command to stop, and every command saves first.

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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ssm_metarl.app.visitors import Busy

MAX_WAITING = 6
GRACE_SECONDS = 20.0
"""From the request to stop until a job is ended at once."""
ABANDONED_SECONDS = 300.0
"""A hidden browser tab still asks for news every minute."""
POLL_SECONDS = 0.1
NICENESS = 3
MESSAGE_BYTES = 4000


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
    last_seen: Callable[[], float] | None
    """When its owner was last heard of; None where nobody need be there."""
    on_end: Callable[[Job], None] | None = None
    state: JobState = JobState.WAITING
    started: float | None = None
    ended: float | None = None
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


class JobQueue:
    """Runs jobs one after another.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def submit(
        self,
        kind: str,
        arguments: Sequence[str],
        folder: Path,
        *,
        limit_seconds: float,
        last_seen: Callable[[], float] | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> Job:
        """Put a job at the end of the queue.

        Args:
            kind: What it is, in a word.
            arguments: After ``python -m``.
            folder: Where it works.
            limit_seconds: Time after which it is stopped.
            last_seen: When its owner was last heard of, on the queue's clock.
            on_end: Called once when it has ended, from another thread.

        Raises:
            Busy: Too many wait already.
        """
        job = Job(kind, tuple(arguments), folder, limit_seconds, last_seen, on_end)
        with self._changed:
            if self._closed or len(self._waiting) >= MAX_WAITING:
                raise Busy(
                    f"The server is busy: {len(self._waiting)} runs are waiting already. "
                    f"Try again in a few minutes."
                )
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Ask a job to stop; one that waits never starts."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, JobState.STOPPED, "cancelled before it began")

    def ahead_of(self, job: Job) -> int:
        """How many jobs come before one that waits; 0 for others."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def close(self) -> None:
        """Stop everything, and wait until it has."""
        with self._changed:
            self._closed = True
            for job in list(self._waiting):
                job.cancelled.set()
            if self._running is not None:
                self._running.cancelled.set()
            self._changed.notify()
        self._thread.join(timeout=GRACE_SECONDS + 5)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                job = self._running = self._waiting.popleft()
            try:
                self._run(job)
            except OSError as error:  # a full disk, no more processes: the next one may run
                self._end(job, JobState.FAILED, f"it could not be started: {error.strerror}")
            finally:
                with self._changed:
                    self._running = None

    def _run(self, job: Job) -> None:
        if reason := self._reason_to_stop(job):
            self._end(job, JobState.STOPPED, reason)
            return
        job.state, job.started = JobState.RUNNING, self._clock()
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
            self._end(job, JobState.STOPPED, reason)
        elif process.returncode == 0:
            self._end(job, JobState.DONE, "")
        else:
            self._end(job, JobState.FAILED, job.last_line() or f"exit code {process.returncode}")

    def _reason_to_stop(self, job: Job) -> str:
        now = self._clock()
        if job.cancelled.is_set():
            return "cancelled"
        if job.started is not None and now - job.started > job.limit_seconds:
            return f"it took longer than {job.limit_seconds / 60:.0f} minutes"
        if job.last_seen is not None and now - job.last_seen() > ABANDONED_SECONDS:
            return "nobody was looking"
        return ""

    def _end(self, job: Job, state: JobState, why: str) -> None:
        job.state, job.why, job.ended = state, why, self._clock()
        if job.on_end is not None:
            job.on_end(job)
