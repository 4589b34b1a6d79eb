"""Evaluate a policy on held-out tasks: every method on the same tasks and the same episodes.

Place in the flow: stage 7, over `score`: a table of returns becomes one JSON object, which `report`
draws. A method that does not apply is absent, and ``absent`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.evaluation.episodes import check_family
from ssm_metarl.evaluation.score import Score, Table, score, support_for, support_if_used
from ssm_metarl.evaluation.statistics import mean_and_worst, mean_difference, summarize
from ssm_metarl.evaluation.worth import measure_worth
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.methods.fixed_policy import FixedPolicy
from ssm_metarl.methods.frozen import Frozen, InContext
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.methods.method import Method, Model
from ssm_metarl.methods.registry import applying, methods_for
from ssm_metarl.methods.standard import Standard
from ssm_metarl.tasks.task_family import Split, TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import Choice
from ssm_metarl.version import __version__

SPREAD = (0.1, 0.9)
SPLITS: tuple[tuple[Split, str], ...] = (("id", ""), ("ood", "ood_"))
"""And what a learning curve's columns of each begin with."""
SETTINGS = (
    "num_adapt_steps", "adapt_lr", "rollback", "shuffle_actions", "replay", "proximal_weight",
    "episodes_per_task",
)  # fmt: skip
"""Those of an evaluation that its result repeats as they are."""

DEFINITIONS = {
    "support": "data of one task, collected before adapting: whole episodes, the last cut at "
    "support_steps environment steps, by support_policy (random: uniform actions; policy: the "
    "unadapted policy, sampled); all gradient steps reuse it",
    "env_steps": "environment steps spent on adapting, maximum over tasks",
    "returns": "undiscounted; greedy actions; full-length episodes, the same initial states for "
    "every arm; a task's score is the mean of its episodes; tasks that no training drew",
    "ood": "out of range in every parameter at once, uniform by length over the union",
    "iqm": "interquartile mean over tasks",
    "ci95": "95 % bootstrap interval over tasks, of one trained policy: of the IQM "
    "in arms, of the mean difference in paired",
    "worst10": "mean of the worst tenth of tasks",
    "by_episode": "scores of the trial's first episode, of its second, and so on",
    "by_category": "scores of the tasks of either value of a parameter that has two; the first "
    "such parameter's stand beside it under its own name",
    "absent": "methods that do not apply, and why",
    "return_bounds": "least and greatest return possible; null where the family does not say",
    "replay_trust": "how far the replayed experience fitted the task, 0 to 1, mean over tasks",
    "steps_kept": "gradient steps kept, mean over tasks; num_steps were asked for",
    "rolled_back": "share of tasks on which a gradient step was undone",
}
"""Of what every evaluation has; beside these stand those of its methods."""


