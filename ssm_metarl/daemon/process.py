"""The life of a daemon: started, being one, stopped, and how it is.

Place in the flow: stage 9, between `control`, with which it speaks to the work, and
`rsi_daemon`, the command line. It knows the work only as a callable, by default
`cli.rsi_serve.serve`, which it names and never imports before a daemon needs it.

The trap: whoever loses a start must be cheap, and the lock comes before torch. Nothing here imports
more than a little of the standard library until it is needed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ssm_metarl.daemon.control import (
    HEARTBEAT,
    PAUSED,
    REQUESTS,
    Control,
    request,
    requested,
    withdraw,
)
from ssm_metarl.daemon.lock import (
    adopt_lock,
    is_file,
    lock_is_held,
    read_in_place,
    read_record,
    take_lock,
    verified_pid,
)

if TYPE_CHECKING:
    from subprocess import Popen

Work = Callable[[Path, Control, list[str]], int]
"""What a daemon does until `Control.stopping`: (lineage, control, arguments) -> exit code."""

SERVICE = "ssm_metarl.cli.rsi_serve"
COMMAND = (sys.executable, "-m", "ssm_metarl.rsi_daemon", "run")
LOG, LOG_BYTES = "daemon.log", 1_000_000  # above which a start begins a new one
START_SECONDS, STOP_SECONDS = 10.0, 10.0
REFUSED = 2  # the exit code of work that was given what it cannot work with
SILENT_SECONDS = 30.0  # without a beat, after which a daemon is not responding


class DaemonError(RuntimeError):
    """A daemon ended while it was being started, or went on when told to stop."""


def default_lineage() -> Path:
    """``$SSM_METARL_HOME/rsi``, by default in the platform's folder for user data.

    Raises:
        ValueError: There is no such home.
    """
    given = os.environ.get("SSM_METARL_HOME")
    try:
        if given:
            return Path(given).expanduser() / "rsi"
        from platformdirs import user_data_dir

        return Path(user_data_dir("ssm-metarl")).expanduser() / "rsi"
    except RuntimeError:
        received = f"SSM_METARL_HOME={given}" if given else "a user without a home"
        raise ValueError(
            f"lineage: expected a folder for it, received {received}; set SSM_METARL_HOME to a "
            f"folder, or name one with --lineage"
        ) from None


def start(
    lineage: Path,
    arguments: Sequence[str] = (),
    command: Sequence[str] | None = None,
    cwd: str | None = None,
) -> bool:
    """Start the daemon, unless one is running; wait for its first beat.

    Where the work is the default one, also wait for its first report: it has then understood its
    arguments and opened the lineage, and what it refuses is refused here.

    Args:
        lineage: Its folder; made where it does not exist.
        arguments: For the work.
        command: What runs a daemon, given the arguments of `run`; None for `COMMAND`.
        cwd: Where it runs; None for here.

    Returns:
        False if one is running already.

    Raises:
        ValueError: The work refused its arguments.
        DaemonError: It ended at once.
    """
    lineage = lineage.resolve()
    before = read_record(lineage)
    lock = claim(lineage, arguments, cwd)
    if lock is None:
        return False
    from subprocess import DEVNULL, STDOUT, Popen
    from threading import Thread

    life = str(read_record(lineage).get("life", ""))
    try:
        options = ["--lineage", str(lineage), "--lock-fd", str(lock), "--", *arguments]
        with open_log(lineage) as log:
            child = Popen(
                [*(command or COMMAND), *options], cwd=cwd, pass_fds=(lock,),
                stdin=DEVNULL, stdout=log, stderr=STDOUT, start_new_session=True,
            )  # fmt: skip
    finally:
        os.close(lock)  # the child's copy keeps it locked
    try:
        _await_beat(lineage, life, child, with_report=command is None)
    except ValueError:  # `restart` is not to repeat the mistake
        if (lock := claim(lineage, before.get("arguments", ()), before.get("cwd"))) is not None:
            os.close(lock)
        raise
    Thread(target=child.wait, daemon=True).start()  # no zombie where the caller lives on
    return True


def _await_beat(lineage: Path, life: str, child: Popen[bytes], with_report: bool) -> None:
    """Wait until a new daemon beats, and has reported; one that is only slow is left alone."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        code = child.poll()
        beat = read_in_place(lineage / HEARTBEAT)
        beaten = beat.get("life") == life
        if beaten and (beat.get("status") or not with_report or code == 0):
            return
        if code is not None:
            last = "".join(follow_log(lineage, 1, follow=False)).strip()
            if beaten and code == REFUSED:
                raise ValueError(last)
            raise DaemonError(
                f"start: expected a daemon that lives, received exit code {code}; the last line "
                f"of {lineage / LOG}: {last or 'none'}"
            )
        time.sleep(0.01)


