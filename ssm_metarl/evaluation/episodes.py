"""Support data and greedy episodes on held-out tasks: what every arm of an evaluation is made of.

Place in the flow: stage 7, under `meta_evaluator`, which runs the arms and sums them up.

Episodes are keyed by (seed, purpose, task), never by the arm: task k's initial states come from
task k's own stream, so two arms differ in how they act and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ssm_metarl import seeding
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.compiled import threads_for_kernels
from ssm_metarl.config import (
    EvaluationConfig,
    HybridAdaptationConfig,
    Objective,
    OnlineAdaptationConfig,
    ReplayWeights,
    StandardAdaptationConfig,
    SupportPolicy,
)
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import fingerprint, make_worlds, observation_and_action
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CartPoleDynamics
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Actor, FlatParams, Params, RewardedActor, Rollout, flatten

PURPOSE = "evaluation"


@dataclass(frozen=True)
class MetaTrained:
    """How a model was meta-trained, where an evaluation's defaults come from."""

    objective: Objective = "prediction"
    support_policy: SupportPolicy = "random"
    gamma: float = 0.99
    gae_lambda: float = 0.98
    experience_weight: float = 0.5
    gradient: bool = True
    """Whether for a gradient step: an in-context training prepares for none, and neither does one
    without inner steps."""

    @classmethod
    def from_training(cls, training: Mapping[str, Any]) -> MetaTrained:
        """From the training configuration in a checkpoint; empty gives the defaults."""
        if training.get("mode") == "in_context":
            return cls(gradient=False)
        known = {name: training[name] for name in cls.__dataclass_fields__ if name in training}
        return cls(**known, gradient=training.get("adaptation_steps") != 0)

    def adaptation(
        self,
        *,
        objective: Objective | None = None,
        num_adapt_steps: int = 1,
        adapt_lr: float | None = None,
        rollback: bool = True,
    ) -> StandardAdaptationConfig:
        """The inner step as it was meta-trained, but for what is given."""
        return StandardAdaptationConfig(
            objective=objective or self.objective,
            num_adapt_steps=num_adapt_steps,
            adapt_lr=adapt_lr,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            rollback=rollback,
        )

    def hybrid(
        self,
        standard: StandardAdaptationConfig,
        *,
        experience_weight: float | None = None,
        replay: ReplayWeights = "propensity",
        proximal_weight: float = HybridAdaptationConfig.proximal_weight,
        seed: int = 0,
    ) -> HybridAdaptationConfig:
        """The same inner step on replayed experience too, weighed as it was meta-trained."""
        weight = self.experience_weight if experience_weight is None else experience_weight
        return HybridAdaptationConfig(
            **asdict(standard),
            experience_weight=weight,
            replay=replay,
            proximal_weight=proximal_weight,
            seed=seed,
        )

    def online(self) -> OnlineAdaptationConfig:
        """Adapting inside an episode, with gradient steps only where it was trained for one."""
        return OnlineAdaptationConfig(num_adapt_steps=1 if self.gradient else 0)


def check_family(policy: Policy, family: TaskFamily) -> None:
    """Raise ValueError unless the policy fits the family's observations and actions.

    A policy may be run on another family than its own, but not on another one of the same name.
    """
    check_declaration(policy.trained_on, family)
    obs_dim, space = observation_and_action(family)
    if (policy.obs_dim, policy.action_space) != (obs_dim, space):
        raise ValueError(
            f"model: expected one for {family.name} (observations of size {obs_dim}, {space}), "
            f"received one for observations of size {policy.obs_dim}, {policy.action_space}"
        )


def check_declaration(trained_on: tuple[str, str] | None, family: TaskFamily) -> None:
    """Raise ValueError where a model was trained on another family of this one's name.

    Args:
        trained_on: As in `Policy`.
        family: Which is it?
    """
    if trained_on is None or trained_on[0] != family.name:
        return
    if trained_on[1] != fingerprint(family):
        raise ValueError(
            f"task family: expected {family.name!r} as the model was trained on it, received "
            f"another of that name (other parameters, ranges, sizes or physics); hand over that "
            f"one, or give this one another name"
        )


def can_adapt(policy: Policy, objective: Objective) -> bool:
    """Whether the policy has the outputs that the inner objective needs."""
    return objective != "prediction" or len(policy.heads.predicted_dims) > 0


def can_flip(family: TaskFamily) -> bool:
    """Whether a family has CartPole's state, to be drawn, and an actuator that can be flipped."""
    return isinstance(family.dynamics, CartPoleDynamics) and any(
        parameter.name == "sign" for parameter in family.parameters
    )


