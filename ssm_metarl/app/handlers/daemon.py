"""Tab 3: the daemon that improves a model for days; anyone may watch, the owner may steer.

Place in the flow: stage 10, over `rsi_daemon`. Starting, stopping and pausing need the password in
``SSM_METARL_PASSWORD``; where there is none, nobody can.
"""

from __future__ import annotations

import hmac
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssm_metarl import rsi_daemon
from ssm_metarl.app.config import PASSWORD
from ssm_metarl.app.handlers.lineages import LineageView, read_lineage
from ssm_metarl.checkpoint import shipped_models
from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME

ACTIONS = ("start", "pause", "resume", "stop")
MAX_ATTEMPTS, ATTEMPT_SECONDS = 5, 60.0
"""Wrong passwords, from anybody, after which none is looked at for a while."""


class Refused(PermissionError):
    """Steering was refused; the message says why."""


@dataclass(frozen=True)
class DaemonView:
    """How the daemon is (`rsi_daemon.status`), or why there can be none here."""

    can_steer: bool
    """Whether there is a password at all."""
    status: dict[str, Any] = field(default_factory=dict)
    lineage: LineageView | None = None
    problem: str = ""


class Daemon:
    """The one daemon of this machine's user.

    Args:
        lineage: Its folder; None for the default one.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, lineage: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._clock = lineage, clock
        self._wrong: deque[float] = deque(maxlen=MAX_ATTEMPTS)
        self._lock = threading.Lock()

    def view(self) -> DaemonView:
        """How it is; the page opens without one, too."""
        can_steer = bool(os.environ.get(PASSWORD))
        try:
            folder = self._lineage
            return DaemonView(can_steer, rsi_daemon.status(folder), read_lineage(folder))
        except PermissionError as error:
            problem = f"lineage: expected a folder that can be read, received {error.filename}"
        except ValueError as error:
            problem = str(error)
        return DaemonView(can_steer, problem=problem)

    @property
    def _lineage(self) -> Path:
        """Its folder; ValueError where there is no place for one."""
        return (self._folder or rsi_daemon.default_lineage()).resolve()

    def steer(self, action: object, password: object, model: object) -> str:
        """Start, stop, pause or resume it, if the password is right; returns what came of it.

        Args:
            action: One of `ACTIONS`.
            password: Compared with ``SSM_METARL_PASSWORD``.
            model: A shipped model to begin a new lineage with.
        """
        self._check(password)
        if action not in ACTIONS:
            raise ValueError(f"action: expected {', '.join(ACTIONS)}, received another")
        if action == "start":
            return self._start(model)
        if action == "stop":
            return "stopped" if rsi_daemon.stop(self._lineage) else "it was not running"
        if not self._lineage.is_dir():
            return "there is no lineage yet"
        rsi_daemon.request(self._lineage, str(action))
        return f"{action}d"

    def _start(self, model: object) -> str:
        arguments = []
        if not (self._lineage / FILE_NAME).is_file():
            if model not in shipped_models():
                raise ValueError(f"model: expected one of {', '.join(shipped_models())}")
            arguments = ["--model", str(model)]
        started = rsi_daemon.start(self._lineage, arguments)
        return "started" if started else "it was running already"

    def _check(self, password: object) -> None:
        expected = os.environ.get(PASSWORD)
        if not expected:
            raise Refused(f"Steering is off: the server was started without {PASSWORD}.")
        with self._lock:
            now = self._clock()
            while self._wrong and now - self._wrong[0] > ATTEMPT_SECONDS:
                self._wrong.popleft()
            if len(self._wrong) >= MAX_ATTEMPTS:
                raise Refused("Too many wrong passwords: wait a minute.")
            given = password if isinstance(password, str) else ""
            if not hmac.compare_digest(given.encode(), expected.encode()):
                self._wrong.append(now)
                raise Refused("That is not the password.")
