"""Kills, full disks, power cuts and malicious files: the champion stays, and the lineage goes on.

The measure is always the same: a lineage that was interrupted reaches, event for event, the hashes
of one that was not, and every checkpoint that its ledger names is there and whole at every moment.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssm_metarl.checkpoint import unpack
from ssm_metarl.recursive_self_improvement import agent as agent_module
from ssm_metarl.recursive_self_improvement import service
from ssm_metarl.recursive_self_improvement import store as store_module
from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME, Ledger, LedgerDamaged
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.replay import replay
from ssm_metarl.recursive_self_improvement.safety import is_disk_trouble
from ssm_metarl.recursive_self_improvement.store import WeightStore

KILLS, NIGHTLY_KILLS = 6, 200
FAILED_WRITES_STRIDE = 9  # the nightly run fails every single one
ROOMS, NIGHTLY_ROOMS = (0, 1, 6, 30), tuple(range(64))  # blocks left on a disk of 4 KB blocks
POWER_CUTS, NIGHTLY_POWER_CUTS = 200, 2_000
MALICIOUS, NIGHTLY_MALICIOUS = 20, 200
GENERATIONS = 4
SETTINGS = {"num_candidates": 1, "canary_pairs": 64, "attribution_pairs": 64, "min_free_mb": 0.0}


def check_state(folder: Path, history: list[str], at_least: int = 0) -> int:
    """What a process that starts now would find: a part of the history, all its weights whole.

    Args:
        folder: Of the lineage.
        history: Hashes of an undisturbed lineage.
        at_least: Events that were written before, and must be there.

    Returns:
        How many events there are.
    """
    ledger = Ledger(folder)
    try:
        events, results = ledger.events(), ledger.results()
        lineage = Lineage(events)
        assert ledger.champion == (lineage.champion or None)
    finally:
        ledger.close()
    assert [e.hash for e in events] == history[: len(events)]
    assert len(events) >= at_least
    store = WeightStore(folder / "weights")
    named = lineage.kept_weights | {r["weights"] for r in results.values()}
    for name in named - {""}:
        assert unpack(store.get(name), name).tensors
    return len(events)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Where what several tests begin with is made once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def undisturbed(make_agent, kept) -> list[str]:
    """Hashes of a lineage that nothing happens to."""
    agent = make_agent(folder=kept / "undisturbed", **SETTINGS)
    while len(agent.lineage.records) < GENERATIONS:
        agent.improve()
    assert len(set(agent.lineage.champions)) > 1
    return [e.hash for e in agent.ledger.events()]


# A kill. The process that is killed is a fork of one that has imported everything.

RUN_AND_KILL = """
import importlib.util, os, signal, sys, time, traceback
conftest, model, generations, settings = *sys.argv[1:4], eval(sys.argv[4])
spec = importlib.util.spec_from_file_location("simulated", conftest)
simulated = sys.modules["simulated"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulated)
from pathlib import Path
def begin(folder):
    return simulated.RecursiveSelfImprovementAgent(
        initial_model=model, config=simulated.RSIConfig(**settings), folder=folder,
        executor=simulated.SimulatedExecutor())
with begin(None) as agent:
    agent.improve()  # everything is imported once
