"""Who visits, and what belongs to them: state on the server, under a random token.

Place in the flow: stage 10, under the handlers. The browser keeps the token and nothing else, so a
reload finds everything again, and two visitors never see each other's agents. The server chooses
tokens; one that it does not know gets a new visitor, never the one that was asked for.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ssm_metarl.app.handlers.before_after import Adaptation
from ssm_metarl.app.handlers.live import LiveRun
from ssm_metarl.app.handlers.plants import Plant
from ssm_metarl.app.jobs import Busy, Job

TOKEN_BYTES = 32
EVICT_SECONDS = 600.0
"""A visitor unseen for so long makes room for another where there is none left."""


class UnknownVisitor(ValueError):
    """The token belongs to nobody: it is wrong, or its visitor was forgotten."""


@dataclass
class Visitor:
    """One visitor. Whoever changes it holds ``lock``."""

    token: str
    folder: Path
    """Where their runs live; made on first use, gone when they are forgotten."""
    seen: float
    """When they were last heard of, on the clock of `Visitors`."""
    model: str
    """The model in use: a shipped name, or `OWN_RUN` for their own."""
    seed: int = field(default_factory=lambda: secrets.randbelow(2**31))
    """Names the tasks that they draw."""
    draws: int = 0
    """Tasks that they have drawn."""
    plant: Plant | None = None
    """The plant that they last set; None for the default one."""
    adaptation: Adaptation | None = None
    live: LiveRun | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    """Their latest job of each kind."""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def new_folder(self, name: str) -> Path:
        """An empty private folder for a run."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{name}-{len(list(self.folder.iterdir())) + 1}"
        path.mkdir()
        return path


class Visitors:
    """All visitors; bounded in number and in age.

    Args:
        folder: Private folder of the server, for the visitors' runs.
        model: With which they begin.
        most: Visitors at once.
        seconds: Unseen for so long, a visitor is forgotten.
        on_leave: Called with a visitor who is being forgotten, before their folder goes.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        most: int,
        seconds: float,
        on_leave: Callable[[Visitor], None] = lambda visitor: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._model = folder, model
        self._most, self._seconds = most, seconds
        self._on_leave, self._clock = on_leave, clock
        self._visitors: dict[str, Visitor] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._visitors)

    def arrive(self, token: object) -> Visitor:
        """Whoever the token belongs to, or a new visitor."""
        with self._lock:
            self.sweep()
            with suppress(UnknownVisitor):
                return self.get(token)
            now = self._clock()
            if len(self._visitors) >= self._most:
                oldest = min(self._visitors.values(), key=lambda v: v.seen)
                if now - oldest.seen < EVICT_SECONDS:
                    raise Busy(
                        f"The server is busy: {self._most} visitors are here. "
                        f"Try again in a few minutes."
                    )
                self._forget(oldest)
            new = secrets.token_urlsafe(TOKEN_BYTES)
            # The folder's name tells the token to nobody who can list folders.
            name = hashlib.sha256(new.encode()).hexdigest()[:32]
            visitor = self._visitors[new] = Visitor(new, self._folder / name, now, self._model)
            return visitor

    def get(self, token: object) -> Visitor:
        """The visitor of a token that the server gave."""
        with self._lock:
            visitor = self._visitors.get(token) if isinstance(token, str) else None
            if visitor is None:
                raise UnknownVisitor("This page is no longer known to the server: reload it.")
            visitor.seen = self._clock()
            return visitor

    def sweep(self) -> None:
        """Forget those who were not seen for too long."""
        with self._lock:
            for visitor in list(self._visitors.values()):
                if self._clock() - visitor.seen > self._seconds:
                    self._forget(visitor)

    def close(self) -> None:
        """Forget everybody."""
        with self._lock:
            for visitor in list(self._visitors.values()):
                self._forget(visitor)

    def _forget(self, visitor: Visitor) -> None:
        del self._visitors[visitor.token]
        self._on_leave(visitor)
        shutil.rmtree(visitor.folder, ignore_errors=True)
