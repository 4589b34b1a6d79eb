"""Evaluate a policy on held-out tasks: every arm on the same tasks and the same episodes.

Place in the flow: stage 7. Support data per task -> adapt -> greedy full-length episodes -> one
JSON object, which `report` draws.

The arms are paired: task k's initial states come from task k's own stream, so arms differ in how
they act and in nothing else. Support data are collected once and shared by all arms that use any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import (
    EvaluationConfig,
    HybridAdaptationConfig,
    MetaTrainingConfig,
    Objective,
    StandardAdaptationConfig,
    SupportPolicy,
)
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.baselines import lqr_actor, sign_probe_actor
from ssm_metarl.evaluation.statistics import paired_interval, summarize
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Actor, Params, Rollout
from ssm_metarl.version import __version__

PURPOSE = "evaluation"
PAIRS = (("standard", "frozen"), ("hybrid", "frozen"), ("hybrid", "standard"))

DEFINITIONS = {
    "support": "data of one task, collected before adapting: whole episodes, the last cut at "
    "support_steps environment steps, by support_policy (random: uniform actions; policy: the "
    "unadapted policy, sampled); all gradient steps reuse it",
    "env_steps": "environment steps spent on adapting, maximum over tasks",
    "returns": "undiscounted; greedy actions; full-length episodes; a task's score is the mean of "
    "its episodes; tasks that no training drew",
    "ood": "out of range in every parameter at once, uniform by length over the union",
    "iqm": "interquartile mean over tasks",
    "ci95": "95 % stratified-bootstrap interval: of the IQM in arms, of the mean in paired",
    "worst10": "mean of the worst tenth of tasks",
    "frozen": "no gradient; hidden state reset every episode",
    "standard": "gradient steps on the support data",
    "hybrid": "gradient steps on the support data and replayed experience",
    "random": "uniform actions",
    "lqr": "linear-quadratic regulator, told the task's parameters",
    "sign_probe": "one fixed robust controller; the actuator's sign read off the support data",
}


@dataclass(frozen=True)
class MetaTrained:
    """How a model was meta-trained, where an evaluation's defaults come from."""

    objective: Objective = "prediction"
    support_policy: SupportPolicy = "random"

    @classmethod
    def from_training(cls, training: Mapping[str, Any]) -> MetaTrained:
        """From the training configuration in a checkpoint; empty gives the defaults."""
        known = {name: training[name] for name in cls.__dataclass_fields__ if name in training}
        return cls(**known)


