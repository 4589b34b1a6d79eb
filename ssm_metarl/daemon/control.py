"""What is said between the daemon and those who talk to it: requests and the heartbeat.

Place in the flow: above `lock`, below everything else, so that the service of stage 9 takes
a `Control` without knowing who made it. A lineage is a folder:

    daemon.lock      locked as long as a daemon lives; its JSON says which one
    heartbeat.json   4096 bytes, rewritten in place: a full disk does not silence the daemon
    requests/        empty files `stop`, `stop.LIFE` and `ack`: nobody has to signal anybody
    paused           there while the lineage is paused, restart or not
    daemon.log       the daemon's stdout and stderr

The trap: a request outlives whom it was meant for. A stop names the life it ends, and an old ack
must not end a later halt.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssm_metarl.daemon.lock import BLOCK, LOCK, is_file, read_record, write_in_place

HEARTBEAT, REQUESTS, PAUSED = "heartbeat.json", "requests", "paused"
BEAT_SECONDS, POLL_SECONDS = 0.5, 0.1


def request(lineage: Path, name: str, life: str = "") -> None:
    """Ask the daemon for something, or leave word for the next one.

    Args:
        lineage: Its folder.
        name: `stop`; `pause` and `resume`, which also hold while no daemon runs; or `ack`, which
            a person gives to a lineage that was halted.
        life: The one daemon that is meant; any where empty.

    Raises:
        ValueError: Another name, or no lineage there.
    """
    if name not in ("stop", "pause", "resume", "ack"):
        raise ValueError(f"request: expected stop, pause, resume or ack, received {name!r}")
    if not lineage.is_dir():
        raise ValueError(f"lineage: expected the folder of a daemon, received {lineage}")
    if name == "resume":
        (lineage / PAUSED).unlink(missing_ok=True)
    elif name == "pause":
        (lineage / PAUSED).touch()
    else:
        path = _request_path(lineage, name, life)
        path.parent.mkdir(exist_ok=True)
        path.touch()  # empty, which takes no space on a full disk


def requested(lineage: Path, name: str, life: str = "") -> bool:
    """Whether there is such a request."""
    return os.path.exists(_request_path(lineage, name, life))


def withdraw(lineage: Path, name: str, life: str = "") -> bool:
    """Remove a request; whether it was there."""
    try:
        _request_path(lineage, name, life).unlink()
    except FileNotFoundError:
        return False
    return True


class Control:
    """How the work hears what is asked of it, and says how far it is.

    Inside ``with``, a thread beats twice a second, so that a model that takes long to save is no
    false alarm. Ages are told by the monotonic clock, which is the same in every process and stands
    still while the machine sleeps: a jump of the wall clock is no alarm either.

    Args:
        lineage: Its folder.
        lock: The locked descriptor; None outside a daemon, such as in a test of the work.
    """

    def __init__(self, lineage: Path, lock: int | None = None) -> None:
        self._lineage, self._lock = lineage, lock
        self._life = str(read_record(lineage).get("life", ""))
        self._stop = self._paused = False
        self._polled = -POLL_SECONDS
        self._status: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self._beats, self._reported = 0, time.monotonic()
        self._exit_code: int | None = None
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._file = os.open(lineage / HEARTBEAT, os.O_RDWR | os.O_CREAT, 0o644)
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> Control:
        self._beat()  # here a full disk is an error: it has no room for the file yet
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            self._beat()
        os.close(self._file)

    def stopping(self) -> bool:
        """Whether to save everything and return; asked as often as you like."""
        self._poll()
        return self._stop

    def paused(self) -> bool:
        """Whether to do nothing until it is False again."""
        self._poll()
        return self._paused

    def take_ack(self) -> bool:
        """Whether a person has given `resume --ack` since the last call, halted or not."""
        return withdraw(self._lineage, "ack")

    def report(self, **status: Any) -> None:
        """Say how far the work is, and beat.

        Args:
            status: Entries for JSON, such as generation=3; the others stay, None removes one.
        """
        with self._writing:
            said = self._status | status
            self._status = {name: value for name, value in said.items() if value is not None}
            self._shown = _fitting(self._status)
            self._reported = time.monotonic()
        with suppress(OSError):  # a status is never worth the work
            self._beat()

    def stop(self) -> None:
        """Let `stopping` be True from now on."""
        self._stop = True

    def end(self, exit_code: int) -> None:
        """Leave word of how the work ended, with the last beat."""
        self._exit_code = exit_code

    def _poll(self) -> None:
        now = time.monotonic()
        if now - self._polled >= POLL_SECONDS:
            self._polled = now
            self._paused = os.path.exists(self._lineage / PAUSED)
            if any(requested(self._lineage, "stop", life) for life in ("", self._life)):
                self._stop = True

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                self._beat()
                if self._lock is None or self._stop or is_file(self._lock, self._lineage / LOCK):
                    continue
                self._stop = True  # without its file the lock keeps nobody from starting another
                print(f"stopping: {self._lineage / LOCK} was removed", file=sys.stderr)

    def _beat(self) -> None:
        with self._writing:
            self._beats += 1
            values = {
                "beat": self._beats,
                "monotonic": time.monotonic(),
                "reported": self._reported,
                "pid": os.getpid(),
                "life": self._life,
                "stopping": self._stop,
                "exit_code": self._exit_code,
                "status": self._shown,
                "end": self._beats,
            }
            write_in_place(self._file, values)


def _request_path(lineage: Path, name: str, life: str) -> Path:
    return lineage / REQUESTS / (f"{name}.{life}" if life else name)


def _fitting(status: Mapping[str, Any]) -> dict[str, Any]:
    """The status as JSON has it, cut short where that is too long for the heartbeat's file."""
    room = BLOCK - 512  # for the entries beside it
    short = {name: repr(value)[:100] for name, value in list(status.items())[:20]}
    for shown in (status, short):
        with suppress(ValueError, TypeError, RecursionError):
            text = json.dumps(shown, default=str, allow_nan=False)
            if len(text) <= room:
                return dict(json.loads(text))
    return {}
