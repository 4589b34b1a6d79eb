"""Small policies, and support data from real CartPole tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import Rollout

ARCHITECTURES = {
    "diagonal": PolicyConfig(
        core="diagonal",
        state_dim=5,
        hidden_dim=6,
        num_layers=2,
        obs_scale=(0.5, 1.0, 5.0, 1.0),
        num_actions=2,
    ),
    "state_space": PolicyConfig(
        core="state_space",
        state_dim=4,
        hidden_dim=8,
        output_dim=4,
        obs_scale=(1.0,) * 4,
        num_actions=2,
        predicted_dims=(1, 3),
    ),
}


@pytest.fixture(params=ARCHITECTURES)
def policy(request: pytest.FixtureRequest) -> Policy:
    """A policy of either kind, off its nearly uniform start."""
    return make_policy(request.param)


@pytest.fixture
def make_support() -> Callable[..., Rollout]:
    """Random actions in tasks of the family: ``steps`` steps of each, episodes in a row."""

    def make(tasks: Tasks | int = 3, steps: int = 24, *, seed: int = 0) -> Rollout:
        if isinstance(tasks, int):
            tasks = CARTPOLE.sample("train", tasks, seed=seed)
        worlds = make_worlds(tasks, 1, seed=seed, purpose="test-support")
        actor = random_actor(worlds, TaskNoise(seed, "test-action", tasks.indices), steps)
        return collect_rollout(worlds, actor, steps, autoreset=True)

    return make


@pytest.fixture
def buffer(make_support: Callable[..., Rollout]) -> ExperienceBuffer:
    """Experience of eight training tasks."""
    buffer = ExperienceBuffer(1000)
    buffer.add(make_support(8, seed=7), range(8))
    return buffer


@pytest.fixture
def remembering() -> Policy:
    """A policy that adapts in context, and is also one for gradient steps."""
    return make_policy("diagonal", in_context=True)


def make_policy(kind: str, *, in_context: bool = False) -> Policy:
    config = replace(ARCHITECTURES[kind], in_context=in_context)
    policy = build_policy(config, seed=3, inner_lr=0.05)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.meta_params().values():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return policy
