"""The ledger: every event of a lineage in SQLite, chained by hashes.

Place in the flow: stage 8. `agent` appends an event for each thing done; `lineage` folds them into
the state, so reading the ledger *is* resuming. Event n holds its kind, its body as JSON, and
hash_n = BLAKE2b(hash_{n-1}, kind, body). Bodies have deterministic fields only: when and by which
process an event was written stands beside the chain.

One transaction writes the event, the head of the chain and the champion's row, under WAL and
``synchronous=FULL``: a commit that returned is on the disk, one that did not never was. SQLite
checks its log but not its file, and takes a log that does not fit for one that ends earlier, which
would be an old state of the lineage, silently. So every commit is moved to the file at once, and
the hashes are what checks the file.

Results of finished trainings are kept until the event that sums them up, so that a kill does not
lose them. Neither they nor the audits are part of the chain; each has a hash of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

FORMAT = "ssm-metarl-ledger-1"
FILE_NAME = "ledger.sqlite"
DISK_ERRORS = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)  # fmt: skip
START = "0" * 32  # the hash before the first event
SCHEMA = """
CREATE TABLE head (only INTEGER PRIMARY KEY CHECK (only = 0),
                   format TEXT NOT NULL, seq INTEGER NOT NULL, hash TEXT NOT NULL,
                   champion TEXT);
CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL,
                     hash TEXT NOT NULL);
CREATE TABLE written (seq INTEGER PRIMARY KEY REFERENCES events, unix_time REAL NOT NULL,
                      pid INTEGER NOT NULL);
