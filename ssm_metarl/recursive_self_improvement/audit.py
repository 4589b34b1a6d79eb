"""The audit: is the champion better, on tasks that no decision has ever seen?

Place in the flow: stage 8, after any generation. The vault's tasks have a stream of their own that
nothing but this reads. Three policies meet the same ones:

    champion         what the lineage has made
    generation 0     what it began with
    plain training   generation 0, trained on as it was for as many environment steps as the whole
                     lineage has spent: every candidate's training, and every evaluation

The difference to generation 0 says whether the lineage improved anything, the difference to plain
training whether all its proposing and testing was worth it. Both are reported, whichever way they
fall, with intervals over tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssm_metarl import seeding
from ssm_metarl.evaluation.statistics import paired_interval, summarize
from ssm_metarl.recursive_self_improvement.agent import RecursiveSelfImprovementAgent
from ssm_metarl.recursive_self_improvement.candidates import Training
from ssm_metarl.recursive_self_improvement.gate import PRIMARY
from ssm_metarl.recursive_self_improvement.generation import Outcome as Decision
from ssm_metarl.recursive_self_improvement.metrics import Measured, Measurement
from ssm_metarl.recursive_self_improvement.store import WeightStore, name_of
from ssm_metarl.recursive_self_improvement.worker import Outcome

SPLITS = {"id": "average_reward", "ood": PRIMARY}
TASKS_AT_ONCE = 100
REFERENCES = ("generation 0", "plain training")
FOLDER = "audit"
Scores = dict[str, NDArray[np.float64]]


def audit(
    agent: RecursiveSelfImprovementAgent,
    *,
    num_tasks: int | None = None,
    with_plain_training: bool = True,
    on_progress: Callable[[float, str], None] = lambda share, message: None,
) -> dict[str, Any]:
    """Measure champion, generation 0 and plain training on the vault.

    Args:
        agent: Its lineage is read; nothing of it changes but the audit that is kept with it.
        num_tasks: Vault tasks; None for the configuration's.
        with_plain_training: Whether to train generation 0 on for comparison, which takes about as
            long as the lineage did.
        on_progress: Called with a share in [0, 1] and what is going on.

    Returns:
        A JSON-ready object: ``arms`` and ``differences`` for each split.

    Raises:
        ValueError: A training or a measurement failed.
    """
    lineage = agent.lineage
    num_tasks = num_tasks or lineage.config.audit_tasks
    arms = {
        "champion": agent.store.get(lineage.champion),
        "generation 0": agent.store.get(lineage.first),
    }
    if with_plain_training and lineage.env_steps > 0:
        on_progress(0.0, f"plain training for {lineage.env_steps:,} environment steps")
        arms["plain training"] = _plain_training(agent)
    scores = _measure(agent, arms, num_tasks, on_progress)
    result = {
        "family": lineage.family,
        "num_tasks": num_tasks,
        "seed": lineage.config.seed,
        "generations": len(lineage.records),
        "outcomes": {str(o): lineage.count(o) for o in Decision},
        "env_steps": lineage.env_steps,
        "champion": lineage.champion,
        "arms": {
            arm: {split: summarize(arm_scores[split][:, None]) for split in SPLITS}
            for arm, arm_scores in scores.items()
        },
        "differences": {
            f"champion - {reference}": {
                split: _difference(scores["champion"][split] - scores[reference][split])
                for split in SPLITS
            }
            for reference in REFERENCES
            if reference in scores
        },
    }
    agent.ledger.keep_audit(lineage.champion, result)
    return result


def _plain_training(agent: RecursiveSelfImprovementAgent) -> bytes:
    """Generation 0, trained on for as many steps as the lineage has spent; made once."""
    lineage, folder = agent.lineage, agent.folder / FOLDER
    store = WeightStore(folder)
    made = folder / f"plain-{lineage.env_steps}.txt"
    if made.is_file() and store.path(made.read_text()).is_file():
        return store.get(made.read_text())
    rng = seeding.generator(lineage.config.seed, "rsi-plain-training")
    job = Training(
        parent=agent.store.get(lineage.first),
        family=agent.family,
        changes={},
        seed=int(rng.integers(2**31)),
        env_steps=lineage.env_steps,
        max_parameters=lineage.config.max_parameters,
        work=str(folder / f"plain-{lineage.env_steps}"),
    )
    (outcome,) = agent.executor.run([job])
    content: bytes = _value(outcome).weights
    temporary = made.with_suffix(".tmp")
    temporary.write_text(store.put(content))
    temporary.replace(made)
    return content


def _measure(
    agent: RecursiveSelfImprovementAgent,
    arms: dict[str, bytes],
    num_tasks: int,
    on_progress: Callable[[float, str], None],
) -> dict[str, Scores]:
    """Returns of every arm on every vault task, shape (num_tasks,) for each split."""
    config = agent.lineage.config
    distinct = {name_of(content): content for content in arms.values()}
    parts = [(name, start) for start in range(0, num_tasks, TASKS_AT_ONCE) for name in distinct]
    jobs = [
        Measurement(
            weights=distinct[name],
            family=agent.family,
            stream="vault",
            seed=config.seed,
            start=start,
            count=min(TASKS_AT_ONCE, num_tasks - start),
            with_curve=True,
            support_steps=config.support_steps,
            curve_steps=(config.support_steps,),
        )
        for name, start in parts
    ]
    done = 0

    def count(index: int, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        on_progress(done / len(jobs), f"{num_tasks} vault tasks, {len(distinct)} policies")

    outcomes = agent.executor.run(jobs, on_done=count)
    low = agent.lineage.bounds[0]
    measured: dict[str, list[Measured]] = {name: [] for name in distinct}
    for (name, _), outcome in zip(parts, outcomes, strict=True):
        measured[name].append(_value(outcome))

    def returns(name: str, metric: str) -> NDArray[np.float64]:
        scores = np.concatenate([m.scores[metric] for m in measured[name]])
        return np.where(np.isnan(scores), low, scores)

    return {
        arm: {split: returns(name_of(content), metric) for split, metric in SPLITS.items()}
        for arm, content in arms.items()
    }


def _value(outcome: Outcome) -> Any:
    if outcome.failure is not None:
        raise ValueError(
            f"audit: expected a result, received {outcome.failure}; run it again: plain training "
            f"goes on from its checkpoint"
        )
    return outcome.value


def _difference(difference: NDArray[np.float64]) -> dict[str, Any]:
    return {"mean": float(difference.mean()), "ci95": list(paired_interval(difference, seed=0))}
