"""What the page plots, as descriptions that ``static/chart.js`` draws: JSON, and no picture.

Place in the flow: stage 10, from the handlers' views to the browser. Colours are names of the style
sheet, all from the palette of Okabe & Ito (2008), which the colour-blind can tell apart; lines also
differ in their dashes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ssm_metarl.app.handlers.comparing import Interval
from ssm_metarl.app.handlers.improving import LineageView
from ssm_metarl.evaluation.plots import shown_range
from ssm_metarl.recursive_self_improvement.generation import Role

Chart = dict[str, Any]
NOTHING: Chart = {}
KINDS = ("blue", "orange", "purple")
LEAST_WEALTH, MOST_WEALTH = 1e-3, 100
"""What is drawn of a wealth: at least so much, at most so many thresholds."""
ROLES = {Role.CANDIDATE: "blue", Role.CONTROL: "orange", Role.PLACEBO: "grey"}


def training_curve(
    log: Sequence[dict[str, Any]], *, bounds: tuple[float, float] | None = None
) -> Chart:
    """Return against environment steps: adapted, frozen, out of range, and their spread.

    Args:
        log: Lines of a training log (`training_run`).
        bounds: Least and greatest return possible; None for unknown.
    """
    looks = [line for line in log if "eval_adapted_mean" in line]
    series = [
        _looks(looks, "adapted", "after one step of adapting", "after"),
        _looks(looks, "frozen", "before adapting", "before"),
        _looks(looks, "ood_adapted", "after, out of range", "purple", style="dashed"),
    ]
    recent = [[line["env_steps"], line["recent_return"]] for line in log]
    series.append({"name": "training episodes", "color": "grey", "points": thin(recent)})
    series = [s for s in series if s["points"]]
    if not series:
        return NOTHING
    low, high = shown_range([y for s in series for _, y in s["points"]], bounds)
    return {
        "kind": "lines",
        "title": "Return while it learnt",
        "x": {"label": "environment steps", "min": 0},
        "y": {"label": "return of an episode", "min": low, "max": high + 0.04 * (high - low)},
        "series": series,
        "summary": _summary(series),
    }


def _looks(
    looks: Sequence[dict[str, Any]], arm: str, name: str, color: str, style: str = "line"
) -> dict[str, Any]:
    found = [line for line in looks if f"eval_{arm}_mean" in line]
    band = [
        [line["env_steps"], line[f"eval_{arm}_q10"], line[f"eval_{arm}_q90"]]
        for line in found
        if f"eval_{arm}_q10" in line
    ]
    points = [[line["env_steps"], line[f"eval_{arm}_mean"]] for line in found]
    return {"name": name, "color": color, "points": points, "band": band, "style": style}


def wealth(lineage: LineageView) -> Chart:
    """The wealth of a confirmation against the pairs of tasks it was betted on."""
    if not lineage.wealth or lineage.threshold is None:
        return NOTHING
    points = [[i + 1, max(w, LEAST_WEALTH)] for i, w in enumerate(lineage.wealth)]
    points = [[x, min(w, MOST_WEALTH * lineage.threshold)] for x, w in points]
    most = max(w for _, w in [*points, [0, lineage.threshold]])
    top = 10 ** math.ceil(math.log10(most * 1.2))
    series = [{"name": "wealth", "color": "blue", "points": thin(points)}]
    return {
        "kind": "lines",
        "title": "Wealth of the bet that the change is better",
        "x": {"label": "pairs of fresh tasks", "min": 0},
        "y": {"label": "wealth", "min": LEAST_WEALTH, "max": top, "log": True},
        "series": series,
        "refs": [{"y": lineage.threshold, "label": f"accepts at {lineage.threshold:.0f}"}],
        "summary": f"Wealth {lineage.wealth[-1]:.3g} of {lineage.threshold:.0f} after "
        f"{len(lineage.wealth)} pairs",
    }  # fmt: skip


def generations(lineage: LineageView) -> Chart:
    """Candidates and champion of every generation, by their return in screening."""
    if not lineage.records:
        return NOTHING
    low, high = lineage.bounds
    series: list[dict[str, Any]] = [
        {
            "name": str(role),
            "color": color,
            "style": "dots",
            "points": [
                [record.generation, record.champion_return + mean * (high - low)]
                for record in lineage.records
                for each, mean in record.candidates
                if each == role
            ],
        }
        for role, color in ROLES.items()
    ]
    champions = [[r.generation, r.champion_return] for r in lineage.records]
    series.append({"name": "champion", "color": "ink", "points": champions})
    count = len(lineage.records)
    series = [s for s in series if s["points"]]
    return {
        "kind": "lines",
        "title": "Every generation's candidates, beside its champion",
        "x": {"label": "generation", "min": 0.5, "max": count + 0.5, "whole": True},
        "y": {"label": "return out of range", "min": low, "max": high + 0.04 * (high - low)},
        "series": series,
        "summary": _summary(series),
    }


def ratios(rows: Sequence[Interval], title: str) -> Chart:
    """Ratios with their spreads, on a scale of logarithms, around 1; a colour for each kind."""
    return _intervals(rows, title, {"label": "ratio (1 is as much as the other)", "log": True}, 1)


def differences(rows: Sequence[Interval], title: str) -> Chart:
    """Differences with their intervals, around 0; a colour for each kind."""
    return _intervals(rows, title, {"label": "difference of mean returns (95 % interval)"}, 0)


def _intervals(rows: Sequence[Interval], title: str, axis: dict[str, Any], ref: float) -> Chart:
    if not rows:
        return NOTHING
    kinds = dict(zip(dict.fromkeys(row.kind for row in rows), KINDS, strict=False))
    return {
        "kind": "intervals",
        "title": title,
        "x": axis,
        "ref": ref,
        "rows": [
            {
                "label": row.label, "value": row.middle, "low": row.low, "high": row.high,
                "text": f"{row.middle:.3g} {row.kind}".strip(), "color": kinds[row.kind],
            }
            for row in rows
        ],
        "summary": "; ".join(f"{row.label}: {row.middle:.3g} {row.kind}" for row in rows),
    }  # fmt: skip


def thin(points: list[list[float]], most: int = 400) -> list[list[float]]:
    """At most so many points, evenly spaced, the last one included."""
    if len(points) <= most:
        return points
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def _summary(series: Sequence[dict[str, Any]]) -> str:
    """What somebody hears who cannot see the chart."""
    return "; ".join(f"{s['name']}: {s['points'][-1][1]:.0f} at the end" for s in series)
