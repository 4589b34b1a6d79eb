"""Tab 4: whatever benchmark results come with the package, and what makes each again.

Place in the flow: stage 10, over ``ssm_metarl/app/results``. Nothing here knows a benchmark
by name: a file says in ``command`` what regenerates it, and its ``rows`` hold ``measurements``;
every other list of records is shown as a table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results"
"""The figures that come with the package. The benchmarks beside it write them, whole runs only."""
MAX_ROWS = 200
HIDDEN = ("name", "plotted")
"""Columns that speak to programs, where a record has others that speak to people."""


@dataclass(frozen=True)
class Table:
    """One table of a result."""

    title: str
    note: str
    rows: list[Row]
    """All with the same columns, in order."""


@dataclass(frozen=True)
class Result:
    """One committed result."""

    command: str
    """What makes it again; empty where the file does not say."""
    about: dict[str, str]
    """Machine and versions."""
    definitions: dict[str, str]
    """What its words mean, as the file says."""
    tables: list[Table]


def names(folder: Path = RESULTS) -> list[str]:
    """The results that there are."""
    return sorted(path.stem for path in folder.glob("*.json"))


def read(name: object, folder: Path = RESULTS) -> Result:
    """One result."""
    if name not in names(folder):
        raise ValueError("result: expected one from the list, received another")
    content = json.loads((folder / f"{name}.json").read_text())
    about = {"version": str(content.get("version", ""))}
    about |= {k: str(v) for k, v in content.get("machine", {}).items() if not isinstance(v, dict)}
    return Result(
        command=str(content.get("command", "")),
        about=about,
        definitions={k: str(v) for k, v in content.get("definitions", {}).items()},
        tables=list(_tables(content)),
    )


def _tables(content: dict[str, Any]) -> list[Table]:
    tables = []
    for key, value in content.items():
        if not _records(value):
            continue
        if not all(_records(row.get("measurements")) for row in value):
            value = [{"name": key, "measurements": value}]
        tables += [
            Table(row["name"], row.get("what", ""), _same_columns(row["measurements"]))
            for row in value
        ]
    return tables


def _records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _same_columns(records: list[Row]) -> list[Row]:
    """Records flattened by one level (``ratio.median``), each with every column that any has."""
    flat: list[Row] = []
    for record in records[:MAX_ROWS]:
        row: Row = {}
        for key, value in record.items():
            inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else None
            flattened = {key: value} if inner is None else inner
            row |= {k: v for k, v in flattened.items() if not isinstance(v, (dict, list))}
        if row:
            flat.append(row)
    columns = dict.fromkeys(key for row in flat for key in row)
    used = [c for c in columns if any(row.get(c) not in (None, "", False) for row in flat)]
    if "case" in used:
        used = [c for c in used if c not in HIDDEN]
    return [{c: row.get(c) for c in used} for row in flat]


class Interval(NamedTuple):
    """A ratio with its spread, or a difference with its 95 % interval."""

    label: str
    kind: str
    """Such as ``speedup`` or ``hybrid - standard``; empty where the file does not say."""
    middle: float
    low: float
    high: float


def intervals(table: Table) -> list[Interval]:
    """The rows that have a ratio with its spread."""
    return [
        Interval(
            " vs ".join(str(row[k]) for k in ("case", "peer") if row.get(k)) or str(row["name"]),
            str(row.get("kind") or ""),
            row["ratio.median"],
            row["ratio.low"],
            row["ratio.high"],
        )
        for row in table.rows
        if row.get("ratio.median") is not None and row["ratio.low"] > 0
    ]


LOW = ".ci95_low"


def differences(table: Table) -> list[Interval]:
    """Every difference that has a 95 % interval, named by its row's words and whole numbers."""
    found = []
    for kind in [column.removesuffix(LOW) for column in table.rows[0] if column.endswith(LOW)]:
        for row in table.rows:
            words = [str(v) for v in row.values() if isinstance(v, (str, int))]
            ends = (row[f"{kind}{end}"] for end in (".mean", LOW, ".ci95_high"))
            found.append(Interval(", ".join(words), kind, *ends))
    return found
