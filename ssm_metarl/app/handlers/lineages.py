"""What tab 3 shows of a lineage, a visitor's own or the daemon's: read from its ledger.

Place in the flow: stage 10, under `improving` and `daemon`; `charts` draws it, and
`lineage_markup` writes it down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME, Ledger, LedgerDamaged
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.summary import summarize_lineage


@dataclass(frozen=True)
class LineageView:
    """A lineage as the page shows it."""

    lineage: Lineage
    summary: dict[str, Any]
    """See `summarize_lineage`."""
    audit: dict[str, Any] | None

    @property
    def bet(self) -> tuple[list[float], float] | None:
        """Wealth of the running or else the last confirmation, by pairs, and what accepts it."""
        gate = self.lineage.confirmation
        if gate is not None:
            return list(gate.wealth), gate.primary.threshold
        confirmed = [record for record in self.lineage.records if record.wealth]
        return (list(confirmed[-1].wealth), confirmed[-1].threshold) if confirmed else None


def read_lineage(folder: Path) -> LineageView | None:
    """A lineage as it stands on disk, whoever works at it; None where there is none yet."""
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        ledger = Ledger(folder, read_only=True)
    except (LedgerDamaged, FileNotFoundError):
        return None  # it is being made just now
    try:
        lineage, audit = Lineage(ledger.events()), ledger.last_audit()
    finally:
        ledger.close()
    return LineageView(lineage, summarize_lineage(lineage, folder), audit)
