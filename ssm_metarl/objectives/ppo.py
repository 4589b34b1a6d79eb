"""Proximal policy optimisation: the clipped gain of a step, the value's error, a batch's loss.

Place in the flow: `gae` gives the advantages; all trainers descend what is here, by the loop of
`meta_rl.gradient_steps` (Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9)::

    ratio = pi(a) / pi_old(a)      gain = min(ratio A, clip(ratio, 1 - c, 1 + c) A)
    loss  = -mean(gain) + value_coef mean((V - target)^2) - entropy_coef mean(entropy)

A good action (A > 0) earns nothing by becoming likelier than 1 + c, a bad one nothing by becoming
rarer than 1 - c, and either is drawn back from the other side without a limit.

The trap: exp(100) is infinite in float32, and 0 * inf in a gradient is NaN, so the *logarithm* of
the ratio is clamped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl.core.distributions import ActionDistribution
from ssm_metarl.core.policy import Policy
from ssm_metarl.objectives.policy_gradient import task_mean
from ssm_metarl.types import Params, Rollout

MAX_LOG_RATIO = 20.0


def clipped_gain(log_prob: Tensor, old: Tensor, advantage: Tensor, clip_coef: float) -> Tensor:
    """What each step earns, to be maximised, in the shape of all three.

    The log-probabilities are those of the action taken, under the policy and under the ``old``
    behaviour that took it; that one and the advantage have no gradient.
    """
    ratio = (log_prob - old).clamp(max=MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return torch.minimum(ratio * advantage, clipped * advantage)


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the predicted values, a scalar."""
    return (value - target).square().mean()


@dataclass(frozen=True)
class Guide:
    """A teacher's part in the outer loss: kickstarting (Schmitt et al. 2018, arXiv 1803.03835)."""

    distribution: ActionDistribution  # what it would do in the rollout's steps, (T, K, N), no grad
    weight: float  # of KL(teacher || policy), in nats a step


def clipped_policy_loss(
    policy: Policy,
    params: Params,
    rollout: Rollout,
    advantage: Tensor,
    *,
    clip_coef: float,
    entropy_coef: float,
    guide: Guide | None = None,
    expert: Tensor | None = None,
    imitation_coef: float = 0.0,
) -> Tensor:
    """The loss (K,) of each task's episodes, whose values are a linear baseline's (`returns`).

    Args:
        policy: Scores the actions taken.
        params: Shared or per-task parameters.
        rollout: Steps with the log-probabilities of the behaviour that took them.
        advantage: Shape (T, K, N), no gradient.
        clip_coef: As in :func:`clipped_gain`.
        entropy_coef: Weight of the entropy bonus.
        guide: A teacher to stay close to.
        expert: What an expert would have done in these steps, shape of the actions; None where
            nobody is imitated (Ross et al. 2011, arXiv 1011.0686).
        imitation_coef: Weight of the log-probability of that.
    """
    rollout = rollout.cleaned()
    distribution = policy.look(params, rollout).distribution
    advantage = torch.where(rollout.mask, advantage, torch.zeros_like(advantage))
    gain = clipped_gain(
        distribution.log_prob(rollout.action), rollout.log_prob, advantage, clip_coef
    )
    if entropy_coef > 0:
        gain = gain + entropy_coef * distribution.entropy()
    if guide is not None:
        gain = gain - guide.weight * guide.distribution.kl(distribution)
    if expert is not None:
        gain = gain + imitation_coef * distribution.log_prob(expert)
    return -task_mean(gain, rollout.mask)
