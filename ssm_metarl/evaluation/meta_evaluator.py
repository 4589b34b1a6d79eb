"""Evaluate a policy on held-out tasks: every arm on the same tasks and the same episodes.

Place in the flow: stage 7. Support data per task -> adapt -> greedy full-length episodes -> one
JSON object, which `report` draws. Support data and episodes are made in `episodes`.

The arms are paired, and support data are collected once and shared by all arms that use any.
An arm that does not apply is absent: ``hybrid`` without experience of the family, ``standard``
where the model has no outputs for the inner objective, was not trained for a gradient step or is
adapted already,
``in_context`` where it was not trained in context, the CartPole controllers elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import (
    EvaluationConfig,
    HybridAdaptationConfig,
    MetaTrainingConfig,
    StandardAdaptationConfig,
)
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.baselines import expert_actor, sign_probe_actor
from ssm_metarl.evaluation.episodes import (
    PURPOSE,
    MetaTrained,
    can_adapt,
    can_flip,
    check_family,
    collect_support,
    run_arm,
    run_trials,
    shuffle_actions,
    uniform_actor,
)
from ssm_metarl.evaluation.fixed_policy import FixedPolicy
from ssm_metarl.evaluation.least_squares import LeastSquaresActor
from ssm_metarl.evaluation.statistics import Summary, paired_interval, summarize, worst_tenth
from ssm_metarl.evaluation.worth import measure_worth
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.tasks.task_family import Split, TaskFamily, Tasks
from ssm_metarl.types import Actor, Params, Rollout
from ssm_metarl.version import __version__

SPREAD = (0.1, 0.9)
PAIRS = (
    ("in_context", "frozen"),
    ("both", "in_context"),
    ("standard", "frozen"),
    ("hybrid", "frozen"),
    ("hybrid", "standard"),
)
COST_SUPPORT = ("standard", "hybrid", "both", "sign_probe")
"""Arms that use the support data."""
TRIALS = ("in_context", "both", "least_squares")
"""Arms whose episodes follow each other in one trial."""
MAX_ARMS = 10
"""Most arms that an evaluation has, for progress bars."""

DEFINITIONS = {
    "support": "data of one task, collected before adapting: whole episodes, the last cut at "
    "support_steps environment steps, by support_policy (random: uniform actions; policy: the "
    "unadapted policy, sampled); all gradient steps reuse it",
    "env_steps": "environment steps spent on adapting, maximum over tasks",
    "returns": "undiscounted; greedy actions; full-length episodes; a task's score is the mean of "
    "its episodes; tasks that no training drew",
    "ood": "out of range in every parameter at once, uniform by length over the union",
    "iqm": "interquartile mean over tasks",
    "ci95": "95 % bootstrap interval over tasks, of one trained policy: of the IQM "
    "in arms, of the mean difference in paired",
    "worst10": "mean of the worst tenth of tasks",
    "frozen": "no gradient; hidden state reset every episode",
    "in_context": "no gradient; hidden state carried through one trial of all of a task's episodes",
    "both": "gradient steps on the support data, then hidden state carried through one trial",
    "by_episode": "scores of the trial's first episode, of its second, and so on",
    "standard": "gradient steps on the support data",
    "hybrid": "gradient steps on the support data and replayed experience, with an anchor at the "
    "meta-parameters",
    "replay_trust": "how far the replayed experience fitted the task, 0 to 1, mean over tasks",
    "random": "uniform actions",
    "fixed": "best fixed policy that a search found on training tasks",
    "steps_kept": "gradient steps kept, mean over tasks; num_steps were asked for",
    "rolled_back": "share of tasks on which a gradient step was undone",
    "lqr": "linear-quadratic regulator, told the task's parameters",
    "least_squares": "told nothing: identifies the plant by least squares and regulates what it "
    "found, carried through one trial",
    "sign_probe": "one fixed robust controller; the actuator's sign read off the support data",
}

Adapted = tuple[Params, list[AdaptationReport]]


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
    """Evaluate every arm that applies.

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
        differences with intervals, ``by_sign`` where the family hides one, ``definitions``, and
        ``worth`` where ``fixed`` is given.

    Raises:
        ValueError: The policy does not fit the family, or a setting is out of range.
    """
    policy = as_policy(policy)
    check_family(policy, family)
    trained = trained or MetaTrained()
    support_policy = config.support_policy or trained.support_policy
    standard = trained.adaptation(
        objective=config.objective,
        num_adapt_steps=config.num_adapt_steps,
        adapt_lr=config.adapt_lr,
        rollback=config.rollback,
    )
    hybrid = trained.hybrid(
        standard,
        experience_weight=config.experience_weight,
        replay=config.replay,
        proximal_weight=config.proximal_weight,
        seed=config.seed,
    )
    tasks = family.sample(config.split, config.num_tasks, seed=config.seed)
    support = collect_support(policy, tasks, config.support_steps, support_policy, seed=config.seed)
    if config.shuffle_actions:
        support = shuffle_actions(support, seed=config.seed)
    adapted: dict[str, Callable[[], Adapted]] = {}
    if trained.gradient and not policy.adapted:
        adapted = _adapted_params(policy, support, standard, hybrid, buffer)
    reports: dict[str, list[AdaptationReport]] = {}
    returns: dict[str, np.ndarray] = {}
    runs = _arms(policy, tasks, support, config, adapted, reports)
    if fixed is not None:
        runs["fixed"] = lambda: run_arm(
            tasks, fixed.actor(len(tasks), config.episodes_per_task), config
        )
    for arm, run in runs.items():
        if on_arm is not None:
            on_arm(arm)
        returns[arm] = run()
    cost = int(support.steps_taken().max())
    result: dict[str, Any] = {
        "model": model,
        "family": family.name,
        "split": config.split,
        "num_tasks": config.num_tasks,
        "seed": config.seed,
        "version": __version__,
        "arms": {
            arm: {
                **summarize(r, seed=config.seed),
                "env_steps": cost * (arm in COST_SUPPORT),
                **({"by_episode": _by_episode(r, config.seed)} if arm in TRIALS else {}),
            }
            for arm, r in returns.items()
        },
        "paired": _paired(returns, config.seed),
        "by_sign": _by_sign(tasks, returns),
        "adaptation": {
            arm: {
                "num_steps": config.num_adapt_steps,
                "steps_kept": float(np.mean([r.num_steps for r in arm_reports])),
                "rolled_back": float(np.mean([r.rolled_back is not None for r in arm_reports])),
                "loss_before": _mean_or_none([r.loss_before for r in arm_reports]),
                "loss_after": _mean_or_none([r.loss_after for r in arm_reports]),
                "replay_trust": _mean_trust(arm_reports),
            }
            for arm, arm_reports in reports.items()
        },
        "support_steps": config.support_steps,
        "support_policy": support_policy,
        "meta_trained_support_policy": trained.support_policy,
        "objective": standard.objective,
        "num_adapt_steps": config.num_adapt_steps,
        "adapt_lr": config.adapt_lr,
        "rollback": config.rollback,
        "shuffle_actions": config.shuffle_actions,
        "replay": config.replay,
        "proximal_weight": config.proximal_weight,
        "episodes_per_task": config.episodes_per_task,
        "definitions": DEFINITIONS,
    }
    if fixed is not None:
        result["worth"] = measure_worth(returns, seed=config.seed)
        result["worth"]["fixed_policy"] = fixed.as_dict()
    return result


def _adapted_params(
    policy: Policy,
    support: Rollout,
    standard: StandardAdaptationConfig,
    hybrid: HybridAdaptationConfig,
    buffer: ExperienceBuffer | None,
) -> dict[str, Callable[[], Adapted]]:
    """The adapting arms that apply: what computes each one's task parameters."""
    arms: dict[str, Callable[[], Adapted]] = {}
    if can_adapt(policy, standard.objective):
        arms["standard"] = lambda: StandardAdapter(standard).adapt_tasks(policy, support)
        if buffer is not None and len(buffer) > 0:
            arms["hybrid"] = lambda: HybridAdapter(hybrid).adapt_tasks(policy, support, buffer)
    return arms


