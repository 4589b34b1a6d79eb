"""Logs spoilt at random: each is read, or refused in one line; and no file is touched."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet

from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.experience import log_csv
from ssm_metarl.experience.plant_log import PlantLog, open_plant_log
from ssm_metarl.types import Rollout

ORDINARY, NIGHTLY = 300, 10_000

NAMES = ("x", "v")
HEADER = ["time", "x", "v", "action", "reward", "episode", "done", "next_x", "next_v", "note"]
ODD = [
    "", " ", "nan", "inf", "-inf", "1e39", "1e400", "-1e-400", "1_0", "0x1p3", "oops", "True",
    "false", "0,5", "1.5", "1,234.5", '"', '"a\nb"', "'", "\0", "\x1a", "#", "%", "\ufeff",
    "\u2028", "é", "\udcb0", "9" * 400, "a" * 5000, "-1", "2", "0.5", "[deg]",
    "2026-01-01T00:00:00", "0001-01-01T00:00:00+23:59",
]  # fmt: skip
TITLES = [
    "x [deg]", "X", "obs_0", "obs_1", "t", "time_ms", "is_first", "is_last", "terminated",
    "truncated", "trial", "run", "next_x", "action_0", "", "x\ty", "a.b", "action", "done",
    "episode", "x", "#",
]  # fmt: skip


def rows_of(rng: random.Random) -> list[list[str]]:
    """A valid log of a few episodes."""
    rows, x, time = [], 0.0, 0.0
    for episode in range(rng.randint(1, 3)):
        for step in range(length := rng.randint(1, 8)):
            last = step == length - 1
            cells = [f"{time:.2f}", f"{x:g}", f"{-x:g}", str(rng.randint(0, 1)), "1", str(episode)]
            x, time = round(x + rng.uniform(-1, 1), 3), time + 0.02
            rows.append([*cells, str(int(last)), f"{x:g}", f"{-x:g}", "so"])
    return rows


def spoil_cells(rng: random.Random, header: list[str], rows: list[list[str]]) -> None:
    """Columns renamed, dropped, doubled; rows dropped, doubled, shuffled; cells replaced."""
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        column, row = rng.randrange(len(header)), rng.randrange(len(rows))
        change = rng.randrange(9)
        if change == 0:
            header[column] = rng.choice(TITLES)
        elif change == 1 and len(header) > 1:
            for cells in (header, *rows):
                del cells[column : column + 1]
        elif change == 2:
            for cells in (header, *rows):
                cells.insert(column, cells[column] if column < len(cells) else "")
        elif change == 3 and len(rows) > 1:
            del rows[row]
        elif change == 4:
            rows.insert(row, list(rng.choice((rows[row], header))))
        elif change == 5:
            rows.extend([*rows] if rng.random() < 0.5 else [[*cells] for cells in reversed(rows)])
        elif change == 6:
            rng.shuffle(rows)
        else:
            for cells in rng.sample(rows, rng.choice((1, len(rows)))):
                cells[column % len(cells) :][:1] = []
                cells.insert(column, rng.choice(ODD))


def as_text(rng: random.Random, header: list[str], rows: list[list[str]]) -> bytes:
    delimiter, end = rng.choice(",,,,;\t|"), rng.choice(["\n", "\n", "\r\n", "\r"])
    quote: Callable[[str], str] = rng.choice([str, str, '"{}"'.format])
    lines = [delimiter.join(map(quote, cells)) for cells in (header, *rows)]
    for _ in range(rng.choice((0, 0, 0, 1))):
        odd = ["", "# a comment", "%", ",,,", "m,s", '"', "x" * 100_000, lines[0], "\0", " "]
        lines.insert(rng.randrange(len(lines)), rng.choice(odd))
    text = end.join(lines) + end * rng.choice((0, 1))
    if rng.random() < 0.1:
        text = text.replace(".", ",")
    encoding = rng.choice(["utf-8"] * 9 + ["utf-16", "utf-8-sig", "utf-16-le", "cp1252"])
    return text.encode(encoding, "surrogateescape" if encoding == "utf-8" else "replace")


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes replaced, cut off, doubled, compressed."""
    data = bytearray(content)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 5)) if data else 0):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.choice((0, 1, 1, 9))] = rng.randbytes(rng.choice((0, 1, 1, 9)))
    if rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]
    if rng.random() < 0.1:
        packed = bytearray(gzip.compress(bytes(data)))
        if rng.random() < 0.7:
            packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
        data = packed
    return bytes(data)


