"""What the page plots, as descriptions that ``static/chart.js`` draws: JSON, and no picture.

Place in the flow: stage 10, from the handlers' views to the browser. Colours are names of the style
sheet, all from the palette of Okabe & Ito (2008), which the colour-blind can tell apart; lines also
differ in their dashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ssm_metarl.app.handlers.comparing import Interval
from ssm_metarl.app.handlers.lineages import LineageView
from ssm_metarl.evaluation.plots import shown_range
from ssm_metarl.recursive_self_improvement.generation import Role

Chart = dict[str, Any]
NOTHING: Chart = {}
KINDS = ("blue", "orange", "purple")
LEAST_WEALTH, MOST_WEALTH = 1e-3, 100
"""What is drawn of a wealth: at least so much, at most so many thresholds."""
ROLES = {Role.CANDIDATE: "blue", Role.CONTROL: "orange", Role.PLACEBO: "grey"}
CURVES = (
    ("adapted", "after one step of adapting", "after", "line"),
    ("frozen", "before adapting", "before", "line"),
    ("ood_adapted", "after, out of range", "purple", "dashed"),
    # of a training in context, which has none of these three
    ("episode_2", "second episode", "after", "line"),
    ("episode_1", "first episode", "before", "line"),
    ("ood_episode_2", "second, out of range", "purple", "dashed"),
)
"""What a training log has, its name, colour and style."""


def training_curve(
    log: Sequence[dict[str, Any]], *, bounds: tuple[float, float] | None = None
) -> Chart:
    """Return against environment steps: adapted, frozen, out of range, and their spread.

    Args:
        log: Lines of a training log (`training_run`).
        bounds: Least and greatest return possible; None for unknown.
    """

    def columns(*names: str) -> list[list[Any]]:
        rows = (row for row in log if all(name in row for name in names))
        return [[row["env_steps"], *(row[name] for name in names)] for row in rows]

    series: list[dict[str, Any]] = [
        {
            "name": name,
            "color": color,
            "points": columns(f"eval_{arm}_mean"),
            "band": columns(f"eval_{arm}_q10", f"eval_{arm}_q90"),
            "style": style,
        }
        for arm, name, color, style in CURVES
    ]
    recent = thin(columns("recent_return"))
    series.append({"name": "training episodes", "color": "grey", "points": recent})
    returns = [y for s in series for _, y in s["points"]]
    return _lines(
        "Return while it learnt",
        {"label": "environment steps", "min": 0},
        _return_axis("return of an episode", *shown_range(returns, bounds)),
        series,
    )


def wealth(view: LineageView) -> Chart:
    """The wealth of a confirmation against the pairs of tasks it was betted on."""
    bet, threshold = view.bet or ([], 0.0)
    if not bet:
        return NOTHING
    most = MOST_WEALTH * threshold
    points = [[i + 1, min(max(w, LEAST_WEALTH), most)] for i, w in enumerate(bet)]
    highest = max(threshold, *(w for _, w in points))
    top = 10 ** math.ceil(math.log10(highest * 1.2))
    return {
        **_lines(
            "Wealth of the bet that the change is better",
            {"label": "pairs of fresh tasks", "min": 0},
            {"label": "wealth", "min": LEAST_WEALTH, "max": top, "log": True},
            [{"name": "wealth", "color": "blue", "points": thin(points)}],
        ),
        "refs": [{"y": threshold, "label": f"accepts at {threshold:.0f}"}],
        "summary": f"Wealth {bet[-1]:.3g} of {threshold:.0f} after {len(bet)} pairs",
    }


def generations(view: LineageView) -> Chart:
    """Candidates and champion of every generation, by their return in screening."""
    records, (low, high) = view.lineage.records, view.lineage.bounds
    series: list[dict[str, Any]] = [
        {
            "name": str(role),
            "color": color,
            "style": "dots",
            "points": [
                [record.generation, record.champion_return + mean * (high - low)]
                for record in records
                for each, mean in record.candidates
                if each == role
            ],
        }
        for role, color in ROLES.items()
    ]
    champions = [[r.generation, r.champion_return] for r in records]
    series.append({"name": "champion", "color": "ink", "points": champions})
    return _lines(
        "Every generation's candidates, beside its champion",
        {"label": "generation", "min": 0.5, "max": len(records) + 0.5, "whole": True},
        _return_axis("return out of range", low, high),
        series,
    )


def _return_axis(label: str, low: float, high: float) -> dict[str, Any]:
    return {"label": label, "min": low, "max": high + 0.04 * (high - low)}


def _lines(
    title: str, x: dict[str, Any], y: dict[str, Any], series: Iterable[dict[str, Any]]
) -> Chart:
    """A chart of the series that have points; the summary is for who cannot see it."""
    drawn = [s for s in series if s["points"]]
    if not drawn:
        return NOTHING
    summary = "; ".join(f"{s['name']}: {s['points'][-1][1]:.0f} at the end" for s in drawn)
    return {
        "kind": "lines", "title": title, "x": x, "y": y, "series": drawn, "summary": summary,
    }  # fmt: skip


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
    texts = [f"{row.middle:.3g} {row.kind}".strip() for row in rows]
    return {
        "kind": "intervals",
        "title": title,
        "x": axis,
        "ref": ref,
        "rows": [
            {
                "label": row.label, "value": row.middle, "low": row.low, "high": row.high,
                "text": text, "color": kinds[row.kind],
            }
            for row, text in zip(rows, texts, strict=True)
        ],
        "summary": "; ".join(f"{row.label}: {t}" for row, t in zip(rows, texts, strict=True)),
    }  # fmt: skip


def thin(points: list[list[Any]], most: int = 400) -> list[list[Any]]:
    """At most so many points, evenly spaced, the last one included."""
    if len(points) <= most:
        return points
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]