def _arms(
    policy: Policy,
    tasks: Tasks,
    support: Rollout,
    config: EvaluationConfig,
    adapted: Mapping[str, Callable[[], Adapted]],
    reports: dict[str, list[AdaptationReport]],
) -> dict[str, Callable[[], np.ndarray]]:
    """What runs each arm that applies, in the order of the result; ``reports`` fills with it."""
    num_envs, meta = config.episodes_per_task, policy.meta_params()

    def run(make_actor: Callable[[], Actor]) -> Callable[[], np.ndarray]:
        return lambda: run_arm(tasks, make_actor(), config)

    def trial(make_actor: Callable[[], Actor]) -> Callable[[], np.ndarray]:
        return lambda: run_trials(tasks, make_actor(), config)

    def adapting(arm: str) -> Actor:
        params, reports[arm] = adapted[arm]()
        return policy.actor(params, len(tasks), num_envs)

    arms = {"frozen": run(lambda: policy.actor(meta, len(tasks), num_envs))}
    if policy.in_context:
        arms["in_context"] = trial(lambda: policy.actor(meta, len(tasks), 1))
    for arm in adapted:
        arms[arm] = run(partial(adapting, arm))
    if policy.in_context and "standard" in adapted:
        arms["both"] = trial(lambda: policy.actor(adapted["standard"]()[0], len(tasks), 1))
    arms["random"] = run(lambda: uniform_actor(tasks, config))
    if tasks.family.experts:
        arms[next(iter(tasks.family.experts))] = run(lambda: expert_actor(tasks, num_envs))
        if policy.in_context:  # which is what an arm without training should be compared with
            arms["least_squares"] = trial(lambda: LeastSquaresActor(tasks.family, len(tasks), 1))
    if can_flip(tasks.family):
        arms["sign_probe"] = run(lambda: sign_probe_actor(support, num_envs))
    return arms


