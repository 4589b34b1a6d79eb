"""The inner policy-gradient objective: advantage times likelihood ratio, without a clip.

Place in the flow: `returns` gives the advantages, `adaptation.inner_loop` takes the loss's
gradient. The outer objective is `ppo`'s. The *ratio*, not log pi, keeps the dependence on the
sampling distribution that second-order meta-gradients need (ProMP, Rothfuss et al. 2019,
arXiv 1810.06784, section 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssm_metarl.core.distributions import ActionDistribution
from ssm_metarl.core.policy import Policy
from ssm_metarl.types import Params, Rollout

MAX_RATIO = 10.0  # behaviour far from the policy (random actions) must not dominate by one step


class PolicyGradientLoss:
    """Negative mean of ratio x advantage, for each task, as a function of the parameters.

    Args:
        policy: Scores the actions taken.
        rollout: Steps with the log-probabilities of the behaviour that took them.
        advantage: Shape (T, K, N), no gradient.
    """

    def __init__(self, policy: Policy, rollout: Rollout, advantage: Tensor) -> None:
        self._policy, self._rollout = policy, rollout.cleaned()
        self._given = policy.unroll_inputs(self._rollout)
        self._advantage = torch.where(rollout.mask, advantage, torch.zeros_like(advantage))

    def __call__(self, params: Params) -> Tensor:
        """The loss of each task, shape (K,)."""
        return self.look(params)[0]

    def look(self, params: Params) -> tuple[Tensor, ActionDistribution]:
        """The losses (K,), and what the policy would do in these steps, (T, K, N)."""
        distribution = self._policy.unroll(params, *self._given)[0].distribution
        log_ratio = distribution.log_prob(self._rollout.action) - self._rollout.log_prob
        ratio = log_ratio.clamp(max=math.log(MAX_RATIO)).exp()
        return -task_mean(ratio * self._advantage, self._rollout.mask), distribution


def task_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each task's taken steps, shape (K,)."""
    x = torch.where(mask, x, torch.zeros_like(x))
    return x.sum(dim=(0, 2)) / mask.sum(dim=(0, 2)).clamp(min=1)
