"""Plain policy-gradient training on one environment: what meta-learning is measured against.

Place in the flow: stage 5, a sibling of `trainer` without tasks or inner steps. One update is

    N episodes in parallel  ->  advantages under a linear baseline  ->  clipped steps (PPO)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import SingleTaskConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.kept_environments import kept_environments
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.gradient_steps import GradientSteps
from ssm_metarl.meta_rl.training_data import steps_in
from ssm_metarl.objectives.ppo import clipped_policy_loss
from ssm_metarl.objectives.returns import advantages
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Rollout

GREEDY_EPISODES = 50
"""Episodes that a trained policy is measured on."""


@dataclass(frozen=True)
class UpdateMetrics:
    """What one policy update did."""

    episodes: int
    """Episodes finished since the start."""
    env_steps: int
    """Environment steps since the start."""
    average_return: float
    """Mean return of this update's episodes."""


@usual_modes()
@torch.enable_grad()
@kept_environments()
def train_single_task(
    config: SingleTaskConfig,
    family: TaskFamily,
    on_update: Callable[[UpdateMetrics], None] = lambda metrics: None,
) -> Policy:
    """Train a policy on a family's default task.

    Args:
        config: The settings.
        family: Whose default task is trained on.
        on_update: Called after every update.

    Raises:
        TrainingDiverged: A loss or gradient is not finite.
    """
    policy = build_policy(architecture(config, family), seed=config.seed, inner_lr=0.01)
    steps = GradientSteps(policy.meta_params(), config.lr, config.max_grad_norm)
    episodes = env_steps = 0
    while episodes < config.num_episodes:
        count = min(config.episodes_per_update, config.num_episodes - episodes)
        rollout = run_episodes(
            policy, family, count, seed=config.seed, purpose="single-task", index=episodes
        )
        advantage = advantages(
            rollout, gamma=config.gamma, gae_lambda=config.gae_lambda, obs_scale=policy.obs_scale
        )

        def backward(rollout: Rollout = rollout, advantage: Tensor = advantage) -> Tensor:
            loss = clipped_policy_loss(
                policy,
                policy.meta_params(),
                rollout,
                advantage,
                clip_coef=config.clip_coef,
                entropy_coef=config.entropy_coef,
            ).mean()
            loss.backward()
            return loss.detach()

        steps.take([backward] * config.update_epochs, progress=episodes / config.num_episodes)
        episodes += count
        env_steps += int(rollout.mask.sum())
        on_update(UpdateMetrics(episodes, env_steps, float(rollout.episode_returns().mean())))
    return policy


@usual_modes()
def run_episodes(
    policy: Policy,
    family: TaskFamily,
    count: int,
    *,
    seed: int,
    purpose: str,
    index: int = 0,
    greedy: bool = False,
) -> Rollout:
    """Whole episodes of the default task, (T, 1, count); another ``index`` gives other ones."""
    tasks = Tasks(family, family.task().values, (index,))
    params = policy.meta_params()
    rollout, _ = steps_in(tasks, policy, params, count, seed=seed, purpose=purpose, greedy=greedy)
    return rollout


def greedy_figures(policy: Policy, family: TaskFamily, *, seed: int) -> dict[str, float]:
    """What `GREEDY_EPISODES` greedy episodes of the default task return."""
    purpose = "single-task-evaluation"
    rollout = run_episodes(policy, family, GREEDY_EPISODES, seed=seed, purpose=purpose, greedy=True)
    returns = rollout.episode_returns()
    return {
        "greedy_episodes": returns.numel(),
        "mean": float(returns.mean()),
        "std": float(returns.std(correction=0)),
        "min": float(returns.min()),
        "max": float(returns.max()),
    }
