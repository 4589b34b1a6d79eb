"""The reward-free objective: predict how the observation changes, given the action.

Place in the flow: between `env_runner` (the rollout) and `adaptation.inner_loop` (the step).

    L_k = mean over steps, dimensions of (predicted - change / spread_k)^2

Each task's targets are divided by their own spread in the support data, so that a heavy and a
light pole give errors of the same size. Meta-training makes this loss's gradient useful to the
*policy*, which it says nothing about by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.core.distributions import ActionDistribution
from ssm_metarl.core.policy import Policy
from ssm_metarl.objectives.returns import unit_factors
from ssm_metarl.types import Params, Rollout

MIN_SPREAD = 1e-4  # a dimension that hardly moves, in its unit, is not blown up to noise


def target_spread(policy: Policy, rollout: Rollout) -> Tensor:
    """Root mean square change of each predicted dimension, shape (K, D)."""
    rollout = rollout.cleaned()
    change = _change(policy, rollout)
    weight = rollout.mask[..., None].to(change.dtype)
    count = weight.sum(dim=(0, 2)).clamp(min=1)
    least = MIN_SPREAD / unit_factors(policy.obs_scale)[list(policy.heads.predicted_dims)]
    return ((change.square() * weight).sum(dim=(0, 2)) / count).sqrt().clamp(min=least.to(change))


def _change(policy: Policy, rollout: Rollout) -> Tensor:
    """How each step changed the predicted dimensions, shape (T, K, N, D)."""
    return (rollout.next_obs - rollout.obs)[..., list(policy.heads.predicted_dims)]


def silent_dims(policy: Policy, rollout: Rollout) -> Tensor:
    """Predicted dimensions that stand still in all of a task's data, shape (K, D), bool.

    A sensor that is frozen, or not there. It would be explained best of all, by a policy that
    believes that actions do nothing. A single step cannot tell, and what a policy is told of its
    task never moves.
    """
    rollout = rollout.cleaned()
    dims = list(policy.heads.predicted_dims)
    change = _change(policy, rollout) * policy.obs_scale[dims]
    still = change.square().mean(dim=(0, 2)).sqrt() < MIN_SPREAD
    if not bool(still.any()):
        return still
    told = torch.tensor(dims, device=still.device) >= policy.obs_dim - policy.config.told_dims
    return still & ~told & (rollout.steps_taken() > 1)[:, None]


def is_uninformative(silent: Tensor) -> Tensor:
    """Whether at least half of a task's predicted dimensions are silent, (K, D) to (K,)."""
    return 2 * silent.sum(dim=1) >= max(silent.shape[1], 1)


class PredictionLoss:
    """Squared prediction error of each task as a function of the parameters.

    What the parameters do not change is done once. The loss is a weighted mean over a task's
    steps, and 0 where all weights are 0.

    Args:
        policy: Gives the prediction.
        rollout: Steps in K tasks.
        spread: Scale of the targets, shape (K, D); None takes the rollout's own.
        weight: Weight of each step, shape (T, K, N); None weighs every taken step by 1.
        silent: Dimensions without weight, shape (K, D); None for none.
    """

    def __init__(
        self,
        policy: Policy,
        rollout: Rollout,
        *,
        spread: Tensor | None = None,
        weight: Tensor | None = None,
        silent: Tensor | None = None,
    ) -> None:
        cleaned = rollout.cleaned()
        self._policy, self._given = policy, policy.unroll_inputs(cleaned)
        if spread is None:
            spread = target_spread(policy, rollout)
        change = _change(policy, cleaned)
        self._target = change / spread[:, None, :]
        self._code = policy.action_space.code(cleaned.action).to(change.dtype)
        weight = torch.ones_like(change[..., 0]) if weight is None else weight
        weight = torch.where(rollout.mask, weight, 0.0)
        share = weight / weight.sum(dim=(0, 2), keepdim=True).clamp(min=1e-8)
        self._weight = (share / change.shape[-1])[..., None]  # (T, K, N, 1)
        if silent is not None and bool(silent.any()):
            heard = (~silent)[:, None].to(share.dtype)  # (K, 1, D)
            self._weight = share[..., None] * heard / heard.sum(dim=-1, keepdim=True).clamp(min=1)

    def __call__(self, params: Params) -> Tensor:
        """The loss of each task, shape (K,)."""
        return self.look(params)[0]

    def look(self, params: Params) -> tuple[Tensor, ActionDistribution]:
        """The losses (K,), and what the policy would do in these steps, (T, K, N)."""
        out, _ = self._policy.unroll(params, *self._given)
        error = self._policy.predict(out.output, self._code) - self._target
        return (error.square() * self._weight).sum(dim=(0, 2, 3)), out.distribution


def prediction_loss(
    policy: Policy, params: Params, rollout: Rollout, **settings: Tensor | None
) -> Tensor:
    """The `PredictionLoss` of each task at shared or per-task parameters, shape (K,)."""
    return PredictionLoss(policy, rollout, **settings)(params)
