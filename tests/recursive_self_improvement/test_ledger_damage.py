"""A ledger that was damaged or edited is found out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssm_metarl.recursive_self_improvement.ledger import (
    FILE_NAME,
    START,
    Ledger,
    chained,
)
from ssm_metarl.recursive_self_improvement.replay import replay

from .ledger_files import edit, rows

CORRUPTIONS, NIGHTLY_CORRUPTIONS = 300, 10_000
EDITS, NIGHTLY_EDITS = 60, 1_000
NAME, OTHER = "a" * 32, "b" * 32

SETTINGS = {"num_candidates": 1, "canary_pairs": 64, "attribution_pairs": 64}


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