CREATE TABLE results (key TEXT PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE audits (champion TEXT NOT NULL, seq INTEGER NOT NULL, body TEXT NOT NULL,
                     hash TEXT NOT NULL, PRIMARY KEY (champion, seq));
"""


@dataclass(frozen=True)
class Event:
    """One event of the chain."""

    seq: int
    """From 1."""
    kind: str
    body: dict[str, Any]
    hash: str


class LedgerDamaged(ValueError):
    """The chain does not hold: somebody or something has changed the ledger."""


class Ledger:
    """A lineage's ledger; one process writes, any number may read.

    Args:
        folder: Of the lineage. A new ledger is made where there is none.
        read_only: Open an existing one for reading.

    Raises:
        FileNotFoundError: There is none to read.
        LedgerDamaged: It cannot be read.
        OSError: The disk is full, or broken; so says every method that writes.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.path = folder / FILE_NAME
        if read_only and not self.path.is_file():
            raise FileNotFoundError(f"{folder}: expected a lineage, found none")
        mode = "ro" if read_only else "rwc"
        with _errors(self.path):
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None
            )
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA wal_autocheckpoint=1")
                if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                    self._create()
            (found,) = self._db.execute("SELECT format FROM head").fetchone() or (None,)
        if found != FORMAT:
            raise LedgerDamaged(f"{self.path}: expected format {FORMAT!r}, received {found!r}")

    def _create(self) -> None:
        weights = self.path.parent / "weights"
        if weights.is_dir() and any(weights.iterdir()):  # they are made after it, never before
            raise LedgerDamaged(f"{self.path}: expected the ledger of {weights}, received none")
        with self._transaction():
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO head VALUES (0, ?, 0, ?, NULL)", (FORMAT, START))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has rolled it back already
                self._db.execute("ROLLBACK")
            raise

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last event."""
        with _errors(self.path):
            seq, digest = self._db.execute("SELECT seq, hash FROM head").fetchone()
        return seq, digest

    @property
    def champion(self) -> str | None:
        """Name of the champion's weights: one row, replaced in the transaction of its event."""
        with _errors(self.path):
            champion: str | None = self._db.execute("SELECT champion FROM head").fetchone()[0]
        return champion

    def events(self) -> list[Event]:
        """All events, the chain checked from the first to the head.

        Raises:
            LedgerDamaged: A hash, a number or the head does not fit.
        """
        with _errors(self.path):
            # Events and head in one statement: another process may append between two.
            rows = self._db.execute(
                "SELECT events.seq, kind, body, events.hash, head.seq, head.hash "
                "FROM head LEFT JOIN events ORDER BY events.seq"
            ).fetchall()
            head = rows[0][4:] if rows else None
        previous, events = START, []
        for expected, (seq, kind, body, digest, *_) in enumerate(rows, start=1):
            if seq is None:
                break  # a head and no event
            with _errors(self.path):  # a text may have become bytes
                fits = seq == expected and digest == chained(previous, kind, body)
            if not fits:
                raise LedgerDamaged(
                    f"{self.path}: event {expected} does not fit the chain: it was changed, or one "
                    f"is missing"
                )
            events.append(Event(seq, kind, json.loads(body), digest))
            previous = digest
        if head != (len(events), previous):
            raise LedgerDamaged(f"{self.path}: the last events are missing")
        return events

    def append(self, kind: str, body: dict[str, Any], champion: str) -> Event:
        """Write one event and the champion's row, both or neither.

        Args:
            kind: What happened.
            body: Deterministic and JSON-ready.
            champion: Name of the champion's weights after it.
        """
        text = json.dumps(body, sort_keys=True, allow_nan=False)
        seq, previous = self.head
        digest = chained(previous, kind, text)
        number, run = seq + 1, self._db.execute
        with _errors(self.path), self._transaction():
            run("INSERT INTO events VALUES (?, ?, ?, ?)", (number, kind, text, digest))
            run("INSERT INTO written VALUES (?, ?, ?)", (number, time.time(), os.getpid()))
            run("UPDATE head SET seq = ?, hash = ?, champion = ?", (number, digest, champion))
            run("DELETE FROM results")
        return Event(number, kind, json.loads(text), digest)

    def keep_result(self, key: str, body: dict[str, Any]) -> None:
        """Keep what one job of the running stage gave, until the stage's event."""
        text = json.dumps(body)
        with _errors(self.path), self._transaction():
            row = (key, text, chained(START, key, text))
            self._db.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", row)

    def results(self) -> dict[str, dict[str, Any]]:
        """What the running stage's finished jobs gave, by key; LedgerDamaged for a changed one."""
        with _errors(self.path):
            rows = self._db.execute("SELECT key, body, hash FROM results").fetchall()
            return {key: self._checked(START, key, body, digest) for key, body, digest in rows}

    def keep_audit(self, champion: str, body: dict[str, Any]) -> None:
        """Keep an audit of a champion, after the events so far."""
        seq, head = self.head
        text = json.dumps(body)
        with _errors(self.path), self._transaction():
            row = (champion, seq, text, chained(head, champion, text))
            self._db.execute("INSERT OR REPLACE INTO audits VALUES (?, ?, ?, ?)", row)

    def last_audit(self) -> dict[str, Any] | None:
        """The latest audit, if any; LedgerDamaged if it was changed or is another lineage's."""
        with _errors(self.path):
            row = self._db.execute(
                "SELECT events.hash, champion, audits.body, audits.hash "
                "FROM audits LEFT JOIN events USING (seq) ORDER BY seq DESC LIMIT 1"
            ).fetchone()
            return None if row is None else self._checked(*row)

    def _checked(self, previous: str, name: str, body: str, digest: str) -> dict[str, Any]:
        """A body that stands beside the chain, its hash checked."""
        if digest != chained(previous, name, body):
            raise LedgerDamaged(f"{self.path}: a result or an audit of {name} was changed")
        return dict(json.loads(body))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def chained(previous: str, kind: str, body: str) -> str:
    """The hash of an event after ``previous``."""
    text = "\n".join((previous, kind, body))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Tell a disk that is full or broken, an OSError, from a file that is no ledger."""
    try:
        yield
    except (sqlite3.DatabaseError, TypeError, UnicodeError) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in DISK_ERRORS:
            raise OSError(None, str(error), str(path)) from None
        raise LedgerDamaged(
            f"{path}: expected a ledger, received a damaged one ({error})"
        ) from None
