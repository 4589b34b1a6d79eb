"""The champion as a model for everyday use.

Place in the flow: stage 8, on demand. In the lineage a champion has no limits of adaptation, which
would cost more than its training. Here they are set.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ssm_metarl.checkpoint import save_checkpoint, unpack
from ssm_metarl.evaluation.calibration import calibrate
from ssm_metarl.evaluation.meta_evaluator import verify
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.recursive_self_improvement.ledger import Ledger
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.store import WeightStore
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import TaskFamily


def export_champion(
    folder: Path, out: Path, calibration_tasks: int, family: TaskFamily | None = None
) -> dict[str, Any]:
    """Write the champion of a lineage to a file.

    Args:
        folder: Of the lineage.
        out: The file.
        calibration_tasks: Training tasks to set the limits on; 0 for none.
        family: The lineage's; None for the one that is known by its name.

    Returns:
        The model's card: lineage, generation, audit, verification.

    Raises:
        FileNotFoundError: There is no lineage.
        ValueError: Its family is not known, or another one is handed over.
    """
    with Ledger(folder, read_only=True) as ledger:
        lineage, audited, head = Lineage(ledger.events()), ledger.last_audit(), ledger.head[1]
    checkpoint = unpack(WeightStore(folder / "weights").get(lineage.champion), "champion")
    family = family or family_of_env(lineage.family, "hand it over: --family my_plant.py:FAMILY")
    if family.name != lineage.family:
        raise ValueError(
            f"task family: expected {lineage.family!r} as in the lineage, received {family.name!r}"
        )
    policy, trained = checkpoint.policy(), MetaTrained.from_training(checkpoint.training)
    if calibration_tasks > 0:
        policy.calibration = calibrate(
            policy, family, trained, seed=lineage.config.seed, num_tasks=calibration_tasks
        )
    card = {
        "command": "recursive self-improvement",
        "champion": lineage.champion,
        "generation": len(lineage.champions) - 1,
        "env_steps": lineage.env_steps,
        "ledger": head,
        "audit": audited if audited and audited["champion"] == lineage.champion else None,
        "verification": verify(policy, family, trained),
    }
    limits = {} if policy.calibration is None else asdict(policy.calibration)
    tensors = {n: v for n, v in checkpoint.tensors.items() if not n.startswith("optimizer.")}
    save_checkpoint(
        out,
        replace(checkpoint, tensors=tensors, calibration=limits, card=card, counters={}),
        new=True,
    )
    return card
