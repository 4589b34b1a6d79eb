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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssm_metarl.app.handlers.adapting import Adaptation
    from ssm_metarl.app.handlers.live import LiveRun
    from ssm_metarl.app.handlers.plants import Plant
    from ssm_metarl.app.jobs import Job

TOKEN_BYTES = 32
EVICT_SECONDS = 600.0
"""A visitor unseen for so long makes room for another where there is none left."""


class UnknownVisitor(ValueError):
    """The token belongs to nobody: it is wrong, or its visitor was forgotten."""


class Busy(RuntimeError):
    """There is no room now; the message says for what."""


@dataclass
class Visitor:
    """One visitor. Whoever changes it holds ``lock``."""

    token: str
    folder: Path
    """Where their runs live; made on first use, gone when they are forgotten."""
    seen: float
    """When they were last heard of, on the clock of `Visitors`."""
    model: str
    """The model in use: a shipped name, or `RUN` for their own."""
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
        count = 1
        while (path := self.folder / f"{name}-{count}").exists():
            count += 1
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
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._visitors)

    def __iter__(self) -> Iterator[Visitor]:
        with self._lock:
            return iter(list(self._visitors.values()))

    def arrive(self, token: object) -> Visitor:
        """Whoever the token belongs to, or a new visitor.

        Raises:
            Busy: There are as many as there may be.
        """
        self.sweep()
        with self._lock:
            known = self._visitors.get(token) if isinstance(token, str) else None
            if known is not None:
                known.seen = self._clock()
                return known
            leaving = self._make_room()
            new = secrets.token_urlsafe(TOKEN_BYTES)
            # The folder's name tells the token to nobody who can list folders.
            name = hashlib.sha256(new.encode()).hexdigest()[:32]
            visitor = Visitor(new, self._folder / name, self._clock(), self._model)
            self._visitors[new] = visitor
        for each in leaving:
            self._forget(each)
        return visitor

    def get(self, token: object) -> Visitor:
        """The visitor of a token that the server gave.

        Raises:
            UnknownVisitor: There is none.
        """
        with self._lock:
            visitor = self._visitors.get(token) if isinstance(token, str) else None
            if visitor is None:
                raise UnknownVisitor("This page is no longer known to the server: reload it.")
            visitor.seen = self._clock()
            return visitor

    def sweep(self) -> None:
        """Forget those who were not seen for too long."""
        with self._lock:
            oldest = self._clock() - self._seconds
            leaving = [v for v in self._visitors.values() if v.seen < oldest]
            for visitor in leaving:
                del self._visitors[visitor.token]
        for visitor in leaving:
            self._forget(visitor)

    def close(self) -> None:
        """Forget everybody."""
        with self._lock:
            leaving = list(self._visitors.values())
            self._visitors.clear()
        for visitor in leaving:
            self._forget(visitor)

    def _make_room(self) -> list[Visitor]:
        """Who must leave for one more to come; the lock is held."""
        if len(self._visitors) < self._most:
            return []
        oldest = min(self._visitors.values(), key=lambda v: v.seen)
        if self._clock() - oldest.seen < EVICT_SECONDS:
            raise Busy(
                f"The server is busy: {self._most} visitors are here. Try again in a few minutes."
            )
        del self._visitors[oldest.token]
        return [oldest]

    def _forget(self, visitor: Visitor) -> None:
        self._on_leave(visitor)
        shutil.rmtree(visitor.folder, ignore_errors=True)
