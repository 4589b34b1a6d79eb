"""One spawned worker process: its life, and the supervisor's end of the pipe to it.

Place in the flow: stage 8, under `executor`. Jobs travel as bytes, and what they need (torch) is
imported in the worker that unpickles them.

The traps: `spawn` imports the supervisor's main module in each worker before `_work` runs, so a
main module that imports torch does so before the thread variables are set. A value is unpickled
in the supervisor: one that holds a tensor brings torch there.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

THREAD_VARIABLES = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")
}
"""A worker's environment: one thread each, or N workers on N cores would run N² threads."""

GRACE_SECONDS = 1.0  # for idle workers to leave by themselves
_READY = b"ready"  # a worker's message beside pickled outcomes
_SUPERVISORS_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Outcome:
    """What came of one job."""

    value: Any = None
    """The job's result; None where it failed."""
    failure: str | None = None
    """None: `value` is the result. Otherwise one line that starts with ``crash:``, ``timeout:``,
    ``memory:`` or ``error:``, as in ``error: ValueError: no such task``."""


def failure_of(error: BaseException) -> str:
    """An exception in one line: ``error: Type: message``, without addresses of objects."""
    message = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error))
    return " ".join(f"error: {type(error).__name__}: {message}".split())


def attempt(payload: bytes) -> bytes:
    """Run a pickled job on one thread; returns a pickled `Outcome`, a failure for any exception."""
    try:
        job = pickle.loads(payload)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        return pickle.dumps(Outcome(job()))
    except BaseException as error:  # SystemExit too: the worker is there for the next job
        return pickle.dumps(Outcome(failure=failure_of(error)))


def read_outcome(message: bytes) -> Outcome:
    """Unpickle what `attempt` returned; a value that cannot be unpickled is a failure."""
    try:
        outcome: Outcome = pickle.loads(message)
        return outcome
    except Exception as error:
        return Outcome(failure=failure_of(error))


def _work(connection: Connection) -> None:
    """A worker's life: jobs as bytes in, outcomes as bytes out, until the pipe closes."""
    for number in _SUPERVISORS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SUPERVISORS_SIGNALS)
    os.environ.update(THREAD_VARIABLES)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        connection.send_bytes(_READY)
        while True:
            connection.send_bytes(attempt(connection.recv_bytes()))
    except (EOFError, OSError):
        return  # the supervisor has closed the pipe


def _end_with_parent() -> None:
    """Leave at once when the parent is gone, even in the middle of a computation."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if hasattr(os, "O_ASYNC") and sys.platform == "linux":
        # A thread must wait for the interpreter's lock, which compiled code may hold for hours.
        # The kernel need not: SIGIO ends a process that does not handle it.
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
    while not wait([parent.sentinel], timeout=1.0):
        if os.getppid() != parent.pid:  # another child of the parent may hold the sentinel open
            break
    os._exit(1)


class Worker:
    """One spawned process, the pipe to it, and the job it has.

    What it is given before it is ready is sent when it is: a big payload would wait in a pipe that
    nobody reads.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        # Blocked signals stay blocked through the exec: a Ctrl-C cannot hit a worker that is
        # still starting, and this process gets it a moment later.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SUPERVISORS_SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.usage = psutil.Process(self.process.pid)
        self.ready = self.ended = False
        self.finished = 0
        self.index: int | None = None
        """Of the job that it has."""
        self.payload, self.since = b"", 0.0

    def give(self, index: int, payload: bytes, now: float) -> None:
        """Take a job; `now` is the supervisor's own time, in seconds."""
        self.index, self.payload, self.since = index, payload, now
        if self.ready:
            self._send()

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # where it has died, the next look finds that
            self.connection.send_bytes(self.payload)

    def look(self, now: float) -> Outcome | None:
        """What has come of the job so far: None while it runs."""
        alive = self.process.is_alive()  # asked first: a result may come just before the end
        try:
            if not self.connection.poll():
                return None if alive else self._crash()
            message = self.connection.recv_bytes()
        except (EOFError, OSError):
            return self._crash()
        if message == _READY:
            self.ready, self.since = True, now
            if self.index is not None:
                self._send()
            return None
        self.finished += 1
        self.index, self.payload = None, b""
        return read_outcome(message)

    def _crash(self) -> Outcome:
        self.process.join(GRACE_SECONDS)  # the pipe may close a moment before the process ends
        code = self.process.exitcode
        self.end()
        if code is None:
            return Outcome(failure="crash: worker closed its pipe")
        if code >= 0:
            return Outcome(failure=f"crash: worker ended with exit code {code}")
        name = next((s.name for s in signal.Signals if s == -code), str(-code))
        return Outcome(failure=f"crash: worker ended with signal {name}")

    def resident_mb(self) -> float:
        """Its resident memory in units of 2**20 bytes; 0 if it has died."""
        try:
            return float(self.usage.memory_info().rss) / 2**20
        except psutil.Error:
            return 0.0

    def end(self) -> None:
        """Kill it: a pure job has nothing to save."""
        self.ended = True
        self.connection.close()
        self.process.kill()
        self.process.join(GRACE_SECONDS)