@usual_modes()
def evaluate(
    policy: Policy | StateSpaceModel,
    family: TaskFamily,
    config: EvaluationConfig,
    *,
    model: str,
    trained: MetaTrained | None = None,
    buffer: ExperienceBuffer | None = None,
    fixed: FixedPolicy | None = None,
    on_arm: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Evaluate every method that applies.

    Args:
        policy: Under evaluation; stays untouched.
        family: Whose held-out tasks are drawn.
        config: Split, tasks, support and steps.
        model: What the model is called in the result.
        trained: How it was meta-trained.
        buffer: Experience of this family for the hybrid arm, which is absent without.
        fixed: The best fixed policy known: adds the arm ``fixed``, and ``worth`` to the result.
        on_arm: Called with the name of each arm before it runs.

    Returns:
        One JSON-ready object: ``arms`` with mean, iqm, ci95, worst10 and env_steps, ``paired``
        differences with intervals, ``by_category`` where the family hides one of two values,
        ``definitions``, and ``worth`` where ``fixed`` is given.

    Raises:
        ValueError: The policy does not fit the family, or a setting is out of range.
    """
    policy = as_policy(policy)
    check_family(policy, family)
    subject = Model(policy, trained or MetaTrained(), buffer)
    every = methods_for(family, subject.trained, config, fixed=fixed)
    methods, absent = applying(every, subject, family)
    tasks = family.sample(config.split, config.num_tasks, seed=config.seed)
    table = score(
        methods,
        subject,
        tasks,
        support_for(subject, tasks, config),
        num_episodes=config.episodes_per_task,
        seed=config.seed,
        on_method=on_arm,
    )
    by_category = _by_category(tasks, table)
    result: dict[str, Any] = {
        "model": model,
        "family": family.name,
        "split": config.split,
        "num_tasks": config.num_tasks,
        "seed": config.seed,
        "version": __version__,
        "arms": {name: _arm(row, config.seed) for name, row in table.items()},
        "paired": _paired(table, config.seed),
        **{f"by_{name}": scores for name, scores in list(by_category.items())[:1]},
        "by_category": by_category,
        "adaptation": {
            name: _adaptation(row.reports, config.num_adapt_steps)
            for name, row in table.items()
            if row.reports
        },
        "absent": absent,
        "return_bounds": None if family.return_bounds is None else list(family.return_bounds),
        "support_steps": config.support_steps,
        "support_policy": config.support_policy or subject.trained.support_policy,
        "meta_trained_support_policy": subject.trained.support_policy,
        "objective": config.objective or subject.trained.objective,
        **{name: getattr(config, name) for name in SETTINGS},
        "definitions": DEFINITIONS | {method.name: method.definition for method in every},
    }
    if fixed is not None:
        result["worth"] = measure_worth(table, seed=config.seed)
        result["worth"]["fixed_policy"] = fixed.as_dict()
    return result


def _arm(row: Score, seed: int) -> dict[str, Any]:
    """A method's statistics; of a trial those of each of its episodes, too."""
    arm = summarize(row.returns, seed=seed) | {"env_steps": int(row.env_steps.max())}
    return arm | ({"by_episode": _by_episode(row, seed)} if row.method.trial else {})


def _by_episode(row: Score, seed: int) -> list[dict[str, Any]]:
    return [summarize(episode[:, None], seed=seed) for episode in row.returns.T]


def _adaptation(reports: Sequence[AdaptationReport], num_steps: int) -> dict[str, Any]:
    trusts = [r.replay_trust for r in reports if r.replay_trust is not None]
    means: dict[str, Sequence[float]] = {
        "steps_kept": [r.num_steps for r in reports],
        "rolled_back": [r.rolled_back is not None for r in reports],
        "loss_before": [r.loss_before for r in reports],
        "loss_after": [r.loss_after for r in reports],
    }
    return {
        "num_steps": num_steps,
        **{name: _mean(values) for name, values in means.items()},
        "replay_trust": _mean(trusts) if trusts else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    """None where steps that were too long left no finite number."""
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None


def _paired(table: Table, seed: int) -> dict[str, Any]:
    return {
        f"{name}-{other}": mean_difference(row.per_task - table[other].per_task, seed=seed)
        for name, row in table.items()
        for other in row.method.pairs
        if other in table
    }


def _by_category(tasks: Tasks, table: Table) -> dict[str, Any]:
    """Mean and worst tenth of each method for either value of parameters that have two."""
    result: dict[str, Any] = {}
    for parameter in tasks.family.parameters:
        if isinstance(parameter.id, Choice) and len(parameter.id.values) == 2:
            values = tasks.values[parameter.name].numpy()
            result[parameter.name] = {
                f"{value:+g}": {
                    name: mean_and_worst(row.per_task[values == value])
                    for name, row in table.items()
                }
                for value in sorted(set(values.tolist()))
            }
    return result


CURVE_SEED = 1


@usual_modes()
def learning_curve_point(
    policy: Policy, family: TaskFamily, training: MetaTrainingConfig, *, num_tasks: int = 40
) -> dict[str, float]:
    """Return on a few held-out tasks, one episode each: a look on the way.

    Returns:
        ``adapted_mean``, ``_iqm``, ``_q10`` and ``_q90`` (eight of ten tasks lie between the last
        two) and the same of ``frozen`` on ID tasks, and of ``ood_adapted``; of a training without
        inner steps ``frozen`` and ``ood_frozen``.
    """
    model = Model(policy, MetaTrained.from_training(asdict(training)))
    methods: dict[str, Method] = {"frozen": Frozen()}
    if model.trained.gradient:
        methods = {"adapted": Standard(model.trained.adaptation()), "frozen": Frozen()}
    point: dict[str, float] = {}
    for split, prefix in SPLITS:
        shown = list(methods.items())[: None if split == "id" else 1]
        rows = _few_tasks([method for _, method in shown], model, family, split, num_tasks, 1)
        for (name, _), row in zip(shown, rows, strict=True):
            scores, (low, high) = summarize(row.returns), np.quantile(row.returns, SPREAD)
            point |= {
                f"{prefix}{name}_mean": scores["mean"],
                f"{prefix}{name}_iqm": scores["iqm"],
                f"{prefix}{name}_q10": float(low),
                f"{prefix}{name}_q90": float(high),
            }
    return point


@usual_modes()
def in_context_curve_point(
    policy: Policy, family: TaskFamily, *, num_tasks: int = 40, trial_episodes: int = 2
) -> dict[str, float]:
    """Return of the episodes of one trial on a few held-out tasks: a look on the way.

    Returns:
        ``episode_1_mean``, ``episode_1_iqm``, ``episode_2_mean``, ... on ID tasks, and
        ``ood_episode_1_mean``, ...
    """
    model = Model(policy, MetaTrained(gradient=False))
    point: dict[str, float] = {}
    for split, prefix in SPLITS:
        (row,) = _few_tasks([InContext()], model, family, split, num_tasks, trial_episodes)
        for number, scores in enumerate(_by_episode(row, CURVE_SEED), start=1):
            point |= {f"{prefix}episode_{number}_{kind}": scores[kind] for kind in ("mean", "iqm")}
    return point


def _few_tasks(
    methods: Sequence[Method],
    model: Model,
    family: TaskFamily,
    split: Split,
    num_tasks: int,
    num_episodes: int,
) -> list[Score]:
    """Scores of some methods on a few held-out tasks."""
    tasks = family.sample(split, num_tasks, seed=CURVE_SEED)
    support = support_if_used(methods, model, tasks, EvaluationConfig(seed=CURVE_SEED))
    return score(methods, model, tasks, support, num_episodes=num_episodes, seed=CURVE_SEED).scores


@usual_modes()
def verify(
    policy: Policy | StateSpaceModel, family: TaskFamily, trained: MetaTrained, *, seed: int = 0
) -> dict[str, Any]:
    """Ten seeded episodes, each on an ID task of its own, adapted from 20 environment steps.

    A model that was not trained for a gradient step, or without the outputs that its inner
    objective needs, runs them as it is.

    Returns:
        Mean, standard deviation, minimum and maximum of the returns, the episodes' lengths,
        and the returns of the same ten episodes without adapting.
    """
    policy = as_policy(policy)
    check_family(policy, family)
    config = EvaluationConfig(num_tasks=10, episodes_per_task=1, seed=seed)
    tasks = family.sample("id", config.num_tasks, seed=seed)
    model = Model(policy, trained)
    methods, _ = applying((Frozen(), Standard(trained.adaptation())), model, family)
    support = support_if_used(methods, model, tasks, config)
    table = score(methods, model, tasks, support, seed=seed)
    last = table.scores[-1]
    returns = last.per_task
    return {
        "episodes": config.num_tasks,
        "seed": seed,
        "support_steps": 0 if support is None else config.support_steps,
        "mean": float(returns.mean()),
        "std": float(torch.from_numpy(returns).std(correction=0)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "steps": last.episodes.steps[:, 0].tolist(),
        "frozen_mean": float(table["frozen"].returns.mean()),
    }


def agrees(measured: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Whether two results of `verify` are the same, numbers to one in ten thousand.

    Returns that are not whole numbers differ in their last digits from processor to processor, and
    from one compilation of the kernels to the next.
    """
    if measured.keys() != recorded.keys():
        return False
    pairs = [(np.asarray(value), np.asarray(recorded[name])) for name, value in measured.items()]
    return all(
        a.shape == b.shape and b.dtype.kind in "if" and np.allclose(a, b, rtol=1e-4, atol=0)
        for a, b in pairs
    )
