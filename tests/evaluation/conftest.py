"""Small untrained policies whose adaptation changes what they do."""

from __future__ import annotations

import torch

from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.tasks.cartpole import CARTPOLE


def untrained_policy(*, inner_lr: float, action_scale: float) -> Policy:
    """A policy for CartPole, its action head enlarged so that small changes show."""
    small = MetaTrainingConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, CARTPOLE), seed=3, inner_lr=inner_lr)
    with torch.no_grad():
        policy.heads.action.weight.mul_(action_scale)
    return policy