def _by_episode(returns: np.ndarray, seed: int) -> list[Summary]:
    """Scores of each episode of a trial, from returns (K, episodes)."""
    return [summarize(episode[:, None], seed=seed) for episode in returns.T]


def _mean_or_none(values: list[float]) -> float | None:
    """The mean, or None where steps that were too long left no finite number."""
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None


def _mean_trust(reports: list[AdaptationReport]) -> float | None:
    """The mean trust in replayed experience; None for an arm without."""
    trusts = [r.replay_trust for r in reports if r.replay_trust is not None]
    return float(np.mean(trusts)) if trusts else None


def _paired(returns: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    pairs = {}
    for arm, reference in PAIRS:
        if arm in returns and reference in returns:
            difference = returns[arm].mean(axis=1) - returns[reference].mean(axis=1)
            pairs[f"{arm}-{reference}"] = {
                "mean": float(difference.mean()),
                "ci95": list(paired_interval(difference, seed=seed)),
            }
    return pairs


def _by_sign(tasks: Tasks, returns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Mean and worst tenth of each arm for either direction of a hidden actuator."""
    if "sign" not in tasks.values:
        return {}
    sign = tasks.values["sign"].numpy()
    result: dict[str, Any] = {}
    for value in sorted(set(sign.tolist())):
        scores = {arm: r[sign == value].mean(axis=1) for arm, r in returns.items()}
        result[f"{value:+g}"] = {
            arm: {"mean": float(s.mean()), "worst10": worst_tenth(s)} for arm, s in scores.items()
        }
    return result


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
    config = EvaluationConfig(num_tasks=num_tasks, episodes_per_task=1, seed=1)
    trained = MetaTrained.from_training(asdict(training))
    point: dict[str, float] = {}
    splits: tuple[tuple[Split, str], ...] = (("id", ""), ("ood", "ood_"))
    for split, prefix in splits:
        tasks = family.sample(split, num_tasks, seed=config.seed)
        arms: dict[str, Params] = {}
        if trained.gradient:
            support = collect_support(
                policy, tasks, config.support_steps, trained.support_policy, seed=config.seed
            )
            adapted, _ = StandardAdapter(trained.adaptation()).adapt_tasks(policy, support)
            arms[f"{prefix}adapted"] = adapted
        if split == "id" or not trained.gradient:
            arms[f"{prefix}frozen"] = policy.meta_params()
        for name, params in arms.items():
            returns = run_arm(tasks, policy.actor(params, num_tasks, 1), config)
            scores, (low, high) = summarize(returns), np.quantile(returns, SPREAD)
            point |= {
                f"{name}_mean": scores["mean"],
                f"{name}_iqm": scores["iqm"],
                f"{name}_q10": float(low),
                f"{name}_q90": float(high),
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
    config = EvaluationConfig(num_tasks=num_tasks, episodes_per_task=trial_episodes, seed=1)
    point = {}
    splits: tuple[tuple[Split, str], ...] = (("id", ""), ("ood", "ood_"))
    for split, prefix in splits:
        tasks = family.sample(split, num_tasks, seed=config.seed)
        returns = run_trials(tasks, policy.actor(policy.meta_params(), num_tasks, 1), config)
        for number, scores in enumerate(_by_episode(returns, config.seed), start=1):
            point[f"{prefix}episode_{number}_mean"] = scores["mean"]
            point[f"{prefix}episode_{number}_iqm"] = scores["iqm"]
    return point


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
    params: Params = policy.meta_params()
    frozen = run_arm(tasks, policy.actor(params, 10, 1), config)
    adapts = trained.gradient and can_adapt(policy, trained.objective)
    support_steps = config.support_steps if adapts else 0
    if support_steps > 0:
        support = collect_support(policy, tasks, support_steps, trained.support_policy, seed=seed)
        params, _ = StandardAdapter(trained.adaptation()).adapt_tasks(policy, support)
    with closing(make_worlds(tasks, 1, seed=seed, purpose=PURPOSE)) as worlds:
        rollout = collect_rollout(worlds, policy.actor(params, 10, 1), worlds.max_episode_steps)
    returns = rollout.episode_returns()[:, 0].double()
    return {
        "episodes": config.num_tasks,
        "seed": seed,
        "support_steps": support_steps,
        "mean": float(returns.mean()),
        "std": float(returns.std(correction=0)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "steps": torch.flatten(rollout.steps_taken()).tolist(),
        "frozen_mean": float(frozen.mean()),
    }
