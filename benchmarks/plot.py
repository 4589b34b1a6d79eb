"""The benchmark's picture: one bar a ratio, on a logarithmic axis.

Place in the flow: after `results`; the only module here that needs matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results import Measurement, RowResult, ratio_text

FASTER, SLOWER, COST = "#2b7a78", "#c0504d", "#8a8f99"
ARMS = {"frozen": "#8a8f99", "standard": "#0072b2", "hybrid": "#d55e00"}
DPI, COLOURS = 90, 32


def draw(rows: Sequence[RowResult], path: Path) -> None:
    """Draw every plotted ratio: speed-ups above, costs over a reference below.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    chosen = [m for row in rows for m in row.measurements if m.plotted]
    speedups = [m for m in chosen if m.kind == "speedup" and m.ratio is not None]
    costs = [m for m in chosen if m.kind == "over" and m.ratio is not None]
    panels = [
        (bars, title)
        for bars, title in (
            (speedups, "times as fast as ..."),
            (costs, "cost divided by ... (less is better)"),
        )
        if bars
    ] or [(speedups, "nothing was measured")]
    counts = [max(1, len(bars)) for bars, _ in panels]
    figure = Figure(figsize=(9, 0.8 * len(panels) + 0.24 * sum(counts)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=counts)[:, 0]
    for axis, (bars, title) in zip(axes, panels, strict=True):
        axis.set_xscale("log")
        axis.axvline(1, color="black", linewidth=0.8)
        for place, m in enumerate(bars):
            _bar(axis, place, m)
        axis.set_yticks(range(len(bars)), [_label(m) for m in bars], fontsize=7)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.25)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=DPI)
    # a few flat colours: a palette makes the file a quarter of the size
    Image.open(picture).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _bar(axis, place: int, m: Measurement) -> None:  # type: ignore[no-untyped-def]
    assert m.ratio is not None
    r = m.ratio
    colour = COST if m.kind == "over" else FASTER if r.median >= 1 else SLOWER
    axis.barh(place, r.median - 1, left=1, height=0.7, color=colour)
    axis.plot([r.low, r.high], [place, place], color="black", linewidth=1)
    if m.target is not None:
        axis.plot([m.target] * 2, [place - 0.4, place + 0.4], color="black", linestyle=":")
    right = r.median >= 1
    end = max(r.high, 1) if right else min(r.low, 1)
    axis.annotate(
        ratio_text(m).split(" (")[0],
        (end, place),
        xytext=(4 if right else -4, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=7,
    )


def _label(m: Measurement) -> str:
    return f"{m.name.partition('/')[0]}: {m.case} / {m.peer}"


def draw_bars(groups: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Mean returns side by side: a group a configuration, a bar an arm.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axis = figure.subplots()
    arms = list(next(iter(groups.values())))
    width = 0.8 / len(arms)
    for place, arm in enumerate(arms):
        left = [group + (place - (len(arms) - 1) / 2) * width for group in range(len(groups))]
        axis.bar(left, [each[arm] for each in groups.values()], width, color=ARMS[arm], label=arm)
    axis.set_xticks(range(len(groups)), list(groups), fontsize=8, rotation=20, ha="right")
    axis.set_ylabel("mean return")
    axis.legend(frameon=False, fontsize=8, ncols=len(arms), loc="upper left")
    axis.margins(y=0.18)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI)


def draw_curves(panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Mean return after 0, 1, 2, ... gradient steps: a panel a setting, a line an arm.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    columns = max(1, len(panels) // 2)
    figure = Figure(figsize=(3 * columns, 4.6), layout="constrained")
    axes = figure.subplots(-(-len(panels) // columns), columns, sharey=True, squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for width, (arm, values) in zip((4, 1.5), lines.items(), strict=False):  # both show
            axis.plot(
                range(len(values)), values, marker=".", color=ARMS[arm], label=arm, linewidth=width
            )
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel("gradient steps", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("mean return", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)
