"""What must hold whatever happens to a lineage: nothing is lost, and it goes on as it would have.

A lineage that was interrupted reaches, event for event, the hashes of one that was not, and every
checkpoint that its ledger names is there and whole at every moment.
"""

from __future__ import annotations

from pathlib import Path

from ssm_metarl.checkpoint import unpack
from ssm_metarl.recursive_self_improvement.ledger import Ledger
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.store import WeightStore


def check_state(folder: Path, history: list[str], at_least: int = 0) -> int:
    """What a process that starts now would find: a part of the history, all its weights whole.

    Args:
        folder: Of the lineage.
        history: Hashes of an undisturbed lineage.
        at_least: Events that were written before, and must be there.

    Returns:
        How many events there are.
    """
    ledger = Ledger(folder)
    try:
        events, results = ledger.events(), ledger.results()
        lineage = Lineage(events)
        assert ledger.champion == (lineage.champion or None)
    finally:
        ledger.close()
    assert [e.hash for e in events] == history[: len(events)]
    assert len(events) >= at_least
    store = WeightStore(folder / "weights")
    named = lineage.kept_weights | {r["weights"] for r in results.values()}
    for name in named - {""}:
        assert unpack(store.get(name), name).tensors
    return len(events)
