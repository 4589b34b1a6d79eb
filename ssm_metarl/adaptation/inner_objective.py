"""What an inner step descends: the objective on this task's data, and on replayed data.

Place in the flow: stage 4. Turns rollouts into the `TaskLoss` that `inner_loop` differentiates.

    L_k = L(current_k) + experience_weight * trust_k * L(replayed; weights_k)

Replay brings a proximal anchor along: the less a task trusts what it replays, the closer it stays
to the meta-parameters (MQL, Fakoor et al. 2020, arXiv 1910.00125: the weight is one minus the
normalised effective sample size).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssm_metarl.adaptation.propensity import propensity_weights
from ssm_metarl.config import Objective, ReplayWeights
from ssm_metarl.core.distributions import ActionDistribution
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.policy_network import check_actions
from ssm_metarl.objectives.policy_gradient import PolicyGradientLoss
from ssm_metarl.objectives.prediction import PredictionLoss, target_spread
from ssm_metarl.objectives.returns import advantages
from ssm_metarl.types import Params, Rollout


@dataclass(frozen=True)
class Replay:
    """Replayed experience as every one of K tasks sees it."""

    rollout: Rollout
    """The same sequences for each task, (T', K, M)."""
    weights: Tensor
    """How well each step fits the task, shape (T', K, M), mean 1."""
    trust: Tensor
    """How far each task trusts them, in (0, 1], shape (K,)."""
    experience_weight: float
    proximal_weight: float = 0.0
    """Weights of the whole term, and of the anchor."""

    @property
    def pull(self) -> Tensor:
        """Strength of each task's anchor, shape (K,)."""
        return self.proximal_weight * (1 - self.trust)


class WatchedLoss(Protocol):
    """A `TaskLoss` on this task's data that also tells what the policy would do there."""

    def __call__(self, params: Params) -> Tensor:
        """The loss of each task, shape (K,)."""

    def look(self, params: Params) -> tuple[Tensor, ActionDistribution]:
        """The losses (K,), and the distribution of actions in each step, (T, K, N)."""


def weigh_replay(
    policy: Policy,
    current: Rollout,
    replayed: Rollout,
    *,
    experience_weight: float,
    proximal_weight: float = 0.0,
    replay: ReplayWeights = "propensity",
) -> Replay:
    """Weigh replayed sequences (T', 1, M) by how well they match each of the K current tasks.

    With ``replay`` "uniform" every step weighs 1 and is trusted fully. The other arguments are as
    in `propensity_weights` and `Replay`.
    """
    shared = replayed.map(lambda x: x.expand(-1, current.num_tasks, *x.shape[2:]))
    if replay == "uniform":
        weights = torch.ones_like(shared.reward)
        trust = torch.ones_like(weights[0, :, 0])
    else:
        spread = target_spread(policy, current)
        weights, trust = propensity_weights(policy, current, replayed, spread)
    return Replay(shared, weights, trust, experience_weight, proximal_weight)


def task_loss(
    policy: Policy,
    objective: Objective,
    current: Rollout,
    *,
    gamma: float,
    gae_lambda: float,
    replay: Replay | None = None,
    silent: Tensor | None = None,
) -> WatchedLoss | HybridLoss:
    """The loss of each task as a function of its parameters.

    Args:
        policy: Whose parameters are adapted.
        objective: "prediction" (reward-free) or "policy_gradient".
        current: Support data, (T, K, N).
        gamma: Discount factor (policy_gradient).
        gae_lambda: Of the advantages (policy_gradient).
        replay: Replayed experience, for hybrid adaptation.
        silent: Dimensions of this task's data without weight, shape (K, D) (prediction).
    """
    if objective not in ("prediction", "policy_gradient"):
        raise ValueError(
            f"objective: expected 'prediction' or 'policy_gradient', received {objective!r}"
        )
    if objective == "prediction" and not policy.heads.predicted_dims:
        raise ValueError(
            "objective: expected 'policy_gradient' for a model without prediction outputs, "
            "received 'prediction'"
        )
    spread = target_spread(policy, current) if objective == "prediction" else None

    def make(rollout: Rollout, weight: Tensor | None) -> WatchedLoss:
        if objective == "prediction":
            return PredictionLoss(policy, rollout, spread=spread, weight=weight, silent=silent)
        advantage = advantages(
            rollout, gamma=gamma, gae_lambda=gae_lambda, obs_scale=policy.obs_scale
        )
        # the ratio inside is the (clipped) importance weight of the replayed behaviour
        return PolicyGradientLoss(
            policy, rollout, advantage if weight is None else advantage * weight
        )

    own = make(current, None)
    return own if replay is None else HybridLoss(own, replay, make(replay.rollout, replay.weights))


class HybridLoss:
    """The loss on this task's data plus the weighed loss on replayed data."""

    def __init__(self, own: WatchedLoss, replay: Replay, replayed: WatchedLoss) -> None:
        self.own, self._replayed = own, replayed
        self._share = replay.experience_weight * replay.trust

    def __call__(self, params: Params) -> Tensor:
        """The loss of each task, shape (K,)."""
        return self.own(params) + self._share * self._replayed(params)


def check_unadapted(policy: Policy, what: str = "policy") -> None:
    """Raise ValueError about ``what`` unless a policy stands at its meta-parameters.

    Its step sizes lead away from them to a task, and its limits were set there: from another task's
    parameters most steps are undone, and the others lead astray.
    """
    if policy.adapted:
        raise ValueError(
            f"{what}: expected a meta-trained one, received one that is adapted already (take the "
            f"one that it came from)"
        )


def check_support(policy: Policy, rollout: Rollout, objective: Objective) -> None:
    """Raise ValueError unless a rollout can adapt this policy by this objective."""
    if rollout.obs.shape[-1] != policy.obs_dim:
        raise ValueError(
            f"support data: expected observations of size {policy.obs_dim}, "
            f"received {rollout.obs.shape[-1]}"
        )
    check_actions(policy.action_space, rollout)
    if not bool(rollout.mask.any(dim=0).any(dim=-1).all()):
        raise ValueError("support data: expected at least one step in every task, received none")
    names = ["obs", "action", "reward", "next_obs"]
    if objective == "policy_gradient":  # prediction does without, and a plant's log has none
        names.append("log_prob")
    for name in names:
        values = getattr(rollout, name)[rollout.mask]
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"support data: expected finite numbers, received NaN or inf in {name}"
            )
