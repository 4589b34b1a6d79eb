"""The ledger: both or neither, nothing lost, and nothing changed without being seen."""

from __future__ import annotations

import hashlib
import shutil
from types import SimpleNamespace

import pytest

from ssm_metarl.recursive_self_improvement.ledger import (
    FILE_NAME,
    START,
    Ledger,
    LedgerDamaged,
    chained,
)

from .ledger_files import edit, rows

CORRUPTIONS, NIGHTLY_CORRUPTIONS = 300, 10_000
EDITS, NIGHTLY_EDITS = 60, 1_000
NAME, OTHER = "a" * 32, "b" * 32


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
