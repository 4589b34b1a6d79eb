"""The ledger: both or neither, nothing lost, and nothing changed without being seen."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssm_metarl.recursive_self_improvement.ledger import (
    FILE_NAME,
    START,
    Ledger,
    LedgerDamaged,
    chained,
)
from ssm_metarl.recursive_self_improvement.replay import replay

CORRUPTIONS, NIGHTLY_CORRUPTIONS = 300, 10_000
EDITS, NIGHTLY_EDITS = 60, 1_000
NAME, OTHER = "a" * 32, "b" * 32
SETTINGS = {"num_candidates": 1, "canary_pairs": 64, "attribution_pairs": 64}


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path)
    yield made
    made.close()


class TestAppend:
    def test_what_was_written_is_read(self, ledger, tmp_path):
        written = [ledger.append("a", {"x": 1, "y": [0.1, None]}, NAME)]
        written.append(ledger.append("b", {}, OTHER))
        assert ledger.events() == written
        assert [e.seq for e in written] == [1, 2]
        assert written[0].body == {"x": 1, "y": [0.1, None]}
        assert ledger.head == (2, written[1].hash)
        again = Ledger(tmp_path)
        assert (again.events(), again.champion) == (written, OTHER)
        again.close()

    def test_an_append_while_another_reads_is_no_damage(self, ledger, tmp_path):
        ledger.append("a", {}, NAME)
        reader = Ledger(tmp_path)
        database = reader._db

        class Interrupted:
            def execute(self, *arguments):
                rows = database.execute(*arguments).fetchall()
                ledger.append("b", {}, NAME)
                return SimpleNamespace(fetchall=lambda: rows, fetchone=lambda: rows[0])

        reader._db = Interrupted()
        assert [event.kind for event in reader.events()] == ["a"]
        reader._db = database
        assert [event.kind for event in reader.events()] == ["a", "b"]
        reader.close()

    def test_a_new_one_is_empty(self, ledger):
        assert (ledger.head, ledger.champion, ledger.events()) == ((0, START), None, [])

    def test_the_chain_is_a_hash_of_all_before(self, ledger):
        ledger.append("init", {"b": 1, "a": 2}, NAME)
        second = ledger.append("next", {}, NAME)
        text = START + '\ninit\n{"a": 2, "b": 1}'
        first = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        expected = hashlib.blake2b(f"{first}\nnext\n{{}}".encode(), digest_size=16).hexdigest()
        assert second.hash == expected
        assert chained(START, "init", '{"a": 2, "b": 1}') == first

    def test_time_and_process_are_not_in_the_chain(self, ledger, tmp_path, monkeypatch):
        first = ledger.append("a", {"x": 1}, NAME)
        monkeypatch.setattr("time.time", lambda: 5.0)
        monkeypatch.setattr("os.getpid", lambda: 7)
        (tmp_path / "other").mkdir()
        other = Ledger(tmp_path / "other")
        assert other.append("a", {"x": 1}, NAME) == first
        other.close()
        assert rows(tmp_path / "other", "SELECT * FROM written") == [(1, 5.0, 7)]

    def test_champion_and_event_come_together_or_not_at_all(self, ledger, tmp_path):
        ledger.append("a", {}, NAME)
        edit(
            tmp_path, "CREATE TRIGGER full BEFORE UPDATE ON head BEGIN SELECT RAISE(FAIL, 'x'); END"
        )
        with pytest.raises(LedgerDamaged):
            ledger.append("b", {}, OTHER)
        edit(tmp_path, "DROP TRIGGER full")
        assert (len(ledger.events()), ledger.champion) == (1, NAME)
        assert ledger.append("b", {}, OTHER).seq == 2

    def test_a_full_disk_is_an_os_error_and_writes_nothing(self, ledger):
        ledger.append("a", {}, NAME)
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(OSError, match="full"):
            ledger.append("b", {"x": "y" * 50_000}, OTHER)
        assert (len(ledger.events()), ledger.champion) == (1, NAME)
        ledger._db.execute("PRAGMA max_page_count=100000")
        assert ledger.append("b", {"x": "y" * 50_000}, OTHER).seq == 2

    @pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": float("inf")}])
    def test_what_json_cannot_say_is_refused(self, ledger, body):
        with pytest.raises(ValueError, match="JSON"):
            ledger.append("a", body, NAME)
        assert ledger.events() == []

    def test_commits_are_synced_and_moved_to_the_file(self, ledger, tmp_path):
        settings = ("journal_mode", "synchronous", "wal_autocheckpoint")
        assert [ledger._db.execute(f"PRAGMA {s}").fetchone()[0] for s in settings] == ["wal", 2, 1]
        ledger.append("a", {}, NAME)
        lone = tmp_path / "lone"
        lone.mkdir()
        shutil.copy(tmp_path / FILE_NAME, lone)  # without the log beside it
        copy = Ledger(lone)
        assert copy.events() == ledger.events() != []
        copy.close()


class TestOpening:
    def test_reading_needs_a_ledger_and_changes_none(self, ledger, tmp_path):
        with pytest.raises(FileNotFoundError, match="expected a lineage"):
            Ledger(tmp_path / "none", read_only=True)
        assert not (tmp_path / "none").exists()
        reader = Ledger(tmp_path, read_only=True)
        ledger.append("a", {}, NAME)
        assert (len(reader.events()), reader.champion) == (1, NAME)
        with pytest.raises(OSError, match="readonly"):
            reader.append("b", {}, NAME)
        reader.close()
        assert len(ledger.events()) == 1

    @pytest.mark.parametrize("read_only", [True, False])
    @pytest.mark.parametrize("content", [b"no ledger", b"SQLite format 3\0" + 5000 * b"x"])
    def test_a_foreign_file_is_refused_and_left(self, tmp_path, content, read_only):
        (tmp_path / FILE_NAME).write_bytes(content)
        with pytest.raises(LedgerDamaged, match="expected a ledger"):
            Ledger(tmp_path, read_only=read_only)
        assert (tmp_path / FILE_NAME).read_bytes() == content

    @pytest.mark.parametrize("read_only", [True, False])
    def test_another_format_is_refused(self, ledger, tmp_path, read_only):
        edit(tmp_path, "UPDATE head SET format = 'ssm-metarl-ledger-2'")
        with pytest.raises(LedgerDamaged, match="expected format"):
            Ledger(tmp_path, read_only=read_only)

    def test_a_database_of_something_else_is_refused(self, tmp_path):
        edit(tmp_path, "CREATE TABLE notes (x)")
        with pytest.raises(LedgerDamaged):
            Ledger(tmp_path)

    @pytest.mark.parametrize("lost", ["emptied", "deleted"])
    def test_weights_without_their_ledger_are_not_begun_anew(self, tmp_path, lost):
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "x").write_bytes(b"x")
        if lost == "emptied":
            (tmp_path / FILE_NAME).touch()
        with pytest.raises(LedgerDamaged, match="expected the ledger of"):
            Ledger(tmp_path)

    def test_a_folder_that_cannot_be_written_is_an_os_error(self, tmp_path):
        with pytest.raises(OSError, match="unable to open"):
            Ledger(tmp_path / "none")


class TestBesideTheChain:
    def test_results_stay_until_the_event(self, ledger, tmp_path):
        ledger.keep_result("0", {"weights": NAME})
        ledger.keep_result("0", {"weights": OTHER})
        ledger.keep_result("1", {"failure": "x"})
        kept = {"0": {"weights": OTHER}, "1": {"failure": "x"}}
        again = Ledger(tmp_path, read_only=True)
        assert again.results() == ledger.results() == kept
        assert again.head == (0, START)
        again.close()
        ledger.append("train", {}, NAME)
        assert ledger.results() == {}

    def test_the_last_audit_is_that_of_the_latest_state(self, ledger):
        assert ledger.last_audit() is None
        ledger.append("a", {}, NAME)
        ledger.keep_audit(NAME, {"gain": 1.0})
        ledger.append("b", {}, NAME)
        assert ledger.last_audit() == {"gain": 1.0}
        ledger.keep_audit(NAME, {"gain": 2.0})
        ledger.keep_audit(NAME, {"gain": 3.0})
        assert ledger.last_audit() == {"gain": 3.0}
        assert len(ledger.events()) == 2

    @pytest.mark.parametrize("table", ["results", "audits"])
    def test_a_changed_one_is_seen(self, ledger, tmp_path, table):
        ledger.append("a", {}, NAME)
        ledger.keep_result("0", {"env_steps": 10})
        ledger.keep_audit(NAME, {"env_steps": 10})
        edit(tmp_path, f"UPDATE {table} SET body = replace(body, '10', '11')")
        with pytest.raises(LedgerDamaged, match="was changed"):
            ledger.results() if table == "results" else ledger.last_audit()

    def test_an_audit_of_another_state_is_seen(self, ledger, tmp_path):
        ledger.append("a", {}, NAME)
        ledger.keep_audit(NAME, {"gain": 1.0})
        ledger.append("b", {}, NAME)
        edit(tmp_path, "UPDATE audits SET seq = 2")
        with pytest.raises(LedgerDamaged, match="was changed"):
            ledger.last_audit()


# Damage: flips, truncations, swaps of what is in the files.


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """The content of a file after one random mishap."""
    data = bytearray(content)
    match rng.integers(4):
        case 0:  # one bit
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        case 1:  # a byte, or a few
            at, count = rng.integers(len(data)), rng.integers(1, 9)
            data[at : at + count] = rng.bytes(len(data[at : at + count]))
        case 2:  # cut off
            del data[rng.integers(len(data)) :]
        case 3:  # two stretches change places
            size = int(rng.choice([16, 512, 4096]))
            a, b = sorted(rng.integers(max(1, len(data) // size), size=2) * size)
            one, other = data[a : a + size], data[b : b + size]
            if a != b and len(one) == len(other):
                data[a : a + size], data[b : b + size] = other, one
    return bytes(data)


def read_all(folder: Path):
    ledger = Ledger(folder)
    try:
        return ledger.events(), ledger.results(), ledger.last_audit()
    finally:
        ledger.close()


def survive(source: Path, work: Path, name: str, count: int, seed: int) -> dict[str, int]:
    """Damage one file of a ledger again and again; how often it was seen, and how often harmless.

    Seen: opening or reading it raises. Harmless: it reads exactly as before. All else is a failure.
    """
    rng = np.random.default_rng(seed)
    shutil.copytree(source, work)
    expected = read_all(work)
    files = {p.name: p.read_bytes() for p in source.iterdir() if p.is_file()}
    outcomes = {"seen": 0, "harmless": 0}
    for index in range(count):
        for path in work.glob(f"{FILE_NAME}*"):
            path.unlink()
        for other, content in files.items():
            (work / other).write_bytes(damage(content, rng) if other == name else content)
        try:
            found = read_all(work)
        except (ValueError, OSError):
            outcomes["seen"] += 1
        else:
            assert found == expected, f"mishap {index} of seed {seed} was not seen"
            outcomes["harmless"] += 1
    return outcomes


@pytest.fixture
def lineage(make_agent, tmp_path):
    """A folder with three generations, results under way and an audit, as a kill leaves it."""
    agent = make_agent(**SETTINGS)
    for _ in range(3):
        agent.improve()
    agent.ledger.keep_audit(agent.lineage.champion, {"gain": 1.5})
    agent.ledger.keep_result("0", {"weights": agent.lineage.champion, "env_steps": 5})
    folder = tmp_path / "killed"
    shutil.copytree(agent.folder, folder, ignore=shutil.ignore_patterns("*-shm"))
    assert {p.name for p in folder.iterdir()} == {FILE_NAME, f"{FILE_NAME}-wal", "weights"}
    return folder


@pytest.mark.parametrize("name", [FILE_NAME, f"{FILE_NAME}-wal"])
class TestDamage:
    def test_is_seen_or_harmless(self, lineage, tmp_path, name):
        check_damage(lineage, tmp_path / "work", name, CORRUPTIONS // 2)

    @pytest.mark.nightly
    def test_is_always_seen_or_harmless(self, lineage, tmp_path, name):
        check_damage(lineage, tmp_path / "work", name, NIGHTLY_CORRUPTIONS // 2)


def check_damage(folder: Path, work: Path, name: str, count: int) -> None:
    outcomes = survive(folder, work, name, count, seed=11)
    assert sum(outcomes.values()) == count
    if name == FILE_NAME:
        assert outcomes["seen"] > count / 2
    else:  # all of it is in the file already
        assert outcomes["harmless"] > count / 2


# Edits by SQL.


def edit(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / FILE_NAME) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def rows(folder: Path, query: str) -> list[tuple]:
    db = sqlite3.connect(folder / FILE_NAME)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def change_digit(text: str, rng: np.random.Generator) -> str:
    """A JSON text with another digit somewhere, or another letter where it has none."""
    places = [i for i, c in enumerate(text) if c.isdigit()] or [i for i, c in enumerate(text)]
    at = int(rng.choice(places))
    return text[:at] + ("7" if text[at] != "7" else "3") + text[at + 1 :]


def random_edit(folder: Path, rng: np.random.Generator) -> str:
    """Edit a ledger as somebody would who wants another history; returns what was done."""
    (count,) = rows(folder, "SELECT count(*) FROM events")[0]
    seq, other = (int(i) for i in rng.choice(np.arange(1, count + 1), size=2, replace=False))
    kind, body = rows(folder, f"SELECT kind, body FROM events WHERE seq = {seq}")[0]
    what = str(rng.choice([
        "body", "bytes", "kind", "hash", "delete", "last", "insert", "more", "swap", "renumber",
        "head", "head hash", "champion", "no champion", "result", "audit", "format",
    ]))  # fmt: skip
    at = f"WHERE seq = {seq}"
    statements = {
        "body": [f"UPDATE events SET body = '{change_digit(body, rng)}' {at}"],
        "bytes": [f"UPDATE events SET body = CAST(body AS BLOB) {at}"],
        "kind": [f"UPDATE events SET kind = '{'canary' if kind != 'canary' else 'confirm'}' {at}"],
        "hash": [f"UPDATE events SET hash = '{rng.bytes(16).hex()}' {at}"],
        "delete": [f"DELETE FROM events {at}"],
        "last": ["DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)"],
        "insert": [f"INSERT INTO events SELECT {-seq}, kind, body, hash FROM events {at}"],
        "more": [f"INSERT INTO events SELECT {count + 1}, kind, body, hash FROM events {at}",
                 f"UPDATE head SET seq = {count + 1}"],
        "swap": [f"UPDATE events SET seq = -1 {at}",
                 f"UPDATE events SET seq = {seq} WHERE seq = {other}",
                 f"UPDATE events SET seq = {other} WHERE seq = -1"],
        "renumber": [f"UPDATE events SET seq = {count + seq} {at}"],
        "head": [f"UPDATE head SET seq = {seq if seq != count else 1}"],
        "head hash": [f"UPDATE head SET hash = '{rng.bytes(16).hex()}'"],
        "champion": [f"UPDATE head SET champion = '{rng.bytes(16).hex()}'"],
        "no champion": ["UPDATE head SET champion = NULL"],
        "result": ["UPDATE results SET body = replace(body, '5', '6')"],
        "audit": ["UPDATE audits SET body = replace(body, '1.5', '9.5')"],
        "format": ["UPDATE head SET format = 'x'"],
    }  # fmt: skip
    edit(folder, *statements[what])
    return f"{what} of event {seq}"


def check_edits(folder: Path, work: Path, count: int) -> None:
    shutil.copytree(folder, work)
    Ledger(work).close()
    original = (work / FILE_NAME).read_bytes()
    assert replay(work)["champion"]
    rng = np.random.default_rng(12)
    for index in range(count):
        what = random_edit(work, rng)
        try:
            replay(work)
        except ValueError:
            pass
        else:
            pytest.fail(f"edit {index}, {what}, was not seen")
        for path in work.glob(f"{FILE_NAME}*"):
            path.unlink()
        (work / FILE_NAME).write_bytes(original)
    assert replay(work)["champion"]


class TestEdits:
    def test_are_seen(self, lineage, tmp_path):
        check_edits(lineage, tmp_path / "work", EDITS)

    @pytest.mark.nightly
    def test_are_always_seen(self, lineage, tmp_path):
        check_edits(lineage, tmp_path / "work", NIGHTLY_EDITS)

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            ("commit", lambda body, first: body | {"champion": first}),
            ("commit", lambda body, first: body | {"label": "change"}),
            ("generation", lambda body, first: body | {"outcome": "rejected"}),
            ("confirm", lambda body, first: body | {"start": body["start"] + 1}),
            ("confirm", lambda body, first: body | {"new": body["old"]}),
            ("propose", lambda body, first: body | {"generation": 9}),
        ],
    )
    def test_a_decision_is_seen_even_with_all_hashes_made_anew(
        self, lineage, kind: str, change: Callable[[dict, str], dict]
    ):
        events = rows(lineage, "SELECT seq, kind, body FROM events ORDER BY seq")
        first = json.loads(events[0][2])["champion"]
        previous, done, statements = START, False, ["DELETE FROM events", "DELETE FROM audits"]
        for seq, name, body in events:
            if name == kind and not done:
                changed = json.dumps(change(json.loads(body), first), sort_keys=True)
                done, body = changed != body, changed
            previous = chained(previous, name, body)
            statements.append(
                f"INSERT INTO events VALUES ({seq}, '{name}', '{body}', '{previous}')"
            )
        assert done
        edit(lineage, *statements, f"UPDATE head SET hash = '{previous}'")
        ledger = Ledger(lineage, read_only=True)
        assert len(ledger.events()) == len(events)  # the chain holds
        ledger.close()
        with pytest.raises(ValueError, match="expected"):
            replay(lineage)

    def test_weights_that_were_changed_are_seen(self, lineage):
        champion = replay(lineage)["champion"]
        path = lineage / "weights" / f"{champion}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(ValueError, match="expected weights with the hash"):
            replay(lineage)
        path.unlink()
        with pytest.raises(FileNotFoundError):
            replay(lineage)
