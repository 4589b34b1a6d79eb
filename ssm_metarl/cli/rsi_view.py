"""A lineage at work, live: a panel on a terminal, lines elsewhere.

Place in the flow: ``ssm-metarl rsi run`` shows it; `recursive_self_improvement.agent` calls
`LineageView.update` after every event. It goes to stderr, like all progress.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ssm_metarl.cli.console import note

if TYPE_CHECKING:
    from ssm_metarl.recursive_self_improvement.lineage import Candidate, Lineage

MOST_CHANGES = 3  # shown of a candidate
BAR_WIDTH = 30
QUIET = ("propose", "train", "attribute", "canary")
"""Events without a line of their own where there is no terminal."""


class LineageView:
    """Shows what the lineage does.

    Args:
        console: Where; None for stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._detail = ""

    def __enter__(self) -> LineageView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last picture standing; called again, it does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, lineage: Lineage, kind: str, detail: str) -> None:
        """Show an event."""
        from ssm_metarl.recursive_self_improvement.service import describe

        self._detail = f"trained {detail}" if kind == "trained" else ""
        if self._live is not None:
            self._live.update(self._picture(lineage))
        elif kind not in QUIET:
            note(describe(lineage, kind, detail))

    def _picture(self, lineage: Lineage) -> Group:
        head = Text.assemble(
            (f"generation {lineage.generation} ", "bold"),
            f"{lineage.stage} {self._detail}   champion {lineage.champion[:12]}   "
            f"alpha left {lineage.alpha_left:.4f}   {lineage.env_steps:,} steps",
        )
        parts: list[Text | Table | ProgressBar] = [head]
        if lineage.candidates:
            parts.append(_candidates(lineage))
        if (gate := lineage.confirmation) is not None:
            parts.append(
                Text(
                    f"wealth {gate.primary.wealth:.3g} of {gate.primary.threshold:.0f} after "
                    f"{gate.primary.num_pairs} of {gate.cap} pairs, {100 * gate.mean:+.2f} points "
                    f"(spread {100 * gate.spread:.1f}); still open: "
                    f"{', '.join(gate.open_tests) or 'none'}"
                )
            )
            parts.append(_wealth_bar(gate.primary.wealth, gate.primary.threshold))
        for record in lineage.records[-5:]:
            parts.append(
                Text(f"generation {record.generation} {record.outcome}: {record.reason}", "dim")
            )
        return Group(*parts)


def _wealth_bar(wealth: float, threshold: float) -> ProgressBar:
    """How far the wealth has come from 1 to the threshold, on a scale of logarithms."""
    import math

    share = math.log(max(wealth, 1.0)) / math.log(threshold)
    return ProgressBar(total=1.0, completed=min(share, 1.0), width=BAR_WIDTH)


def _candidates(lineage: Lineage) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "change", "parameters", "points in screening", ""):
        table.add_column(column)
    for index, candidate in enumerate(lineage.candidates):
        points = f"{100 * candidate.mean:+.1f}" if candidate.screened else ""
        size = f"{candidate.parameters:,}" if candidate.parameters else ""
        state = _state(lineage, index, candidate)
        table.add_row(candidate.role, _changes(candidate), size, points, state)
    return table


def _changes(candidate: Candidate) -> str:
    shown = [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in list(candidate.changes.items())[:MOST_CHANGES]
    ]
    more = len(candidate.changes) - len(shown)
    return ", ".join(shown) + (f", {more} more" if more > 0 else "") or "none"


def _state(lineage: Lineage, index: int, candidate: Candidate) -> str:
    if candidate.failure is not None:
        return candidate.failure[:40]
    if lineage.chosen == index:
        return "chosen"
    return "dropped" if candidate.dropped else ""
