"""How far replayed experience fits the present task: a small classifier, and how far to trust it.

Place in the flow: stage 4, used by `inner_objective` where experience is replayed. As in MQL
(Fakoor et al. 2020, arXiv 1910.00125, section 4), a logistic classifier tells this task's
transitions (label 1) from the buffer's (label 0); its odds are the importance weights
beta(s, a, s') = p / (1 - p). How far to trust the M replayed steps:

    trust = (sum beta)^2 / (M sum beta^2) * min(1, sum beta / M)

The first factor is the normalised effective sample size. The second is a deviation from MQL: a
density ratio averages 1 over experience that covers the task. Without it, a buffer that fits the
task nowhere, evenly, would be trusted more than one that does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.core.policy import Policy
from ssm_metarl.types import Rollout

RIDGE = 1e-2  # keeps the odds finite where 20 transitions are separable
NEWTON_STEPS = 8
MAX_LOGIT = 8.0


@torch.no_grad()
def propensity_weights(
    policy: Policy, current: Rollout, replayed: Rollout, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Importance weights of replayed steps for each of K tasks, and their trust.

    Args:
        policy: Gives the action's code and the observation's scale.
        current: Support data, (T, K, N).
        replayed: The same replayed data for every task, (T', 1, M).
        spread: Scale of the tasks' observation changes, shape (K, O).

    Returns:
        Weights with mean 1 over the replayed steps, shape (T', K, M), and the trust in (0, 1],
        shape (K,).
    """
    num_tasks = current.num_tasks
    shared = replayed.map(lambda x: x.expand(-1, num_tasks, *x.shape[2:]))
    present = _features(policy, current, spread)
    past = _features(policy, shared, spread)
    taken = torch.cat([r.mask.transpose(0, 1).flatten(1) for r in (current, shared)], dim=1)
    label = torch.cat([torch.ones_like(present[..., 0]), torch.zeros_like(past[..., 0])], dim=1)
    features = torch.cat([present, past], dim=1)
    # Both classes weigh the same, so that the odds are a density ratio.
    count = torch.stack([(taken * (1 - label)).sum(1), (taken * label).sum(1)], dim=1)
    weight = taken * torch.where(label > 0, 1 / count[:, 1:], 1 / count[:, :1])
    coefficients = _logistic_regression(features, label, weight)
    logit = (past @ coefficients)[..., 0].clamp(-MAX_LOGIT, MAX_LOGIT)
    odds = logit.exp() * shared.mask.transpose(0, 1).flatten(1)  # (K, T' M)
    total, steps = odds.sum(1, keepdim=True), count[:, :1]
    evenness = total.square() / (steps * odds.square().sum(1, keepdim=True))
    trust = (evenness * (total / steps).clamp(max=1)).clamp(max=1)
    weights = (odds * steps / total).unflatten(1, (replayed.num_steps, replayed.num_envs))
    return weights.transpose(0, 1), trust[:, 0]


def _features(policy: Policy, rollout: Rollout, spread: Tensor) -> Tensor:
    """[change, code x change, observation, 1] of each step, shape (K, T N, F)."""
    dims = list(policy.heads.predicted_dims)
    change = (rollout.next_obs - rollout.obs)[..., dims] / spread[:, None, :]
    change = change.clamp(-5, 5)
    code = policy.action_space.code(rollout.action).to(change.dtype)
    crossed = (code[..., :, None] * change[..., None, :]).flatten(-2)
    obs = (rollout.obs * policy.obs_scale).clamp(-5, 5)
    features = torch.cat([change, crossed, obs, torch.ones_like(obs[..., :1])], dim=-1)
    features = torch.where(rollout.mask[..., None], features, torch.zeros_like(features))
    return features.transpose(0, 1).flatten(1, 2)


def _logistic_regression(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Coefficients (K, F, 1) for features (K, S, F), labels and weights (K, S), by Newton."""
    coefficients = x.new_zeros(x.shape[0], x.shape[2], 1)
    ridge = RIDGE * torch.eye(x.shape[2], dtype=x.dtype)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid((x @ coefficients)[..., 0].clamp(-MAX_LOGIT, MAX_LOGIT))
        gradient = x.transpose(1, 2) @ (weight * (p - y))[..., None] + ridge @ coefficients
        curvature = x.transpose(1, 2) @ (x * (weight * p * (1 - p))[..., None]) + ridge
        coefficients = coefficients - torch.linalg.solve(curvature, gradient)
    return coefficients