def evaluate(
    policy: Policy,
    family: TaskFamily,
    config: EvaluationConfig,
    *,
    model: str,
    trained: MetaTrained | None = None,
    buffer: ExperienceBuffer | None = None,
    on_arm: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Evaluate every arm that applies.

    Args:
        policy: Under evaluation; stays untouched.
        family: Whose held-out tasks are drawn.
        config: Split, tasks, support and steps.
        model: What the model is called in the result.
        trained: How it was meta-trained.
        buffer: Experience for the hybrid arm, which is absent without.
        on_arm: Called with the name of each arm before it runs.

    Returns:
        One JSON-ready object: ``arms`` with mean, iqm, ci95, worst10 and env_steps, ``paired``
        differences with intervals, ``by_sign`` where the family hides one, ``definitions``.
    """
    trained = trained or MetaTrained()
    support_policy = config.support_policy or trained.support_policy
    tasks = family.sample(config.split, config.num_tasks, seed=config.seed)
    support = collect_support(policy, tasks, config.support_steps, support_policy, seed=config.seed)
    cost = int(support.steps_taken().max())
    standard = StandardAdaptationConfig(
        adapt_lr=config.adapt_lr,
        num_adapt_steps=config.num_adapt_steps,
        objective=config.objective or trained.objective,
    )
    returns: dict[str, np.ndarray] = {}
    env_steps: dict[str, int] = {}
    reports: dict[str, list[AdaptationReport]] = {}

    def run(arm: str, make_actor: Callable[[], Actor], steps: int) -> None:
        if on_arm is not None:
            on_arm(arm)
        returns[arm] = run_arm(tasks, make_actor(), config)
        env_steps[arm] = steps

    def acting(params: Params) -> Actor:
        return policy.actor(params, len(tasks), config.episodes_per_task)

    def adapted(arm: str, result: tuple[Params, list[AdaptationReport]]) -> Actor:
        reports[arm] = result[1]
        return acting(result[0])

    run("random", lambda: _random(tasks, config), 0)
    run("frozen", lambda: acting(policy.meta_params()), 0)
    run(
        "standard",
        lambda: adapted("standard", StandardAdapter(standard).adapt_tasks(policy, support)),
        cost,
    )
    if buffer is not None and len(buffer) > 0:
        hybrid = HybridAdapter(
            HybridAdaptationConfig(
                **asdict(standard), experience_weight=config.experience_weight, seed=config.seed
            )
        )
        run("hybrid", lambda: adapted("hybrid", hybrid.adapt_tasks(policy, support, buffer)), cost)
    if family.name == "cartpole":
        run("lqr", lambda: lqr_actor(tasks, config.episodes_per_task), 0)
        run("sign_probe", lambda: sign_probe_actor(support, config.episodes_per_task), cost)

    return {
        "model": model,
        "family": family.name,
        "split": config.split,
        "num_tasks": config.num_tasks,
        "seed": config.seed,
        "version": __version__,
        "arms": {
            arm: {**summarize(r, seed=config.seed), "env_steps": env_steps[arm]}
            for arm, r in returns.items()
        },
        "paired": _paired(returns, config.seed),
        "by_sign": _by_sign(tasks, returns),
        "adaptation": {
            arm: {
                "num_steps": config.num_adapt_steps,
                "loss_before": float(np.mean([r.loss_before for r in arm_reports])),
                "loss_after": float(np.mean([r.loss_after for r in arm_reports])),
            }
            for arm, arm_reports in reports.items()
        },
        "support_steps": config.support_steps,
        "support_policy": support_policy,
        "meta_trained_support_policy": trained.support_policy,
        "objective": standard.objective,
        "num_adapt_steps": config.num_adapt_steps,
        "adapt_lr": config.adapt_lr,
        "episodes_per_task": config.episodes_per_task,
        "definitions": DEFINITIONS,
    }


def learning_curve_point(
    policy: Policy, family: TaskFamily, training: MetaTrainingConfig, *, num_tasks: int = 40
) -> dict[str, float]:
    """Adapted and frozen return on a few held-out ID tasks, one episode each: a look on the way.

    Returns:
        ``adapted_mean``, ``adapted_iqm``, ``frozen_mean`` and ``frozen_iqm``.
    """
    config = EvaluationConfig(num_tasks=num_tasks, episodes_per_task=1, seed=1)
    trained = MetaTrained.from_training(asdict(training))
    tasks = family.sample("id", num_tasks, seed=config.seed)
    support = collect_support(
        policy, tasks, config.support_steps, trained.support_policy, seed=config.seed
    )
    adapter = StandardAdapter(StandardAdaptationConfig(objective=trained.objective))
    adapted, _ = adapter.adapt_tasks(policy, support)
    point = {}
    for name, params in (("adapted", adapted), ("frozen", policy.meta_params())):
        scores = summarize(run_arm(tasks, policy.actor(params, num_tasks, 1), config))
        point[f"{name}_mean"], point[f"{name}_iqm"] = scores["mean"], scores["iqm"]
    return point


def collect_support(
    policy: Policy, tasks: Tasks, num_steps: int, support_policy: SupportPolicy, *, seed: int
) -> Rollout:
    """Support data of K tasks: ``num_steps`` environment steps each, one environment a task."""
    worlds = make_worlds(tasks, 1, seed=seed, purpose=f"{PURPOSE}-support")
    noise = TaskNoise(seed, f"{PURPOSE}-support-action", tasks.indices)
    actor = (
        random_actor(worlds, noise, num_steps)
        if support_policy == "random"
        else policy.actor(policy.meta_params(), len(tasks), 1, noise=noise, num_steps=num_steps)
    )
    return collect_rollout(worlds, actor, num_steps, autoreset=True)


def run_arm(tasks: Tasks, actor: Actor, config: EvaluationConfig) -> np.ndarray:
    """Returns of an actor's full-length episodes, shape (K, episodes_per_task)."""
    worlds = make_worlds(tasks, config.episodes_per_task, seed=config.seed, purpose=PURPOSE)
    rollout = collect_rollout(worlds, actor, worlds.max_episode_steps)
    returns: np.ndarray = rollout.episode_returns().double().numpy()
    return returns


def _random(tasks: Tasks, config: EvaluationConfig) -> Actor:
    worlds = make_worlds(tasks, config.episodes_per_task, seed=config.seed, purpose=PURPOSE)
    noise = TaskNoise(config.seed, f"{PURPOSE}-random", tasks.indices)
    return random_actor(worlds, noise, worlds.max_episode_steps)


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
        summaries = {arm: summarize(r[sign == value]) for arm, r in returns.items()}
        result[f"{value:+g}"] = {
            arm: {"mean": s["mean"], "worst10": s["worst10"]} for arm, s in summaries.items()
        }
    return result


def flip_trajectories(
    policy: Policy, family: TaskFamily, *, support_steps: int, trained: MetaTrained, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """One episode before and one after adapting to the default plant with its actuator flipped.

    Returns:
        The states that the steps led to before and after, each (T, 4), and the task's parameters.
    """
    tasks = family.task({"sign": -1.0})
    support = collect_support(policy, tasks, support_steps, trained.support_policy, seed=seed)
    config = StandardAdaptationConfig(objective=trained.objective)
    adapted, _ = StandardAdapter(config).adapt_tasks(policy, support)
    episodes = []
    for params in (policy.meta_params(), adapted):
        worlds = make_worlds(tasks, 1, seed=seed, purpose=f"{PURPOSE}-flip")
        rollout = collect_rollout(worlds, policy.actor(params, 1, 1), worlds.max_episode_steps)
        episodes.append(rollout.next_obs[rollout.mask].numpy())
    return episodes[0], episodes[1], tasks.as_dicts()[0]


def verify(
    policy: Policy, family: TaskFamily, trained: MetaTrained, *, seed: int = 0
) -> dict[str, Any]:
    """Ten seeded episodes, each on an ID task of its own, adapted from 20 environment steps.

    Returns:
        Mean, standard deviation, minimum and maximum of the returns, the episodes' lengths,
        and the returns of the same ten episodes without adapting.
    """
    config = EvaluationConfig(num_tasks=10, episodes_per_task=1, seed=seed)
    tasks = family.sample("id", config.num_tasks, seed=seed)
    support = collect_support(
        policy, tasks, config.support_steps, trained.support_policy, seed=seed
    )
    adapter = StandardAdapter(StandardAdaptationConfig(objective=trained.objective))
    adapted, _ = adapter.adapt_tasks(policy, support)
    worlds = make_worlds(tasks, 1, seed=seed, purpose=PURPOSE)
    rollout = collect_rollout(worlds, policy.actor(adapted, 10, 1), worlds.max_episode_steps)
    frozen = run_arm(tasks, policy.actor(policy.meta_params(), 10, 1), config)
    returns = rollout.episode_returns()[:, 0].double()
    return {
        "episodes": config.num_tasks,
        "seed": seed,
        "support_steps": config.support_steps,
        "mean": float(returns.mean()),
        "std": float(returns.std(correction=0)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "steps": torch.flatten(rollout.steps_taken()).tolist(),
        "frozen_mean": float(frozen.mean()),
    }