def collect_support(
    policy: Policy,
    tasks: Tasks,
    num_steps: int,
    support_policy: SupportPolicy,
    *,
    seed: int,
    purpose: str = PURPOSE,
) -> Rollout:
    """Support data of K tasks: ``num_steps`` environment steps each, one environment a task."""
    with closing(make_worlds(tasks, 1, seed=seed, purpose=f"{purpose}-support")) as worlds:
        noise = TaskNoise(seed, f"{purpose}-support-action", tasks.indices)
        actor = (
            random_actor(worlds, noise, num_steps)
            if support_policy == "random"
            else policy.actor(policy.meta_params(), len(tasks), 1, noise=noise, num_steps=num_steps)
        )
        return collect_rollout(worlds, actor, num_steps, autoreset=True)


def shuffle_actions(rollout: Rollout, *, seed: int) -> Rollout:
    """Support data that lie: each task's actions in another order, everything else as it was.

    Args:
        rollout: One environment a task, every step taken, (T, K, 1).
        seed: Names the orders.
    """
    action = rollout.action.clone()
    for k in range(rollout.num_tasks):
        rng = seeding.generator(seed, f"{PURPOSE}-shuffle", k)
        action[:, k] = action[torch.from_numpy(rng.permutation(rollout.num_steps)), k]
    return replace(rollout, action=action)


def run_arm(tasks: Tasks, actor: Actor, config: EvaluationConfig) -> np.ndarray:
    """Returns of an actor's full-length episodes, shape (K, episodes_per_task)."""
    with closing(
        make_worlds(tasks, config.episodes_per_task, seed=config.seed, purpose=PURPOSE)
    ) as worlds:
        rollout = collect_rollout(worlds, actor, worlds.max_episode_steps)
    returns: np.ndarray = rollout.episode_returns().double().numpy()
    return returns


@threads_for_kernels()
@torch.no_grad()
def run_trials(
    tasks: Tasks, actor: Actor, config: EvaluationConfig, *, first_steps: int | None = None
) -> np.ndarray:
    """Returns of the ``episodes_per_task`` episodes of one trial a task.

    Args:
        tasks: K tasks.
        actor: Of one environment a task; its memory runs through the whole trial.
        config: Names the episodes.
        first_steps: Steps after which the first episode is cut; None lets it run to its end.

    Returns:
        Shape (K, episodes_per_task), in the order in which a task's episodes followed each other.
    """
    with closing(make_worlds(tasks, 1, seed=config.seed, purpose=f"{PURPOSE}-trial")) as worlds:
        returns = torch.zeros(len(tasks), config.episodes_per_task + 1, dtype=torch.float64)
        episode = torch.zeros(len(tasks), dtype=torch.int64)
        obs, reset = worlds.reset(), torch.ones(len(tasks), 1, dtype=torch.bool)
        steps = 0
        while bool((episode < config.episodes_per_task).any()):
            action, _ = actor(obs, reset)
            step = worlds.step(action)
            steps += 1
            if isinstance(actor, RewardedActor):
                actor.rewarded(step.reward)
            # Whoever is through with its trial goes on, in a column that nobody reads.
            returns[torch.arange(len(tasks)), episode] += step.reward[:, 0]
            reset = step.terminated | step.truncated
            if steps == first_steps:
                reset = reset | (episode == 0)[:, None]
            episode = (episode + reset[:, 0]).clamp(max=config.episodes_per_task)
            obs = worlds.reset(reset)
    return returns[:, :-1].numpy()


def uniform_actor(tasks: Tasks, config: EvaluationConfig) -> Actor:
    """Uniform actions, from streams that belong to the tasks."""
    with closing(
        make_worlds(tasks, config.episodes_per_task, seed=config.seed, purpose=PURPOSE)
    ) as worlds:
        noise = TaskNoise(config.seed, f"{PURPOSE}-random", tasks.indices)
        return random_actor(worlds, noise, worlds.max_episode_steps)


def episodes_of(
    policy: Policy,
    params: Sequence[Params],
    tasks: Tasks,
    *,
    num_episodes: int,
    seed: int,
    max_steps: int | None = None,
) -> Rollout:
    """Greedy episodes of several sets of parameters on one task, from the same initial states.

    Args:
        policy: Whose parameters they are.
        params: Shared parameters, or those of one task (K = 1), once for each set.
        tasks: One task.
        num_episodes: N.
        seed: Names the initial states.
        max_steps: Longest episode; None for the family's own limit.

    Returns:
        A rollout whose task axis is that of ``params``, (T, len(params), N).
    """
    shapes = policy.step_sizes().shapes
    flat = torch.stack([flatten(p, shapes).reshape(-1).detach() for p in params])
    same = tasks[[0] * len(params)]
    with closing(
        make_worlds(same, num_episodes, seed=seed, purpose=PURPOSE, max_episode_steps=max_steps)
    ) as worlds:
        actor = policy.actor(FlatParams(flat, shapes), len(params), num_episodes)
        return collect_rollout(worlds, actor, worlds.max_episode_steps)