def write_table(rng: random.Random, path: Path, header: list[str], rows: list[list[str]]) -> None:
    """The same cells with the types of a Parquet file, right and wrong ones."""
    types = [
        pyarrow.float64(), pyarrow.float32(), pyarrow.float16(), pyarrow.int64(), pyarrow.uint8(),
        pyarrow.bool_(), pyarrow.string(), pyarrow.large_string(), pyarrow.binary(),
        pyarrow.timestamp("ns"), pyarrow.duration("ms"), pyarrow.date32(), pyarrow.time64("us"),
        pyarrow.decimal128(9, 3), pyarrow.list_(pyarrow.float64()), pyarrow.null(),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
        pyarrow.struct([("x", pyarrow.float64())]),
    ]  # fmt: skip
    arrays = []
    for column in range(len(header)):
        cells = [row[column] if column < len(row) else None for row in rows]
        cells = [c if c is None else c.encode("utf-8", "replace").decode() for c in cells]
        kind = rng.choice(types) if rng.random() < 0.3 else rng.choice([types[0], types[3]])
        array = pyarrow.array(cells, pyarrow.string())
        try:
            arrays.append(array.cast(kind))
        except pyarrow.ArrowException:
            nulls = rng.random() < 0.5
            arrays.append(pyarrow.nulls(len(rows), kind) if nulls else array)
    names = [name.encode("utf-8", "replace").decode() for name in header]
    parquet.write_table(pyarrow.Table.from_arrays(arrays, names), path, row_group_size=4)


def read_or_refuse(path: Path, space: ActionSpace) -> PlantLog | str:
    """What was read, or why it was refused.

    Raises:
        AssertionError: The refusal is not one line.
    """
    try:
        log = open_plant_log(path, obs_dim=2, action_space=space, obs_names=NAMES, max_rows=12)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message.isprintable() and 0 < len(message) < 2000, repr(message)
        message.encode()  # no half of a surrogate pair, which no terminal takes
        return message
    rollout = log.rollout
    assert 1 <= log.used_rows == rollout.num_steps <= 12
    assert log.used_rows <= log.num_rows and log.num_episodes == rollout.reset.sum()
    for name in ("obs", "next_obs", "action", "reward"):
        assert getattr(rollout, name).isfinite().all(), name
    assert log.period is None or log.period > 0
    for note in log.notes:
        assert note.isprintable() and note.encode(), repr(note)
    return log


def agree(one: PlantLog | str, other: PlantLog | str) -> bool:
    """Whether both are the same log, or the same refusal."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    same = (one.num_rows, one.notes, one.period) == (other.num_rows, other.notes, other.period)
    both = [(getattr(one.rollout, f.name), getattr(other.rollout, f.name)) for f in fields(Rollout)]
    return same and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in both)


@pytest.mark.parametrize(
    "count", [ORDINARY, pytest.param(NIGHTLY, marks=pytest.mark.nightly, id="nightly")]
)
def test_a_spoilt_log_is_read_or_refused_in_one_line(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    for seed in range(count):
        rng = random.Random(seed)
        header, rows = list(HEADER), rows_of(rng)
        for name in ("next_x", "next_v", "done", "note", "time")[rng.randrange(6) :]:
            place = header.index(name)
            for cells in (header, *rows):
                del cells[place]
        if rng.random() < 0.9:
            spoil_cells(rng, header, rows)
        path = tmp_path / rng.choice(("log.csv", "log.parquet", "log.gz", "log"))
        if rng.random() < 0.25:
            write_table(rng, path, header, rows)
            if rng.random() < 0.3:
                path.write_bytes(spoil_bytes(rng, path.read_bytes()))
        else:
            path.write_bytes(spoil_bytes(rng, as_text(rng, header, rows)))
        before = path.read_bytes()
        try:
            space = rng.choice((Discrete(2), Discrete(3), Continuous(1)))
            outcome = read_or_refuse(path, space)
            read += isinstance(outcome, PlantLog)
            with monkeypatch.context() as short:  # line by line, it is read alike
                short.setattr(log_csv, "BLOCK", 1)
                by_line = read_or_refuse(path, space)
            refused = isinstance(outcome, str) and isinstance(by_line, str)  # the first of several
            assert refused or agree(outcome, by_line), (outcome, by_line)
        except Exception as error:
            error.add_note(f"seed {seed}: {before[:300]!r}")
            raise
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
        path.unlink()
    assert 0.1 * count < read < 0.9 * count  # both happen, often
    print(f"{read:,} of {count:,} were read")
