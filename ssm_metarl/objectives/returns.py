"""Advantages of episodes: a linear baseline for each task, `gae` over it, and one size for all.

Place in the flow: from `Rollout` to the weights of `policy_gradient` and `ppo`. The baseline is
fitted to the two kinds of end that `gae` knows: an episode that was cut is worth what follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.objectives.gae import accumulated, continues, episode_advantage
from ssm_metarl.types import Rollout

RIDGE = 1e-3
MIN_SCALE = 1e-6  # a feature that never varies gets no weight worth the name
OWN_UNITS = (0.2, 5.0)
"""Factors of a policy that leave an observation in its own unit outside the policy: it is right as
it is."""
MOST_PAIRED = 32
"""Size of the widest observations whose pairs are features: their number grows with its square."""
DUAL_FROM = 100
"""Features from which on the regression is solved in its dual, if that is the smaller one."""


def unit_factors(obs_scale: Tensor) -> Tensor:
    """A policy's factors, but 1 where they are within `OWN_UNITS`, shape (O,)."""
    own = (obs_scale >= OWN_UNITS[0]) & (obs_scale <= OWN_UNITS[1])
    return torch.where(own, torch.ones_like(obs_scale), obs_scale)


def baseline_features(obs: Tensor) -> Tensor:
    """[obs, all products obs_i obs_j with i <= j, 1], shape (..., O + O (O + 1) / 2 + 1).

    The products of different dimensions matter: a pole that leans left is well off if it swings to
    the right. Of more than `MOST_PAIRED` dimensions only squares are left, shape (..., 2 O + 1).
    Duan et al. 2016 (arXiv 1604.06778) add the time of the step. Here truncated episodes are
    bootstrapped, so a value does not depend on the time that has passed.
    """
    obs = obs.clamp(-10, 10)
    if obs.shape[-1] > MOST_PAIRED:
        return torch.cat([obs, obs.square(), torch.ones_like(obs[..., :1])], dim=-1)
    rows, columns = torch.triu_indices(obs.shape[-1], obs.shape[-1], device=obs.device)
    products = obs.index_select(-1, rows) * obs.index_select(-1, columns)
    return torch.cat([obs, products, torch.ones_like(obs[..., :1])], dim=-1)


def fit_linear_baseline(
    rollout: Rollout, gamma: float, *, told_dims: int = 0, obs_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fit each task's value function, linear in `baseline_features`, to its own rollout.

    With s' the last observation of an episode's piece that is n steps long, a state's return is
    its discounted rewards plus gamma^n V(s') unless it terminated. V is linear, so that both
    sides hold the unknown weights w, and one ridge regression solves for them::

        (phi(s) - gamma^n phi(s')) w = discounted rewards

    Args:
        rollout: Steps of K tasks.
        gamma: Discount factor.
        told_dims: Last observation dimensions that are the same throughout a task: to its own
            baseline they say nothing.
        obs_scale: Factors by which the policy scales observations, shape (O,); None for 1. Those
            outside `OWN_UNITS` count here too: millimetres would all be clamped, kilometres be
            nothing beside the ridge.

    Returns:
        Values of ``obs`` and of ``next_obs``, each (T, K, N).
    """
    rollout = rollout.cleaned()
    obs, next_obs = rollout.obs, rollout.next_obs
    if obs_scale is not None:
        factor = unit_factors(obs_scale)
        obs, next_obs = obs * factor, next_obs * factor
    size = obs.shape[-1] - told_dims
    features = baseline_features(obs[..., :size])  # (T, K, N, F)
    next_features = baseline_features(next_obs[..., :size])
    goes_on = continues(rollout)
    ends = (~goes_on & ~rollout.terminated)[..., None]
    # gamma^n phi(s') of where each piece ends (0 after a termination), and its discounted rewards
    steps = torch.cat([gamma * ends * next_features, rollout.reward[..., None]], dim=-1)
    to_go = accumulated(steps, gamma * goes_on[..., None].to(steps.dtype))
    tail, reward_to_go = to_go[..., :-1], to_go[..., -1:]

    taken = rollout.mask[..., None].to(features.dtype)
    x = ((features - tail) * taken).transpose(0, 1).flatten(1, 2)  # (K, T N, F)
    y = (reward_to_go * taken).transpose(0, 1).flatten(1, 2)
    count = taken.sum(dim=(0, 2)).clamp(min=1)[..., None]
    # The ridge acts on features of equal size: an angle's square is ten thousand times smaller
    # than a position's, and matters more.
    scale = (x.square().sum(dim=1, keepdim=True) / count).sqrt() + MIN_SCALE  # (K, 1, F)
    weights = _ridge(x / scale, y, count)
    weights = (weights / scale.transpose(1, 2))[None]  # (1, K, F, 1)
    return (features @ weights)[..., 0], (next_features @ weights)[..., 0]


def _ridge(x: Tensor, y: Tensor, count: Tensor) -> Tensor:
    """Weights (K, F, 1) of a ridge regression of y (K, R, 1) on x (K, R, F), of ``count`` rows.

    Fewer rows than features give the same weights by a system of the rows' size::

        (x' x / n + ridge I)^-1 x' y / n  =  x' (x x' + n ridge I)^-1 y
    """
    rows, size = x.shape[1:]
    weights: Tensor
    if rows < size and size >= DUAL_FROM:
        dual = x @ x.mT + RIDGE * count * torch.eye(rows).to(x)
        weights = x.mT @ torch.linalg.solve(dual, y)
    else:
        gram = x.mT @ x / count + RIDGE * torch.eye(size).to(x)
        weights = torch.linalg.solve(gram, x.mT @ y / count)
    return weights


def normalized(advantage: Tensor, mask: Tensor, *, shared_scale: bool = False) -> Tensor:
    """Advantages of each task with mean 0 and standard deviation 1 over its taken steps.

    Args:
        advantage: Shape (T, K, N).
        mask: True where a step was taken, shape (T, K, N).
        shared_scale: Divide all tasks by one standard deviation, the root of their mean variance.
            A task that is solved has only noise for advantages; scaled by itself it would speak
            as loudly as one that fails.
    """
    taken = mask.to(advantage.dtype)
    advantage = torch.where(mask, advantage, torch.zeros_like(advantage))
    count = taken.sum(dim=(0, 2), keepdim=True).clamp(min=1)
    mean = advantage.sum(dim=(0, 2), keepdim=True) / count
    centred = (advantage - mean) * taken
    variance = centred.square().sum(dim=(0, 2), keepdim=True) / count
    if shared_scale:
        variance = variance.mean(dim=1, keepdim=True)
    return centred / (variance.sqrt() + 1e-6)


@torch.no_grad()
def advantages(
    rollout: Rollout,
    *,
    gamma: float,
    gae_lambda: float,
    shared_scale: bool = False,
    told_dims: int = 0,
    obs_scale: Tensor | None = None,
) -> Tensor:
    """Normalised advantages under each task's own linear baseline, shape (T, K, N).

    Args:
        rollout: Steps of K tasks.
        gamma: Discount factor.
        gae_lambda: As in `gae`.
        shared_scale: As in :func:`normalized`; the tasks then depend on each other, so not for an
            inner objective.
        told_dims: As in :func:`fit_linear_baseline`.
        obs_scale: Likewise.
    """
    value, next_value = fit_linear_baseline(
        rollout, gamma, told_dims=told_dims, obs_scale=obs_scale
    )
    raw = episode_advantage(rollout, value, next_value, gamma=gamma, gae_lambda=gae_lambda)
    return normalized(raw, rollout.mask, shared_scale=shared_scale)
