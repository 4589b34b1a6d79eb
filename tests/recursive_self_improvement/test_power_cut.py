"""A power cut: of what was not synced, anything may be missing, and nothing that was promised."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME, Ledger

from .conftest import SETTINGS
from .disturbed import check_state

POWER_CUTS, NIGHTLY_POWER_CUTS = 200, 2_000


@dataclass
class Moment:
    """An instant of a run: what the disk has for sure, and what may have reached it."""

    ledger: tuple[dict[str, bytes], dict[str, bytes]]
    """Files of the ledger, last synced and as written."""
    weights: tuple[dict[str, bytes], dict[str, bytes]]
    """The folder's entries, last synced and as they are."""
    loose: set[str]
    """Entries whose content was not synced."""
    committed: int
    """Events that were promised to be there."""


@dataclass
class Recorder:
    """Writes down every moment between two syncs of a run.

    SQLite's syncs cannot be seen from here, but they are documented: with ``synchronous=FULL`` a
    commit writes the log and syncs it, then a checkpoint writes the file and syncs it.
    """

    folder: Path
    deaf: str = ""
    """What it takes no notice of, as if it were not done: sabotage."""
    moments: list[Moment] = field(default_factory=list)
    durable: dict[str, bytes] = field(default_factory=dict)
    synced: set[bytes] = field(default_factory=set)
    committed: int = 0

    def ledger(self) -> dict[str, bytes]:
        paths = [self.folder / FILE_NAME, self.folder / f"{FILE_NAME}-wal"]
        return {p.name: p.read_bytes() for p in paths if p.exists()}

    def note(self, before: dict[str, bytes] | None = None) -> None:
        ledger, folder = self.ledger(), self.folder / "weights"
        entries = {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}
        loose = {n for n, content in entries.items() if content not in self.synced}
        self.moments.append(
            Moment((before or ledger, ledger), (self.durable, entries), loose, self.committed)
        )

    def install(self, patch: pytest.MonkeyPatch) -> None:
        fsync, replace, unlink, transaction = (
            os.fsync, os.replace, Path.unlink, Ledger._transaction,
        )  # fmt: skip

        def noted_fsync(descriptor: int) -> None:
            self.note()
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path == self.folder / "weights" and self.deaf != "folder":
                self.durable = {p.name: p.read_bytes() for p in path.iterdir()}
            elif path.is_file() and self.deaf != "file":
                self.synced.add(path.read_bytes())
            self.note()

        def noted_replace(*args: Any) -> None:
            replace(*args)
            self.note()

        def noted_unlink(path: Path, missing_ok: bool = False) -> None:
            unlink(path, missing_ok=missing_ok)
            self.note()

        @contextlib.contextmanager
        def noted_transaction(ledger: Ledger) -> Iterator[None]:
            assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)
            ledger._db.execute("PRAGMA wal_autocheckpoint=0")
            before = self.ledger()
            with transaction(ledger):
                yield
            self.note(before)
            self.committed = ledger.head[0]
            before = self.ledger()
            ledger._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self.note(before)

        patch.setattr(os, "fsync", noted_fsync)
        patch.setattr(os, "replace", noted_replace)
        patch.setattr(Path, "unlink", noted_unlink)
        patch.setattr(Ledger, "_transaction", noted_transaction)


def torn(old: bytes, new: bytes, rng: np.random.Generator) -> bytes:
    """A file of which some sectors were written and others not."""
    kind = rng.integers(4)
    if kind < 2:
        return (old, new)[kind]
    if kind == 2:  # in order, and cut off
        at = int(rng.integers(len(new) + 1))
        return new[:at] + old[at:]
    size = max(len(old), len(new))
    data = bytearray(new.ljust(size, b"\0"))
    for at in range(0, size, 512):
        if rng.random() < 0.5:
            data[at : at + 512] = old.ljust(size, b"\0")[at : at + 512]
    return bytes(data)


def after_power_cut(moment: Moment, folder: Path, rng: np.random.Generator) -> None:
    """Write what a disk may hold after a power cut at a moment."""
    (folder / "weights").mkdir(parents=True)
    for name, new in moment.ledger[1].items():
        old = moment.ledger[0].get(name, b"")
        if name.endswith("-wal") and old[:32] != new[:32]:  # a new log: its head is synced first
            old = new[:32] + old[32:] if rng.random() < 0.8 else old
            new = new if old[:32] == new[:32] else old
        (folder / name).write_bytes(torn(old, new, rng))
    durable, current = moment.weights
    kind = rng.integers(3)
    for name in durable.keys() | current.keys():
        source = (durable, current)[kind if kind < 2 else rng.integers(2)]
        if name in source:
            content = source[name]
            if source is current and name in moment.loose:
                content = torn(bytes(len(content)), content, rng)
                content = content[: rng.integers(len(content) + 1)]
            (folder / "weights" / name).write_bytes(content)


def check_power_cuts(
    make_agent: Any, history: list[str], folder: Path, cuts: int, deaf: str = ""
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(folder / "recorded", deaf)
        recorder.install(patch)
        agent = make_agent(folder=recorder.folder, **SETTINGS)
        while agent.ledger.head[0] < len(history):
            agent.improve()
    rng = np.random.default_rng(22)
    begun = [m for m in recorder.moments if m.committed > 0]
    lengths = set()
    for index in range(cuts):
        moment, state = begun[rng.integers(len(begun))], folder / f"cut-{index}"
        after_power_cut(moment, state, rng)
        lengths.add(check_state(state, history, at_least=moment.committed) - moment.committed)
        shutil.rmtree(state)
    assert lengths == {0, 1}  # what was promised, or one event more


class TestPowerCut:
    def test_loses_nothing_that_was_promised(self, make_agent, undisturbed, tmp_path):
        check_power_cuts(make_agent, undisturbed, tmp_path, POWER_CUTS)

    @pytest.mark.nightly
    def test_never_loses_what_was_promised(self, make_agent, undisturbed, tmp_path):
        check_power_cuts(make_agent, undisturbed, tmp_path, NIGHTLY_POWER_CUTS)

    @pytest.mark.parametrize("deaf", ["folder", "file"])
    def test_a_store_that_does_not_sync_is_found_out(self, make_agent, undisturbed, tmp_path, deaf):
        with pytest.raises((FileNotFoundError, ValueError), match="weights"):
            check_power_cuts(make_agent, undisturbed, tmp_path, POWER_CUTS, deaf)
