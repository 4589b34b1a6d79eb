"""A full disk, at any write: the champion stays, and the lineage goes on when there is room."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.recursive_self_improvement import agent as agent_module
from ssm_metarl.recursive_self_improvement import service
from ssm_metarl.recursive_self_improvement import store as store_module
from ssm_metarl.recursive_self_improvement.ledger import Ledger
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.safety import is_disk_trouble

from .disturbed import check_state

FAILED_WRITES_STRIDE = 9  # the nightly run fails every single one
ROOMS, NIGHTLY_ROOMS = (0, 1, 6, 30), tuple(range(64))  # blocks left on a disk of 4 KB blocks


class FullDisk:
    """Lets so many writes through, of weights and of the ledger; the others fail, until `room`."""

    def __init__(self, patch: pytest.MonkeyPatch, ledger: Ledger, writes: int) -> None:
        self.left = writes
        self.failed = 0
        for name in ("fsync", "replace"):
            patch.setattr(os, name, self._checked(getattr(os, name)))
        patch.setattr(store_module, "open", self._open, raising=False)
        self._db, ledger._db = ledger._db, self  # type: ignore[assignment]

    def room(self) -> None:
        self.left = 10**9

    def _tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    def _checked(self, real: Any) -> Any:
        def call(*args: Any) -> Any:
            self._tick()
            return real(*args)

        return call

    @contextlib.contextmanager
    def _open(self, path: Path, mode: str) -> Iterator[Any]:
        self._tick()
        with open(path, mode) as file:
            yield _HalfWriter(file, self._tick)

    def execute(self, statement: str, *args: Any) -> Any:
        if statement.split()[0] in ("INSERT", "UPDATE", "DELETE", "COMMIT"):
            try:
                self._tick()
            except OSError:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error from None
        return self._db.execute(statement, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


@dataclass
class _HalfWriter:
    """A file whose failing write leaves half of the content."""

    file: Any
    tick: Any

    def write(self, content: bytes) -> None:
        half = len(content) // 2
        self.file.write(content[:half])
        self.tick()
        self.file.write(content[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def check_full_disk(make_agent: Any, begun: Path, history: list[str], stride: int) -> None:
    """The disk is full from the n-th write of a generation on, for n up to the last."""
    fails, n = 0, 0
    while True:
        folder = begun.with_name(f"full-{n}")
        shutil.copytree(begun, folder)
        agent = make_agent(folder=folder)
        before = len(agent.ledger.events())
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, agent.ledger, n)
            try:
                agent.improve()
            except OSError as error:
                assert is_disk_trouble(error)
            if disk.failed == 0:
                break
            fails += 1
            assert len(agent.ledger.events()) >= before
            assert agent.current_model is not None
            disk.left = 0
            with pytest.raises(OSError, match=r"No space|full") as again:  # still full
                agent.improve()
            assert is_disk_trouble(again.value)
            assert [e.hash for e in agent.ledger.events()] == history[: agent.ledger.head[0]]
            disk.room()
            agent.improve()
        assert agent.ledger.head[1] == history[agent.ledger.head[0] - 1]
        agent.close()
        assert check_state(folder, history) == history_end(agent.lineage)
        shutil.rmtree(folder)
        n += stride
    assert n > 50 and fails == n // stride


def history_end(lineage: Lineage) -> int:
    """Events after a lineage's generations: init and baseline, then 11 each in this simulation."""
    assert len(lineage.records) == 2
    return 2 + 11 * len(lineage.records)


class Person:
    """A `Control` that looks on, makes room on the third look at a pause, and never stops."""

    def __init__(self, make_room: Any) -> None:
        self.make_room = make_room
        self.reports: list[dict[str, Any]] = []

    def stopping(self) -> bool:
        return False

    def paused(self) -> bool:
        return False

    def take_ack(self) -> bool:
        return False

    def report(self, **status: Any) -> None:
        self.reports.append(status)
        if len(self.pauses) == 3:
            self.make_room()

    @property
    def pauses(self) -> list[str]:
        return [r["reason"] for r in self.reports if r["state"] == "PAUSED"]


