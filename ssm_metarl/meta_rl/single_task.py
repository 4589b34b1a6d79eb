"""Plain policy-gradient training on one environment: what meta-learning is measured against.

Place in the flow: stage 5, a sibling of `trainer` without tasks or inner steps. One update is

    N episodes in parallel  ->  advantages under a linear baseline  ->  clipped steps (PPO)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ssm_metarl.checkpoint import FILE_NAME, Checkpoint, save_checkpoint
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import SingleTaskConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.kept_environments import kept_environments
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.meta_maml import FINAL_LR_SHARE, TrainingDiverged
from ssm_metarl.objectives.policy_gradient import clipped_policy_loss
from ssm_metarl.objectives.returns import advantages
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Rollout


@dataclass(frozen=True)
class UpdateMetrics:
    """What one policy update did: a line of the training log."""

    episodes: int
    """Episodes finished since the start."""
    env_steps: int
    """Environment steps since the start."""
    average_return: float
    """Mean return of this update's episodes."""
    loss: float
    """Loss at the last gradient step."""


@usual_modes()
@torch.enable_grad()
@kept_environments()
def train_single_task(
    config: SingleTaskConfig,
    family: TaskFamily,
    on_update: Callable[[UpdateMetrics], None] | None = None,
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
    optimizer = torch.optim.Adam(policy.meta_params().values(), lr=config.lr, eps=1e-5)
    episodes = env_steps = 0
    while episodes < config.num_episodes:
        count = min(config.episodes_per_update, config.num_episodes - episodes)
        rollout = run_episodes(
            policy, family, count, seed=config.seed, purpose="single-task", index=episodes
        )
        advantage = advantages(
            rollout,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            obs_scale=policy.obs_scale,
        )
        for group in optimizer.param_groups:
            group["lr"] = config.lr * max(FINAL_LR_SHARE, 1 - episodes / config.num_episodes)
        for _ in range(config.update_epochs):
            loss = clipped_policy_loss(
                policy,
                policy.meta_params(),
                rollout,
                advantage,
                clip_coef=config.clip_coef,
                entropy_coef=config.entropy_coef,
            ).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise TrainingDiverged(
                    f"expected a finite loss and gradient, received loss {loss.item():g} and "
                    f"gradient norm {norm.item():g}"
                )
            optimizer.step()
        episodes += count
        env_steps += int(rollout.mask.sum())
        if on_update is not None:
            average = float(rollout.episode_returns().mean())
            on_update(UpdateMetrics(episodes, env_steps, average, loss.item()))
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
    """Run ``count`` whole episodes of the default task in parallel.

    Args:
        policy: Acts, sampled or greedily.
        family: Whose default task is run.
        count: N.
        seed: Seed of the episodes' randomness.
        purpose: Names it.
        index: Counter within the purpose; another one gives other episodes.
        greedy: Take the likeliest action instead of sampling.
    """
    tasks = Tasks(family, family.task().values, (index,))
    with closing(make_worlds(tasks, count, seed=seed, purpose=purpose)) as worlds:
        limit = worlds.max_episode_steps
        noise = None if greedy else TaskNoise(seed, f"{purpose}-action", tasks.indices)
        actor = policy.actor(policy.meta_params(), 1, count, noise=noise, num_steps=limit)
        return collect_rollout(worlds, actor, limit)


def save_single_task(
    out: Path, policy: Policy, config: SingleTaskConfig, result: dict[str, Any], command: str
) -> None:
    """Write the policy as a checkpoint; a training in ``out`` is not overwritten.

    Raises:
        ValueError: The folder holds a checkpoint already.
    """
    path = out / FILE_NAME
    if path.exists():
        raise ValueError(f"out: expected a folder without a checkpoint, received {out}")
    assert policy.config is not None
    save_checkpoint(
        path,
        Checkpoint(
            policy_config=asdict(policy.config),
            tensors={f"policy.{n}": v for n, v in policy.state_dict().items()},
            card={"command": command, "single_task": asdict(config), "result": result},
        ),
    )
