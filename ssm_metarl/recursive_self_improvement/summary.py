"""What a person wants to know of a lineage, as one flat JSON-ready object.

Place in the flow: stage 8, read from the state by the daemon's ``status``, the command line and the
app.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ssm_metarl.recursive_self_improvement.gate import pairs_needed
from ssm_metarl.recursive_self_improvement.generation import Outcome
from ssm_metarl.recursive_self_improvement.ledger import Ledger
from ssm_metarl.recursive_self_improvement.lineage import Lineage

SHORT = 12  # digits of a name that a person reads


def summarize_lineage(lineage: Lineage, folder: Path | None = None) -> dict[str, Any]:
    """State, champion, counts, what is left of alpha, and where a confirmation stands.

    Returns:
        Always the same entries (but ``disk_mb``, without a folder): None is "does not apply now".
    """
    gate = lineage.confirmation
    result: dict[str, Any] = {
        "stage": str(lineage.stage),
        "generation": lineage.generation,
        "champion": lineage.champion[:SHORT],
        "parameters": lineage.sizes.get(lineage.champion, 0),
        **{str(o).replace(" ", "_"): lineage.count(o) for o in Outcome},
        "alpha_left": round(lineage.alpha_left, 6),
        "alpha": lineage.config.alpha,
        "env_steps": lineage.env_steps,
        "reason": lineage.reason or None,
        "pairs": gate and gate.primary.num_pairs,
        "most_pairs": gate and gate.cap,
        "wealth": gate and float(f"{gate.primary.wealth:.3g}"),
        "threshold": gate and round(gate.primary.threshold, 1),
        "mean_difference": gate and round(gate.mean, 5),
        "spread": gate and round(gate.spread, 5),
        "pairs_for_3_points": gate and pairs_needed(0.03, gate.spread, gate.primary.alpha),
    }
    if folder is not None:
        result["disk_mb"] = round(disk_usage(folder) / 1e6, 1)
    return result


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a lineage on disk, whoever is working at it."""
    with Ledger(folder, read_only=True) as ledger:
        return summarize_lineage(Lineage(ledger.events()), folder)


def disk_usage(path: Path) -> int:
    """Bytes on disk of a folder and all below it."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the daemon has just deleted it
                total += os.stat(os.path.join(folder, name)).st_size
    return total