class TestFullDisk:
    def test_some_writes_of_a_generation(self, make_agent, begun, undisturbed):
        check_full_disk(make_agent, begun, undisturbed, FAILED_WRITES_STRIDE)

    @pytest.mark.nightly
    def test_every_write_of_a_generation(self, make_agent, begun, undisturbed):
        check_full_disk(make_agent, begun, undisturbed, 1)

    @pytest.mark.parametrize("writes", [0, 5, 17, 40])
    def test_the_service_pauses_and_goes_on(
        self, make_agent, begun, undisturbed, monkeypatch, writes
    ):
        monkeypatch.setattr(service, "DISK_POLL_SECONDS", 0.01)
        agent = make_agent(folder=begun)
        disk = FullDisk(monkeypatch, agent.ledger, writes)
        person = Person(disk.room)
        ended = service.supervise(agent, person, cycles=1, wait_when_halted=True)
        assert ended == service.DONE
        assert len(person.pauses) == 3
        assert all("No space" in reason or "full" in reason for reason in person.pauses)
        assert person.reports[-1]["state"] == "DONE"
        assert [e.hash for e in agent.ledger.events()] == undisturbed[: history_end(agent.lineage)]

    def test_the_service_pauses_before_the_disk_is_full(
        self, make_agent, begun, undisturbed, monkeypatch
    ):
        monkeypatch.setattr(service, "DISK_POLL_SECONDS", 0.01)
        room = []

        def require_room(folder: Path, megabytes: float) -> None:
            if not room:
                raise OSError(errno.ENOSPC, "expected 32 MB of free disk, received 1.0 MB")

        monkeypatch.setattr(agent_module, "require_room", require_room)
        agent = make_agent(folder=begun)
        person = Person(lambda: room.append(True))
        ended = service.supervise(agent, person, cycles=1, wait_when_halted=True)
        assert ended == service.DONE
        assert len(person.pauses) == 3
        assert "expected 32 MB of free disk" in person.pauses[0]
        assert agent.ledger.head[1] == undisturbed[history_end(agent.lineage) - 1]

    def test_another_error_is_not_taken_for_a_full_disk(self, make_agent, begun, monkeypatch):
        def forbid(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(agent_module, "require_room", forbid)
        with pytest.raises(PermissionError):
            service.supervise(
                make_agent(folder=begun), Person(None), cycles=1, wait_when_halted=True
            )


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A real file system of 4 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def check_small_disk(
    make_agent: Any, begun: Path, history: list[str], disk: Path, rooms: tuple[int, ...]
) -> None:
    fails = 0
    for blocks in rooms:
        folder, ballast = disk / f"{blocks}", disk / "ballast"
        shutil.copytree(begun, folder)
        agent = make_agent(folder=folder)
        free = shutil.disk_usage(disk).free
        ballast.write_bytes(bytes(free - 4096 * blocks))
        try:
            agent.improve()
        except OSError as error:
            fails += 1
            assert is_disk_trouble(error)
        assert agent.current_model is not None
        agent.close()
        with contextlib.suppress(OSError):  # a start, still without room: refused, or it works
            Ledger(folder).close()
        ballast.unlink()
        found = check_state(folder, history)
        again = make_agent(folder=folder)
        while len(again.lineage.records) < 2:
            again.improve()
        assert again.ledger.head == (history_end(again.lineage), history[again.ledger.head[0] - 1])
        assert found <= again.ledger.head[0]
        again.close()
        shutil.rmtree(folder)
    assert fails >= 3


class TestSmallDisk:
    def test_a_real_one(self, make_agent, begun, undisturbed, small_disk):
        check_small_disk(make_agent, begun, undisturbed, small_disk, ROOMS)

    @pytest.mark.nightly
    def test_with_any_room_left(self, make_agent, begun, undisturbed, small_disk):
        check_small_disk(make_agent, begun, undisturbed, small_disk, NIGHTLY_ROOMS)
