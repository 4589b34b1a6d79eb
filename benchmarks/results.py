"""What the benchmark's rows give, and how it is written: JSON for machines, a table for readers.

Place in the flow: after the rows, before `plot`; `performance` collects the rows and writes here.

Two kinds of ratio, told apart everywhere: ``speedup`` says how many times as fast as the peer (more
is better), ``over`` how many times a reference's cost (less is better, and of a floor 1 is the best
there is).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.timing import Series, Spread

Kind = Literal["speedup", "over", "figure"]
BUSY = 0.3
"""Cores in use before the start from which on something else must be running."""
DEFINITIONS = {
    "speedup": "how many times as fast as the peer: more is better",
    "over": "cost divided by the reference's: less is better",
    "figure": "a figure without a ratio",
    "ratio": "median over repetitions in which both were measured in turns; low and high: the "
    "whole range, or from 10 % to 90 % of ten repetitions and more",
    "at_least": "the peer was stopped at its cap: the true ratio is larger",
    "floor": "least cost of the same arithmetic here and now: its products at the best rate "
    "measured, its element-wise passes in cache, its environment steps alone; or "
    "operations launched times the cost of launching an empty one",
    "over_floor": "our cost divided by the floor",
    "target": "least ratio aimed at (speedup), or largest (over)",
}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One comparison, or one figure."""

    name: str
    """``row/slug``, unique: what targets refer to."""
    case: str
    """What was measured, in words."""
    peer: str = ""
    """What it is compared to; empty for a figure."""
    unit: str
    """Of ``ours`` and ``theirs``."""
    ours: float | None
    """Median of this package; None where it never got there."""
    theirs: float | None = None
    """Median of the peer."""
    kind: Kind = "speedup"
    ratio: Spread | None = None
    at_least: bool = False
    floor: float | None = None
    over_floor: Spread | None = None
    target: float | None = None
    note: str = ""
    plotted: bool = True

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measurement:
        """From an entry of `as_json`."""
        spreads = {
            name: None if values[name] is None else Spread(**values[name])
            for name in ("ratio", "over_floor")
        }
        known = {name: values[name] for name in cls.__dataclass_fields__}
        return cls(**(known | spreads))

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a ratio."""
        if self.target is None or self.ratio is None:
            return None
        if self.kind == "over":
            return self.ratio.median <= self.target
        return self.ratio.median >= self.target


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """What one row came to."""

    name: str
    what: str
    seconds: float
    measurements: list[Measurement]
    error: str | None = None
    """Why there are no measurements."""


def compare(
    series: Series,
    name: str,
    case: str,
    peer: str,
    *,
    unit: str,
    scale: float = 1.0,
    rate: bool = False,
    kind: Kind = "speedup",
    ours: str = "ours",
    theirs: str | None = None,
    floor: float | None = None,
    note: str = "",
    plotted: bool = True,
) -> Measurement:
    """One comparison out of a series.

    Args:
        series: Of costs (seconds), or of rates (steps a second).
        name: See `Measurement`, like case, peer, kind and note.
        case: See name.
        peer: See name.
        unit: Of the medians after scaling.
        scale: What the series' figures are multiplied by.
        rate: Whether its figures are rates: more is better.
        kind: See name.
        ours: Candidate of the series that is this package.
        theirs: Candidate that is the peer; None for ``peer``.
        floor: Least cost, in the series' own unit.
        note: See name.
        plotted: See name.

    Raises:
        RuntimeError: This package's own candidate failed.
    """
    if ours in series.failures:
        raise RuntimeError(series.failures[ours])
    theirs = peer if theirs is None else theirs
    straight = rate if kind == "speedup" else not rate
    ratio = series.ratio(ours, theirs) if straight else series.ratio(theirs, ours)
    medians = [series.median(ours), series.median(theirs)]
    over_floor = None if floor is None else Spread.of([x / floor for x in series.figures[ours]])
    return Measurement(
        name=name,
        case=case,
        peer=peer,
        unit=unit,
        ours=None if medians[0] is None else medians[0] * scale,
        theirs=None if medians[1] is None else medians[1] * scale,
        kind=kind,
        ratio=ratio,
        floor=None if floor is None else floor * scale,
        over_floor=over_floor,
        note="; ".join(filter(None, [note, _threads(series, theirs), series.failures.get(theirs)])),
        plotted=plotted,
    )


def _threads(series: Series, name: str) -> str:
    count = series.threads.get(name)
    return "" if count is None else f"{name}: {count} thread{'s' if count > 1 else ''}"


def as_json(rows: Sequence[RowResult], header: Mapping[str, Any]) -> dict[str, Any]:
    """The whole result as one JSON-ready object."""
    return {
        **header,
        "definitions": DEFINITIONS,
        "rows": [
            {
                "name": row.name,
                "what": row.what,
                "seconds": round(row.seconds, 1),
                "error": row.error,
                "measurements": [{**asdict(m), "target_met": m.met} for m in row.measurements],
            }
            for row in rows
        ],
    }


def as_markdown(rows: Sequence[RowResult], header: Mapping[str, Any]) -> str:
    """The table, under what it was measured on."""
    machine = header["machine"]
    lines = [
        "# Performance",
        "",
        f"{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}; Python "
        f"{machine['python']}, PyTorch {machine['torch']}, Numba {machine['numba']}"
        + ("; quick: few repetitions, short caps." if header["quick"] else "."),
        *busy(header),
        "",
        "In brackets the spread over the repetitions, in which both sides took turns: the whole "
        "range, or from 10 % to 90 %. x: times as fast as the peer; times: our cost over its.",
    ]
    for row in rows:
        lines += ["", f"## {row.name}", "", row.what, ""]
        if row.error is not None:
            lines.append(row.error)
            continue
        lines += ["| measured | ours | against | theirs | ratio | over floor | target | |",
                  "|---|--:|---|--:|--:|--:|--:|---|"]  # fmt: skip
        lines += [f"| {' | '.join(cells(m))} |" for m in row.measurements]
    return "\n".join(lines) + "\n"


def busy(header: Mapping[str, Any]) -> list[str]:
    """A line that says so, where something else ran beside the benchmark."""
    load = header["busy_cores"]
    if load is None or load < BUSY:
        return []
    return [f"The machine was busy ({load:.1f} cores before the start): figures not to publish."]


def cells(m: Measurement) -> list[str]:
    """One measurement as text: a line of the tables."""
    target = "" if m.target is None else f"{'≤' if m.kind == 'over' else '≥'} {m.target:g}"
    if m.met is not None:
        target += " met" if m.met else " missed"
    return [
        m.case,
        figure(m.ours, m.unit),
        m.peer,
        figure(m.theirs, m.unit) if m.peer else "",
        ratio_text(m),
        "" if m.over_floor is None else f"{m.over_floor.median:.3g}",
        target,
        m.note,
    ]


def ratio_text(m: Measurement) -> str:
    """A ratio with its spread, such as ``3.1x (2.9 to 3.3)``."""
    if m.ratio is None:
        return ""
    r = m.ratio
    sign = "> " if m.at_least else ""
    unit = "x" if m.kind == "speedup" else " times"
    spread = f" ({r.low:.3g} to {r.high:.3g})" if r.repetitions > 1 else ""
    return f"{sign}{r.median:.3g}{unit}{spread}"


def figure(value: float | None, unit: str) -> str:
    """A median with its unit; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"


def write(
    rows: Sequence[RowResult], header: Mapping[str, Any], out: Path, stem: str = "performance"
) -> dict[str, Any]:
    """Write ``performance.json`` and ``performance.md``; returns the JSON object."""
    out.mkdir(parents=True, exist_ok=True)
    result = as_json(rows, header)
    (out / f"{stem}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    (out / f"{stem}.md").write_text(as_markdown(rows, header))
    return result