def stop(lineage: Path, timeout: float = STOP_SECONDS) -> bool:
    """Ask the daemon to stop and wait until it has; nobody is ever signalled.

    Returns:
        False if none was running.

    Raises:
        DaemonError: It still runs after so many seconds. The request stays: it stops as soon as it
            looks.
    """
    deadline = time.monotonic() + timeout
    life, waited = "", False
    while lock_is_held(lineage):
        now = str(read_record(lineage).get("life", ""))
        life = life or now
        if now != life:
            break  # the one that was meant has gone, and another was started
        if not requested(lineage, "stop", life):
            request(lineage, "stop", life)
        if time.monotonic() > deadline:
            raise DaemonError(
                f"stop: expected the daemon ({whereabouts(lineage)}) to end within {timeout:g} s, "
                "received no sign of it; the request stays"
            )
        waited = True
        time.sleep(0.02)
    if waited:
        withdraw(lineage, "stop", life)
    return waited


def restart(
    lineage: Path,
    arguments: Sequence[str] = (),
    timeout: float = STOP_SECONDS,
    command: Sequence[str] | None = None,
) -> bool:
    """Stop the daemon if one runs, and `start` one with the same arguments, or others if given."""
    record = read_record(lineage)
    stop(lineage, timeout)
    if arguments:
        return start(lineage, arguments, command)
    return start(lineage, record.get("arguments", ()), command, record.get("cwd"))


def status(lineage: Path) -> dict[str, Any]:
    """How the daemon is.

    Returns:
        lineage; state: not running, starting, running, stopping or not responding; paused; pid,
        None unless the process is verified; arguments; heartbeat_age and report_age in seconds,
        None without a daemon or a beat; exit_code of one that ended, None if it was killed;
        status: what the work last reported.
    """
    held, record = lock_is_held(lineage), read_record(lineage)
    beat = read_in_place(lineage / HEARTBEAT)
    ours, now = "life" in beat and beat["life"] == record.get("life"), time.monotonic()
    age = now - (beat["monotonic"] if ours else record.get("since", now))
    state = "stopping" if beat.get("stopping") else "running"
    if not held:
        state = "not running"
    elif age > SILENT_SECONDS:
        state = "not responding"
    elif not ours:
        state = "starting"
    return {
        "lineage": str(lineage),
        "state": state,
        "paused": (lineage / PAUSED).exists(),
        "pid": verified_pid(record) if held else None,
        "arguments": record.get("arguments", []),
        "heartbeat_age": age if held and ours else None,
        "report_age": now - beat["reported"] if held and ours else None,
        "exit_code": beat["exit_code"] if ours and not held else None,
        "status": beat.get("status", {}),
    }


def follow_log(lineage: Path, lines: int = 20, follow: bool = True) -> Iterator[str]:
    """The log's last lines and, to follow it without end, what is added, also after a rotation.

    Raises:
        ValueError: There is no log, and it is not to be waited for.
    """
    from collections import deque

    path, first = lineage / LOG, True
    while True:
        try:
            with path.open(errors="replace") as log:
                yield from deque(log, maxlen=lines) if first else log
                first = False
                while follow and is_file(log.fileno(), path):
                    yield from log
                    time.sleep(0.1)
                yield from log  # what came before it was rotated
        except FileNotFoundError:
            if not follow:
                raise ValueError(
                    f"logs: expected the log of a daemon, received none at {path}"
                ) from None
        if not follow:
            return
        time.sleep(0.1)


def run_daemon(lineage: Path, lock: int, arguments: Sequence[str], work: Work | None = None) -> int:
    """Be the daemon: until the work returns, or fails, which its log then tells.

    Args:
        lineage: Its folder.
        lock: The locked descriptor, from `take_lock`; it stays locked until the process ends.
        arguments: For the work.
        work: What to do; None for the service of recursive self-improvement.

    Returns:
        The work's exit code; 1 where it raised.
    """
    import faulthandler
    import signal
    import traceback

    adopt_lock(lineage, lock)
    faulthandler.enable()
    control, code = Control(lineage, lock), 0
    for number in (signal.SIGTERM, signal.SIGINT):  # before the first beat, which `start` awaits
        signal.signal(number, lambda *_: control.stop())
    with control:
        try:
            if not control.stopping():
                served: Work = work or import_module(SERVICE).serve
                code = served(lineage, control, list(arguments))
        except Exception:
            traceback.print_exc()
            code = 1
        control.end(code)
    return code


class LogStream(TextIOBase):
    """The daemon's stdout and stderr: a full disk costs lines of the log, never the work."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        """Write at once, or lose it."""
        with suppress(OSError):
            os.write(self._descriptor, text.encode(errors="replace"))
        return len(text)

    def fileno(self) -> int:
        """The log's descriptor, for those who write to it themselves."""
        return self._descriptor


def claim(lineage: Path, arguments: Sequence[str], cwd: str | None) -> int | None:
    """Take the lock, and remove requests to stop that were meant for earlier lives."""
    lock = take_lock(lineage, arguments, cwd)
    if lock is not None:
        for path in (lineage / REQUESTS).glob("stop*"):
            path.unlink(missing_ok=True)
    return lock


def open_log(lineage: Path) -> IO[bytes]:
    """The log to append to; one that has grown large is put aside. The lock must be held."""
    path = lineage / LOG
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_name(f"{LOG}.1"))
    return path.open("ab")


def whereabouts(lineage: Path) -> str:
    """Which daemon, for a message: its pid is not verified, which would need psutil."""
    return f"pid {read_record(lineage).get('pid')}, {lineage}"
