"""A picture of a lineage: what its generations brought, and how their wealth grew.

Place in the flow: stage 8, drawn from the state when a run ends, and by ``ssm-metarl rsi plot``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssm_metarl.recursive_self_improvement.generation import Outcome, Role
from ssm_metarl.recursive_self_improvement.lineage import Lineage

COLOURS = {Role.CANDIDATE: "#7a8fa6", Role.CONTROL: "#c8811f", Role.PLACEBO: "#b9b9b9"}
OUTCOMES = {
    Outcome.ACCEPTED: "#1b7f4d",
    Outcome.REJECTED: "#9a9a9a",
    Outcome.INCONCLUSIVE: "#c8811f",
    Outcome.ROLLED_BACK: "#b3261e",
    Outcome.FAILED: "#b3261e",
}
MARKERS = {Role.CANDIDATE: "o", Role.CONTROL: "D", Role.PLACEBO: "x"}


def draw_lineage(lineage: Lineage, path: Path) -> Path:
    """Draw a lineage of at least one generation; returns the picture's path.

    Raises:
        ValueError: No generation has ended yet, matplotlib is not installed, or it does not know
            the picture's format.
    """
    if not lineage.records:
        raise ValueError("plot: expected a lineage with a generation that ended, received none")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "plot: expected matplotlib, received none; pip install 'ssm-metarl[report]'"
        ) from None
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    formats = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in formats:
        raise ValueError(f"plot: expected a name that ends in one of {', '.join(formats)}, "
                         f"received {path}")  # fmt: skip
    returns, wealth = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_returns(returns, lineage)
    _draw_wealth(wealth, lineage)
    figure.suptitle(
        f"{lineage.family}: {len(lineage.records)} generation(s), "
        f"{lineage.env_steps / 1e6:.1f} million environment steps", fontsize=11
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    return path


def _draw_returns(axes: Any, lineage: Lineage) -> None:
    """Candidates and champion in screening, out of range, by generation."""
    low, high = lineage.bounds
    for role, colour in COLOURS.items():
        points = [
            (record.generation, record.champion_return + mean * (high - low))
            for record in lineage.records
            for each, mean in record.candidates
            if each == role
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, c=colour, marker=MARKERS[role], s=26, label=role, zorder=2)
    generations = [record.generation for record in lineage.records]
    champions = [record.champion_return for record in lineage.records]
    axes.plot(generations, champions, color="#222222", lw=1.4, marker="_", ms=14, label="champion")
    for record in lineage.records:
        axes.annotate(
            record.outcome, (record.generation, high), (0, 6), textcoords="offset points",
            ha="center", fontsize=8, color=OUTCOMES[record.outcome],
        )  # fmt: skip
    axes.set(xlabel="generation", ylabel="return out of range, in screening", xticks=generations)
    axes.set_xlim(generations[0] - 0.5, generations[-1] + 0.5)
    axes.set_ylim(low - 0.03 * (high - low), high + 0.1 * (high - low))
    axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_wealth(axes: Any, lineage: Lineage) -> None:
    """The wealth of every confirmation, as a multiple of what accepts it."""
    confirmed = [record for record in lineage.records if record.wealth]
    for record in confirmed:
        share = [w / record.threshold for w in record.wealth]
        axes.plot(range(1, len(share) + 1), share, lw=1.2, color=OUTCOMES[record.outcome])
        axes.annotate(f"{record.generation}", (len(share), min(max(share[-1], 1e-4), 1e3)),
                      (3, 0), textcoords="offset points", fontsize=8)  # fmt: skip
    axes.axhline(1, color="#222222", lw=0.8, ls="--")
    axes.set(yscale="log", ylim=(1e-4, 1e3), xlabel="pairs of fresh tasks",
             ylabel="wealth / threshold")  # fmt: skip
    if not confirmed:
        axes.text(0.5, 0.5, "nothing came to confirmation", transform=axes.transAxes, ha="center")
    axes.spines[["top", "right"]].set_visible(False)
