"""The two charts of a report: evaluation over training, and every arm before and after adapting.

Place in the flow: stage 7, drawn by `report`. Input is plain data (a log's lines, the JSON
objects of evaluations), so that a chart can be redrawn years later without a model.

matplotlib is imported inside the functions, and figures are made without pyplot: its global
state would choose a window toolkit, and keep every figure alive in a daemon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mode
from typing import TYPE_CHECKING, Any

from ssm_metarl.meta_rl.training_log import read_log
from ssm_metarl.methods.method import BLUE, SKY, VERMILION
from ssm_metarl.methods.method import YARDSTICK as MUTED
from ssm_metarl.methods.registry import in_order, known_methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

INK, FAINT = "#1F2933", "#E4E7EB"
Bounds = tuple[float, float]


def arm_label(arm: str) -> str:
    """An arm's name for readers."""
    return str(getattr(known_methods().get(arm), "label", arm))


def arm_color(arm: str) -> str:
    """Its colour."""
    return str(getattr(known_methods().get(arm), "color", INK))


def present_arms(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Arms that any of the evaluations has: known ones in display order, then the others."""
    found = {arm: None for e in evaluations for arm, scores in e["arms"].items() if scores}
    return in_order(list(found))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, facecolor="white", layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.12, h_pad=0.1)  # type: ignore[call-arg]
    return figure


def _clean(axes: Axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=MUTED, labelsize=9)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)  # a Figure made without pyplot draws with Agg
    return path


def shown_range(values: Sequence[float], bounds: Bounds | None) -> Bounds:
    """From where to where returns are drawn: to the bounds, unless most of that would be empty."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if bounds is None:
        low = min(0.0, low)
    else:
        high = max(bounds[1], high)
        low = low if low - bounds[0] > (bounds[1] - bounds[0]) / 2 else min(bounds[0], low)
    return low, high if high > low else low + 1.0


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Millions of environment steps, and the column's values, where a row has it."""
    have = [row for row in rows if row.get(name) is not None]
    return [row["env_steps"] / 1e6 for row in have], [float(row[name]) for row in have]


CURVES = (
    ("average_return", None, "training", MUTED),
    ("eval_frozen_mean", "eval_frozen_iqm", "before adapting", VERMILION),
    ("eval_ood_adapted_mean", "eval_ood_adapted_iqm", "after, out of range", SKY),
    ("eval_adapted_mean", "eval_adapted_iqm", "after adapting", BLUE),
    # of a training in context, which has none of these three
    ("eval_episode_1_mean", "eval_episode_1_iqm", "first episode", VERMILION),
    ("eval_ood_episode_2_mean", "eval_ood_episode_2_iqm", "second, out of range", SKY),
    ("eval_episode_2_mean", "eval_episode_2_iqm", "second episode", BLUE),
)
"""Columns of the mean and of the IQM in a training's log, and how they are drawn."""


def plot_training_curve(log: Path, path: Path, *, bounds: Bounds | None = None) -> Path:
    """Draw evaluation and training returns over environment steps.

    Args:
        log: JSON lines with ``env_steps`` and ``average_return``, and on some of them the columns
            of `CURVES`: means are drawn as lines, IQMs dotted.
        path: PNG file to write.
        bounds: Least and greatest possible return, the latter drawn as a line; None for unknown.

    Returns:
        ``path``.
    """
    rows = read_log(log).rows
    if not rows:
        raise ValueError(f"{log}: expected at least one line with a JSON object, found none")
    figure = _figure(8.0, 3.6)
    axes = figure.subplots()
    _clean(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    # Now and then training runs longer episodes; a line through both lengths would be all spikes.
    horizon = mode([row.get("horizon") for row in rows])
    cut = "" if horizon is None else f", cut at {horizon}:"
    ends: list[tuple[float, float, Line2D]] = []
    values: list[float] = []
    for mean, middle, label, color in CURVES:
        usual = rows if middle else [row for row in rows if row.get("horizon") == horizon]
        x, y = _column(usual, mean)
        if not x:
            continue
        values += _column(rows, mean)[1]
        look: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.55, "zorder": 2}
        if middle is not None:
            axes.plot(*_column(rows, middle), color=color, linewidth=1.1, linestyle=":", zorder=2.5)
            look = {"linewidth": 2.2, "zorder": 3, "marker": "o", "markersize": 4.5,
                    "markeredgecolor": "white", "markeredgewidth": 0.7}  # fmt: skip
        name = f"{label}{'' if middle else cut} {y[-1]:.0f}"
        (line,) = axes.plot(x, y, color=color, label=name, clip_on=False, **look)
        ends.append((x[-1], y[-1], line))
    axes.set_xlim(0, max((x for x, *_ in ends), default=0.0) * 1.005 or 1.0)
    bottom, top = shown_range(values, bounds)
    axes.set_ylim(bottom, bottom + (top - bottom) * 1.06)
    if bounds is not None:
        axes.axhline(bounds[1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    above = [line for *_, line in sorted(ends, key=lambda end: end[1])][::-1]
    axes.legend(handles=above, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False,
                labelcolor="linecolor", handlelength=0, fontsize=9.5)  # fmt: skip
    axes.set_xlabel("environment steps (million)", color=MUTED, fontsize=9)
    axes.set_title(
        "Episode return over meta-training", loc="left", fontsize=11.5, color=INK, weight="bold"
    )
    if any("eval_adapted_iqm" in row or "eval_episode_1_iqm" in row for row in rows):
        axes.set_title("lines: mean; dotted: IQM", loc="right", fontsize=8.5, color=MUTED)
    return _save(figure, path)


def plot_arms(
    evaluations: Mapping[str, Mapping[str, Any]], path: Path, *, bounds: Bounds | None = None
) -> Path:
    """Draw every arm's IQM with its interval and its worst tenth, one panel a split.

    Args:
        evaluations: Title of a panel, such as "in distribution" -> the JSON object that
            ``ssm-metarl evaluate --json`` prints.
        path: PNG file to write.
        bounds: Least and greatest possible return, the latter drawn as a line; None for unknown.

    Returns:
        ``path``.

    Raises:
        ValueError: No evaluation, or none with an arm.
    """
    arms = present_arms(list(evaluations.values()))
    if not arms:
        raise ValueError(f"plot_arms: expected evaluations with arms, received {evaluations!r}")
    shown = [e["arms"][arm] for e in evaluations.values() for arm in arms if e["arms"].get(arm)]
    left, right = shown_range(
        [float(x) for s in shown for x in (s["iqm"], s["worst10"], *s["ci95"])], bounds
    )
    figure = _figure(9.2, 1.15 + 0.36 * len(arms))
    panels = figure.subplots(1, len(evaluations), sharey=True, sharex=True, squeeze=False)[0]
    for panel, (title, evaluation) in zip(panels, evaluations.items(), strict=True):
        _clean(panel)
        panel.set_title(title, loc="left", fontsize=11.5, color=INK, weight="bold")
        if "num_tasks" in evaluation:
            panel.set_title(
                f"{evaluation['num_tasks']} unseen tasks", loc="right", fontsize=8.5, color=MUTED
            )
        for row in range(0, len(arms), 2):
            panel.axhspan(row - 0.5, row + 0.5, color="#F5F7FA", zorder=0, linewidth=0)
        if bounds is not None:
            panel.axvline(bounds[1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        panel.set_xlim(left - 0.025 * (right - left), right + 0.16 * (right - left))
        panel.locator_params(axis="x", nbins=4)  # thousands stand side by side
        for row, arm in enumerate(arms):
            if evaluation["arms"].get(arm):
                _draw_arm(panel, row, arm, evaluation["arms"][arm])
    panels[0].set_yticks(range(len(arms)), [arm_label(arm) for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)  # the first arm on top
    for tick, arm in zip(panels[0].get_yticklabels(), arms, strict=True):
        tick.set(color=arm_color(arm), fontsize=10)
        tick.set_weight("normal" if arm_color(arm) == MUTED else "bold")
    figure.supxlabel(
        "episode return:   ● interquartile mean of the tasks, bar: its 95 % interval"
        "      ◇ mean of the worst tenth of the tasks",
        fontsize=8.5,
        color=MUTED,
    )
    return _save(figure, path)


def _draw_arm(panel: Axes, row: int, arm: str, scores: Mapping[str, Any]) -> None:
    color = arm_color(arm)
    middle, worst = float(scores["iqm"]), float(scores["worst10"])
    low, high = scores["ci95"]
    panel.plot([worst, middle], [row, row], color=color, linewidth=1.2, alpha=0.5, zorder=2)
    panel.plot([low, high], [row, row], color=color, linewidth=6, alpha=0.35, zorder=2.5,
               solid_capstyle="butt")  # fmt: skip
    panel.plot(worst, row, "D", color="white", markeredgecolor=color, markersize=5.5, zorder=3)
    panel.plot(middle, row, "o", color=color, markersize=8, zorder=4)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "color": color}
    # the line of the greatest return may run behind the number
    beside["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    panel.annotate(f"{middle:.0f}", (max(middle, high), row), (8, 0), fontsize=9.5, weight="bold",
                   **beside)  # fmt: skip
    left, right = panel.get_xlim()
    if (middle - worst) > 0.03 * (right - left) and (worst - left) > 0.12 * (right - left):
        panel.annotate(f"{worst:.0f}", (worst, row), (-7, 0), ha="right", fontsize=8.5, **beside)
