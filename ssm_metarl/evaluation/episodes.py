"""Support data and greedy episodes on held-out tasks: what every score is made of.

Place in the flow: stage 7, under `score`, which runs methods and keeps what they came to.

Episodes are keyed by (seed, purpose, task), never by the method: episode e of task k starts in the
same state whoever acts, and whether a task's episodes run side by side or follow each other. Two
methods differ in how they act and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssm_metarl import seeding
from ssm_metarl.compiled import threads_for_kernels
from ssm_metarl.config import EvaluationConfig, SupportPolicy
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import fingerprint, make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Actor, RewardedActor, Rollout

PURPOSE = "evaluation"


def check_family(policy: Policy, family: TaskFamily) -> None:
    """Raise ValueError unless the policy fits the family's observations and actions.

    A policy may be run on another family than its own, but not on another one of the same name.
    """
    check_declaration(policy.trained_on, family)
    obs_dim, space = family.spaces
    if (policy.obs_dim, policy.action_space) != (obs_dim, space):
        raise ValueError(
            f"model: expected one for {family.name} (observations of size {obs_dim}, {space}), "
            f"received one for observations of size {policy.obs_dim}, {policy.action_space}"
        )


def check_declaration(trained_on: tuple[str, str] | None, family: TaskFamily) -> None:
    """Raise ValueError where a model was trained on another family of this one's name."""
    known = trained_on is not None and trained_on[0] == family.name
    if known and trained_on != (family.name, fingerprint(family)):
        raise ValueError(
            f"task family: expected {family.name!r} as the model was trained on it, received "
            f"another of that name (other parameters, ranges, sizes or physics); hand over that "
            f"one, or give this one another name"
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


@dataclass(frozen=True)
class Episodes:
    """What the episodes of K tasks came to."""

    returns: np.ndarray
    """Shape (K, E), float64."""
    steps: np.ndarray
    """Environment steps taken, shape (K, E), int64."""

    @classmethod
    def of(cls, rollout: Rollout) -> Episodes:
        """Of a rollout whose environments ran one episode each, E = N."""
        returns: np.ndarray = rollout.episode_returns().double().numpy()
        return cls(returns, rollout.mask.sum(dim=0).numpy())


def run_episodes(
    tasks: Tasks, actor: Actor, num_episodes: int, *, seed: int, purpose: str = PURPOSE
) -> Episodes:
    """An actor's full-length episodes, side by side in as many environments a task."""
    with closing(make_worlds(tasks, num_episodes, seed=seed, purpose=purpose)) as worlds:
        return Episodes.of(collect_rollout(worlds, actor, worlds.max_episode_steps))


@threads_for_kernels()
@torch.no_grad()
def run_trial_episodes(
    tasks: Tasks,
    actor: Actor,
    num_episodes: int,
    *,
    seed: int,
    purpose: str = PURPOSE,
    first_steps: int | None = None,
) -> Episodes:
    """The same episodes, one after the other in one trial a task.

    Args:
        tasks: K tasks.
        actor: Of one environment a task; its memory runs through the whole trial.
        num_episodes: E.
        seed: Names the initial states, which are those of `run_episodes`.
        purpose: Likewise.
        first_steps: Steps after which the first episode is cut; None lets it run to its end.
    """
    with closing(
        make_worlds(tasks, 1, seed=seed, purpose=purpose, trial_episodes=num_episodes)
    ) as worlds:
        returns = torch.zeros(len(tasks), num_episodes + 1, dtype=torch.float64)
        taken = torch.zeros(len(tasks), num_episodes + 1, dtype=torch.int64)
        episode = torch.zeros(len(tasks), dtype=torch.int64)
        rows = torch.arange(len(tasks))
        obs, reset = worlds.reset(), torch.ones(len(tasks), 1, dtype=torch.bool)
        steps = 0
        while bool((episode < num_episodes).any()):
            action, _ = actor(obs, reset)
            step = worlds.step(action)
            steps += 1
            if isinstance(actor, RewardedActor):
                actor.rewarded(step.reward)
            # Whoever is through with its trial goes on, in a column that nobody reads.
            returns[rows, episode] += step.reward[:, 0]
            taken[rows, episode] += 1
            reset = step.terminated | step.truncated
            if steps == first_steps:
                reset = reset | (episode == 0)[:, None]
            episode = (episode + reset[:, 0]).clamp(max=num_episodes)
            obs = worlds.reset(reset)
    return Episodes(returns[:, :-1].numpy(), taken[:, :-1].numpy())


def run_arm(tasks: Tasks, actor: Actor, config: EvaluationConfig) -> np.ndarray:
    """Returns of an actor's full-length episodes, shape (K, episodes_per_task)."""
    return run_episodes(tasks, actor, config.episodes_per_task, seed=config.seed).returns


def run_trials(
    tasks: Tasks, actor: Actor, config: EvaluationConfig, *, first_steps: int | None = None
) -> np.ndarray:
    """Returns of the ``episodes_per_task`` episodes of one trial a task, in their order."""
    return run_trial_episodes(
        tasks, actor, config.episodes_per_task, seed=config.seed, first_steps=first_steps
    ).returns


def first_disturbance(family: TaskFamily) -> Callable[[Tasks], Tasks] | None:
    """The first change that a family names; None where it names none."""
    return next(iter(family.disturbances.values()), None)


def plays_disturbed(policy: Policy, family: TaskFamily) -> bool:
    """Whether a policy, before adapting, earns more on the default plant under its disturbance.

    Meta-training leaves the unadapted policy anywhere between the two: it may know one direction of
    an actuator well. To disturb the plant *for it* is to give it the other one. False where the
    family names no disturbance.
    """
    disturb = first_disturbance(family)
    if disturb is None:
        return False

    def total(tasks: Tasks) -> float:
        actor = policy.actor(policy.meta_params(), 1, 1)
        return float(run_episodes(tasks, actor, 1, seed=0).returns[0, 0])

    return total(disturb(family.task())) > total(family.task())
