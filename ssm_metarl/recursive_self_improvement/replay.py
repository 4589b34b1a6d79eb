"""Decide everything again: the proof that a ledger says what happened.

Place in the flow: stage 8, on demand. Reading a lineage checks the chain of hashes and computes
every verdict from the recorded scores (`lineage`); here the champion's row and the weights on disk
are held against what came out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssm_metarl.recursive_self_improvement.ledger import Ledger, LedgerDamaged
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.store import WeightStore

DECISIONS = ("screen", "confirm", "attribute", "commit", "canary", "rollback", "generation")


def replay(folder: Path) -> dict[str, Any]:
    """Replay a lineage; returns its events and decisions, the head's hash and the champion.

    Raises:
        FileNotFoundError: There is no lineage.
        LedgerDamaged: The chain, a result, an audit or the champion's row do not fit.
        ValueError: The weights of the champion, the first or the best are damaged.
        DecisionMismatch: An event does not follow from those before it.
    """
    with Ledger(folder, read_only=True) as ledger:
        events = ledger.events()
        lineage = Lineage(events)
        if ledger.champion != (lineage.champion or None):
            raise LedgerDamaged(
                f"{ledger.path}: expected the champion {lineage.champion}, which the events "
                f"give, received {ledger.champion}"
            )
        store = WeightStore(folder / "weights")
        for name in {lineage.first, lineage.best, lineage.champion} - {""}:
            store.get(name)
        ledger.results()
        ledger.last_audit()
        return {
            "events": len(events),
            "decisions": sum(event.kind in DECISIONS for event in events),
            "hash": ledger.head[1],
            "champion": lineage.champion,
        }
