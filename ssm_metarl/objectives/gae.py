"""Generalised advantage estimation: one recursion, for episodes and for trials of several.

Place in the flow: `returns` and `meta_rl.in_context` bring rewards and values, `ppo` takes the
advantages (Schulman et al. 2016, arXiv 1506.02438, eq. 16)::

    d_t = r_t + g_t (1 - terminated_t) V'_t - V_t        A_t = d_t + lambda g_t (1 - ended_t) A_t+1

with V' the value of what follows the step, and two kinds of end. Where a step *terminated*, nothing
follows: V' does not count. Where the sum *ended* otherwise, by a time limit, or because collection
stopped there, things would have gone on, so V' stands for the rest (Pardo et al. 2018,
arXiv 1712.00378). With the two confused, a policy that never fails learns that its last steps are
worthless.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.core.scan import scan
from ssm_metarl.types import Rollout


def gae(
    reward: Tensor,
    value: Tensor,
    following: Tensor,
    *,
    terminated: Tensor,
    ended: Tensor,
    gamma: float | Tensor,
    gae_lambda: float,
    taken: Tensor | None = None,
) -> Tensor:
    """The recursion, shape (T, K, N).

    Args:
        reward: Of each step, shape (T, K, N).
        value: V of where the step was taken, likewise.
        following: V of where it led, likewise; not looked at where it terminated.
        terminated: True where nothing follows, bool.
        ended: True where the next row is another sum's, bool; at a termination, too.
        gamma: Discount factor, of all steps or of each.
        gae_lambda: Trade-off between bias (0) and variance (1).
        taken: False where there was no step; whatever stands there, NaN perhaps, reaches no other.
    """
    alive, goes_on = (~terminated).to(value.dtype), (~ended).to(value.dtype)
    delta = reward + gamma * alive * following - value
    if taken is not None:
        delta = torch.where(taken, delta, torch.zeros_like(delta))
    return accumulated(delta, gamma * gae_lambda * goes_on)


def accumulated(x: Tensor, discount: Tensor) -> Tensor:
    """y_t = x_t + discount_t y_{t+1}, for x (T, K, N) or (T, K, N, F): a scan in reversed time."""
    rows, factors = (y.flatten(1, 2) if y.dim() > 3 else y for y in (x, discount))
    states = scan(factors.flip(0), rows.flip(0), torch.zeros_like(rows[0]))
    return states.flip(0).view_as(x)


def continues(rollout: Rollout) -> Tensor:
    """True where the next recorded step belongs to the same episode, shape (T, K, N)."""
    followed = torch.zeros_like(rollout.mask)
    followed[:-1] = rollout.mask[1:] & ~rollout.reset[1:]
    return followed & ~rollout.terminated & ~rollout.truncated


def episode_advantage(
    rollout: Rollout, value: Tensor, next_value: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """Advantages within episodes, shape (T, K, N); zero where no step was taken.

    Args:
        rollout: T steps; pieces of episodes follow one another in an environment.
        value: V(obs), shape (T, K, N).
        next_value: V(next_obs), shape (T, K, N); used except after a termination.
        gamma: Discount factor.
        gae_lambda: As in :func:`gae`.
    """
    advantage = gae(
        rollout.reward,
        value,
        next_value,
        terminated=rollout.terminated,
        ended=~continues(rollout),
        gamma=gamma,
        gae_lambda=gae_lambda,
        taken=rollout.mask,
    )
    return torch.where(rollout.mask, advantage, torch.zeros_like(advantage))


def trial_advantage(
    rollout: Rollout,
    value: Tensor,
    trial_start: Tensor,
    *,
    gamma: float,
    episode_gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Advantages within trials, (T - 1, K, N): the last step only tells what the others led to.

    An episode's end is no end here: the next episode follows, and counts ``episode_gamma`` as much
    (Duan et al. 2016, arXiv 1611.02779, have 1). The trial's last step terminates. A truncated
    episode ends the sum: it would have gone on, and not into the next one. The value of its last
    step stands for that of the observation that it stopped at, which a trial's rollout does not
    hold: right as long as one step moves the state little.

    Args:
        rollout: Steps without gaps, T x K x N; episodes and trials follow one another.
        value: V, discounted return-to-go over the trial, shape (T, K, N).
        trial_start: True at the first step of a trial, shape (T, K, N).
        gamma: Discount factor of a step.
        episode_gamma: Discount factor of an episode's end.
        gae_lambda: As in :func:`gae`.
    """
    truncated, last = rollout.truncated[:-1], trial_start[1:]
    ends_episode = rollout.terminated[:-1] & ~truncated
    discount = torch.where(ends_episode, value.new_tensor(gamma * episode_gamma), gamma)
    return gae(
        rollout.reward[:-1],
        value[:-1],
        torch.where(truncated, value[:-1], value[1:]),
        terminated=last & ~truncated,
        ended=last | truncated,
        gamma=discount,
        gae_lambda=gae_lambda,
    )
