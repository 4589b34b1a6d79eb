"""The gate's paired test on its own: is one model better than another?

Place in the flow: stage 8, for ``ssm-metarl evaluate --compare A B``. Both adapt to the same tasks,
from support data with the same random actions, and run the same episodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.config import EvaluationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.evaluation.episodes import check_family
from ssm_metarl.evaluation.score import score, support_for
from ssm_metarl.evaluation.statistics import paired_interval
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.methods.method import Model
from ssm_metarl.methods.standard import Standard
from ssm_metarl.recursive_self_improvement.gate import EProcess
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.version import __version__


def compare_models(
    models: tuple[tuple[Policy, MetaTrained], tuple[Policy, MetaTrained]],
    names: tuple[str, str],
    family: TaskFamily,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Compare two models on held-out tasks.

    Args:
        models: Both, each with how it was meta-trained.
        names: What they are called in the result.
        family: Whose tasks are drawn; it declares its ``return_bounds``.
        config: Split, tasks, support and steps.

    Returns:
        JSON-ready: means, the mean difference with its interval, and the e-value against "the
        first is no better". An e-value of 20 or more is evidence at the level 0.05; only on tasks
        that nothing was tuned or chosen on.

    Raises:
        ValueError: A model does not fit the family, or the family declares no bounds.
    """
    if family.return_bounds is None:
        raise ValueError(
            f"compare: expected a family that declares its return_bounds, received {family.name!r}"
        )
    low, high = family.return_bounds
    first, second = (adapted_returns(*model, family, config) for model in models)
    difference = first - second
    share = difference / (high - low)
    return {
        "models": list(names),
        "family": family.name,
        "split": config.split,
        "num_tasks": config.num_tasks,
        "seed": config.seed,
        "version": __version__,
        "means": [float(first.mean()), float(second.mean())],
        "difference": {
            "mean": float(difference.mean()),
            "ci95": list(paired_interval(difference, seed=config.seed)),
            "spread": float(difference.std()),
        },
        "e_value": e_value(share),
        "e_value_reversed": e_value(-share),
    }


def e_value(differences: NDArray[np.float64]) -> float:
    """Evidence against "the first is no better than the second"; its inverse is a p-value.

    Args:
        differences: Of every pair, as shares of the range of returns, shape (K,).
    """
    test = EProcess(0.0, 0.05)
    test.update(differences)
    return test.wealth


def adapted_returns(
    policy: Policy, trained: MetaTrained, family: TaskFamily, config: EvaluationConfig
) -> NDArray[np.float64]:
    """Mean return of each task's episodes after standard adaptation, shape (K,)."""
    check_family(policy, family)
    model = Model(policy, trained)
    tasks = family.sample(config.split, config.num_tasks, seed=config.seed)
    names = ("objective", "num_adapt_steps", "adapt_lr", "rollback")
    method = Standard(trained.adaptation(**{name: getattr(config, name) for name in names}))
    table = score(
        (method,), model, tasks, support_for(model, tasks, config),
        num_episodes=config.episodes_per_task, seed=config.seed,
    )  # fmt: skip
    return table.scores[0].per_task
