"""Policy-gradient objectives: the inner one (likelihood ratio) and the outer one (clipped).

Place in the flow: `returns` gives the advantages; `adaptation.inner_loop` and
`meta_rl.meta_maml` take the loss's gradient.

The inner objective is advantage times the likelihood *ratio*, not times log pi: the ratio keeps
the dependence on the sampling distribution that second-order meta-gradients need (ProMP,
Rothfuss et al. 2019, arXiv 1810.06784, section 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssm_metarl.core.policy import Policy
from ssm_metarl.types import Params, Rollout

MAX_RATIO = 10.0  # behaviour far from the policy (random actions) must not dominate by one step
# Both losses clamp the *logarithm*: exp(100) is inf, and in a gradient 0 * inf is NaN.
MAX_LOG_RATIO = 20.0


def policy_gradient_loss(
    policy: Policy, params: Params, rollout: Rollout, advantage: Tensor
) -> Tensor:
    """Negative mean of ratio x advantage, for each task.

    Args:
        policy: Scores the actions taken.
        params: Shared or per-task parameters.
        rollout: Steps with the log-probabilities of the behaviour that took them.
        advantage: Shape (T, K, N), no gradient.

    Returns:
        Shape (K,).
    """
    log_ratio, _ = _score(policy, params, rollout)
    ratio = log_ratio.clamp(max=math.log(MAX_RATIO)).exp()
    advantage = torch.where(rollout.mask, advantage, torch.zeros_like(advantage))
    return -_task_mean(ratio * advantage, rollout.mask)


def clipped_policy_loss(
    policy: Policy,
    params: Params,
    rollout: Rollout,
    advantage: Tensor,
    *,
    clip_coef: float,
    entropy_coef: float,
) -> Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), for each task.

    Args:
        policy: Scores the actions taken.
        params: Shared or per-task parameters.
        rollout: Steps with the log-probabilities of the behaviour that took them.
        advantage: Shape (T, K, N), no gradient.
        clip_coef: The ratio counts within 1 - clip_coef and 1 + clip_coef.
        entropy_coef: Weight of the entropy bonus.

    Returns:
        Loss to minimise, shape (K,).
    """
    log_ratio, entropy = _score(policy, params, rollout)
    advantage = torch.where(rollout.mask, advantage, torch.zeros_like(advantage))
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    gain = torch.minimum(ratio * advantage, clipped * advantage) + entropy_coef * entropy
    return -_task_mean(gain, rollout.mask)


def _score(policy: Policy, params: Params, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Log-ratio of policy to behaviour and the policy's entropy, each (T, K, N)."""
    rollout = rollout.cleaned()
    hidden = policy.init_hidden(rollout.num_tasks, rollout.num_envs)
    out, _ = policy.unroll(params, rollout.obs, hidden, rollout.reset)
    log_prob = out.distribution.log_prob(rollout.action)
    return log_prob - rollout.log_prob, out.distribution.entropy()


def _task_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each task's taken steps, shape (K,)."""
    x = torch.where(mask, x, torch.zeros_like(x))
    return x.sum(dim=(0, 2)) / mask.sum(dim=(0, 2)).clamp(min=1)
