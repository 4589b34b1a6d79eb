"""The comparison as pictures: returns after each episode, and performance profiles.

Place in the flow: after `comparison`, beside `tables`; the only module here that needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.adaptation.arms import SHORT

DPI, COLUMNS = 90, 2
LOOKS = {
    "in_context": "C0",
    "standard (prediction)": "C1",
    "standard (policy_gradient)": "C2",
    "both (both_prediction)": "C9",
    "fine_tuned (multi_task)": "C3",
    "scratch (multi_task)": "C5",
    "frozen (prediction)": "C7",
    "least_squares": "C8",
}
"""The arms that are drawn, and their colours; where another one runs (`hybrid` on `standard`, say),
the tables tell."""
Panels = Mapping[str, Mapping[str, Any]]
"""By family and split, then by arm."""


def draw(result: Mapping[str, Any], folder: Path) -> None:
    """``adaptation_curves.png`` and ``adaptation_profiles.png``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    curves, profiles = result["curves"], result["profiles"]
    longest = max((x for arms in curves.values() for x in arms.values()),
                  key=lambda line: len(line["after"]))["after"]  # fmt: skip
    # an arm that remembers has been scored after everything, in order
    places = {after: place for place, after in enumerate(longest)}

    def curve(axis: Any, line: Any, look: Mapping[str, Any]) -> None:
        axis.plot([places[a] for a in line["after"]], line["mean"], marker=".", **look)
        axis.set_xticks(range(len(places)), [a.split()[0] for a in places], fontsize=7)

    def profile(axis: Any, line: Any, look: Mapping[str, Any]) -> None:
        axis.plot(result["thresholds"], line, **look)

    _draw(curves, curve, folder / "adaptation_curves.png",
          x=f"episodes of the task before ({SHORT}: one short episode)",
          y="mean return")  # fmt: skip
    _draw(profiles, profile, folder / "adaptation_profiles.png",
          x="return", y=f"share of runs and tasks above it, after {SHORT}")  # fmt: skip


def _draw(
    panels: Panels,
    draw_line: Callable[[Any, Any, Mapping[str, Any]], None],
    path: Path,
    *,
    x: str,
    y: str,
) -> None:
    """A panel for each family and split, a line for each arm."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 3.2 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)
    for axis, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        for arm, color in LOOKS.items():
            if arm in lines:
                draw_line(axis, lines[arm], {"label": arm, "color": color, "linewidth": 1.5})
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlabel(x, fontsize=7)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(y, fontsize=8)
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=7,
                  frameon=False)  # fmt: skip
    figure.savefig(path, dpi=DPI)