def trial_episodes(
    policy: Policy,
    params: Params,
    tasks: Tasks,
    *,
    num_trials: int,
    num_episodes: int,
    seed: int,
) -> list[Rollout]:
    """Greedy episodes that follow each other in trials of one task, each with a memory of its own.

    Args:
        policy: In context; it remembers all episodes of a trial.
        params: Shared parameters, or those of one task.
        tasks: One task.
        num_trials: N, side by side. Their first episodes start as those of `episodes_of`.
        num_episodes: Of a trial.
        seed: Names the initial states.

    Returns:
        The trials' first episodes, their second ones and so on, a rollout (T, 1, N) each.
    """
    with closing(make_worlds(tasks, num_trials, seed=seed, purpose=PURPOSE)) as worlds:
        actor = policy.actor(params, 1, num_trials)
        steps = num_episodes * worlds.max_episode_steps
        rollout = collect_rollout(worlds, actor, steps, autoreset=True)
    number = rollout.reset.long().cumsum(dim=0) - 1  # (T, 1, N)

    def episode(wanted: int) -> Rollout:
        inside = number == wanted
        order = torch.argsort((~inside).to(torch.int8), dim=0, stable=True)
        order = order[: int(inside.sum(dim=0).max())]
        return replace(rollout, mask=inside).map(
            lambda x: torch.take_along_dim(x, order.view(*order.shape, *(1,) * (x.dim() - 3)), 0)
        )

    return [episode(wanted) for wanted in range(num_episodes)]


def played_direction(policy: Policy, family: TaskFamily, *, max_steps: int = 100) -> float:
    """The actuator's sign that a policy plays better before adapting, on the default plant.

    Meta-training leaves the unadapted policy anywhere between the two: it may know one direction
    well. To flip the actuator *for it* is to give it the other one.

    Raises:
        ValueError: A family without CartPole's state or without ``sign`` (see `can_flip`).
    """
    if not can_flip(family):
        raise ValueError(
            f"direction: expected a family with CartPole's state and a parameter 'sign', "
            f"received {family.name!r}"
        )

    def steps(sign: float) -> int:
        rollout = episodes_of(
            policy, [policy.meta_params()], family.task({"sign": sign}),
            num_episodes=1, seed=0, max_steps=max_steps,
        )  # fmt: skip
        return int(rollout.steps_taken()[0])

    return max((1.0, -1.0), key=steps)


def flip_trajectories(
    policy: Policy,
    family: TaskFamily,
    *,
    support_steps: int,
    trained: MetaTrained,
    seed: int,
    num_adapt_steps: int = 1,
    adapt_lr: float | None = None,
    rollback: bool = True,
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """One episode before and one after adapting to the default plant, its actuator the wrong way.

    An unadapted policy may play one direction of the actuator well; the other one is shown.

    Returns:
        The states that the steps led to before and after, each (T, 4), and the task's parameters.

    Raises:
        ValueError: A family without CartPole's state or without ``sign`` (see `can_flip`).
    """
    if not can_flip(family):
        raise ValueError(
            f"flip: expected a family with CartPole's state and a parameter 'sign', "
            f"received {family.name!r}"
        )

    def states(params: Params, tasks: Tasks) -> np.ndarray:
        with closing(make_worlds(tasks, 1, seed=seed, purpose=f"{PURPOSE}-flip")) as worlds:
            rollout = collect_rollout(worlds, policy.actor(params, 1, 1), worlds.max_episode_steps)
        result: np.ndarray = rollout.next_obs[rollout.mask].numpy()
        return result

    directions = (family.task({"sign": sign}) for sign in (-1.0, 1.0))
    before, tasks = min(
        ((states(policy.meta_params(), tasks), tasks) for tasks in directions),
        key=lambda pair: len(pair[0]),
    )
    support = collect_support(policy, tasks, support_steps, trained.support_policy, seed=seed)
    config = trained.adaptation(
        num_adapt_steps=num_adapt_steps, adapt_lr=adapt_lr, rollback=rollback
    )
    adapted, _ = StandardAdapter(config).adapt_tasks(policy, support)
    return before, states(adapted, tasks), tasks.as_dicts()[0]