print("ready", flush=True)
for line in sys.stdin:
    folder, delay = line.rstrip("\\n").split("\\t")
    if (pid := os.fork()) == 0:
        code = 1
        try:
            agent = begin(Path(folder))
            while len(agent.lineage.records) < int(generations):
                agent.improve()
            agent.close()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    time.sleep(float(delay))
    os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def check_kills(history: list[str], model: Path, folder: Path, kills: int) -> None:
    """Kill lineages at random instants until there were so many kills; finish each of them."""
    conftest = Path(__file__).with_name("conftest.py")
    arguments = [conftest, model, GENERATIONS, repr(SETTINGS)]
    rng = np.random.default_rng(21)
    seen, lineages = set(), 0
    with subprocess.Popen(
        [sys.executable, "-c", RUN_AND_KILL, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while kills > 0:
            lineage = folder / f"killed-{lineages}"
            lineage.mkdir(parents=True)
            lineages, found, code = lineages + 1, 0, -9
            while code != 0:
                process.stdin.write(f"{lineage}\t{rng.uniform(0, 0.6)}\n")
                process.stdin.flush()
                code = int(process.stdout.readline())
                assert code in (0, -9)
                kills -= code == -9
                found = check_state(lineage, history, at_least=found)
                seen.add(found)
            assert found == len(history)
            assert replay(lineage)["hash"] == history[-1]
        process.stdin.close()
    assert len(seen) > 2  # kills hit different places


class TestKill:
    def test_loses_nothing(self, undisturbed, generation_zero, tmp_path):
        check_kills(undisturbed, generation_zero, tmp_path, KILLS)

    @pytest.mark.nightly
    def test_never_loses_anything(self, undisturbed, generation_zero, tmp_path):
        check_kills(undisturbed, generation_zero, tmp_path, NIGHTLY_KILLS)


# A full disk.


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


@pytest.fixture
def begun(make_agent, kept, tmp_path) -> Path:
    """A lineage with its first generation behind it."""
    agent = make_agent(folder=kept / "begun", **SETTINGS)
    while not agent.lineage.records:
        agent.improve()
    agent.close()
    return Path(shutil.copytree(agent.folder, tmp_path / "begun"))


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


# A power cut: of what was not synced, anything may be missing.


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


# Malicious files.


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def malicious(marker: Path, rng: np.random.Generator) -> bytes:
    """A file that makes a marker where reading it runs code."""
    code = f"open({str(marker)!r}, 'w')"
    bomb: Any = [
        Bomb(os.system, f"touch {marker}"),
        Bomb(exec, code),
        Bomb(eval, code),
        Bomb(subprocess.call, ["touch", str(marker)]),
        Bomb(Path.touch, marker),
        Bomb(open, str(marker), "w"),
    ][rng.integers(6)]
    if rng.random() < 0.5:
        bomb = {"state_dict": {"A": bomb}, "config": {"state_dim": 1, "input_dim": bomb}}
    plain = pickle.dumps(bomb, protocol=int(rng.integers(6)))
    file = io.BytesIO()
    match rng.integers(5):
        case 0:
            return plain
        case 1:
            torch.save(bomb, file)
        case 2:
            torch.save(bomb, file, _use_new_zipfile_serialization=False)
        case 3:
            np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
        case 4:  # behind a safetensors header
            header = b'{"__metadata__":{"format":"ssm-metarl-checkpoint-1"}}'
            file.write(len(header).to_bytes(8, "little") + header + plain)
    return file.getvalue()


def check_malicious(begun: Path, make_agent: Any, folder: Path, count: int) -> None:
    marker, rng = folder / "marker", np.random.default_rng(23)
    folder.mkdir(exist_ok=True)
    agent = make_agent(folder=begun)
    champion = agent.lineage.champion
    for index in range(count):
        content = malicious(marker, rng)
        path = folder / f"{index}{('.pth', '.safetensors', '.pt', '')[index % 4]}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected"):
            make_lineage(path, folder / f"lineage-{index}")
        with pytest.raises(ValueError, match="expected"):
            unpack(agent.store.get(agent.store.put(content)), "weights")
        agent.store.path(champion).write_bytes(content)
        with pytest.raises(ValueError, match="expected weights with the hash"):
            _ = agent.current_model
        (folder / f"ledger-{index}").mkdir()
        (folder / f"ledger-{index}" / FILE_NAME).write_bytes(content)
        with pytest.raises(LedgerDamaged):
            Ledger(folder / f"ledger-{index}")
        assert not marker.exists()


def make_lineage(model: Path, folder: Path) -> None:
    agent_module.RecursiveSelfImprovementAgent(initial_model=model, folder=folder)


class TestMaliciousFiles:
    def test_run_nothing(self, begun, make_agent, tmp_path):
        check_malicious(begun, make_agent, tmp_path / "files", MALICIOUS)

    @pytest.mark.nightly
    def test_never_run_anything(self, begun, make_agent, tmp_path):
        check_malicious(begun, make_agent, tmp_path / "files", NIGHTLY_MALICIOUS)

    def test_would_run_if_they_were_unpickled(self, tmp_path):
        marker, rng = tmp_path / "marker", np.random.default_rng(23)
        for _ in range(MALICIOUS):
            with contextlib.suppress(Exception):
                pickle.loads(malicious(marker, rng))
        assert marker.exists()
