"""Advantages over trials of several episodes: an episode's end discounts, a trial's end cuts.

Place in the flow: beside `returns`, for policies that remember from episode to episode. With V the
value that the policy itself predicts, g the discount factor of a step and e that of an episode's
end (Duan et al. 2016, arXiv 1611.02779, have e = 1)::

    d_t = r_t + c_t V_{t+1} - V_t        c_t = g      within an episode
    A_t = d_t + lambda c_t A_{t+1}             g e    at an episode's end inside a trial
                                               0      at a trial's end

Whether the episode terminated or was truncated makes no difference to what comes after it, the next
episode of the trial. But a truncated one would have gone on, so its last step also has the value of
going on, V_t itself: a step moves the state little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.core.scan import scan
from ssm_metarl.types import Rollout


def trial_advantage(
    rollout: Rollout,
    value: Tensor,
    trial_start: Tensor,
    *,
    gamma: float,
    episode_gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantages of all steps but the last, whose value stands for what follows it.

    Args:
        rollout: Steps without gaps, T x K x N; episodes and trials follow one another.
        value: V, discounted return-to-go over the trial, shape (T, K, N).
        trial_start: True at the first step of a trial, shape (T, K, N).
        gamma: Discount factor of a step.
        episode_gamma: Discount factor of an episode's end.
        gae_lambda: Trade-off between bias (0) and variance (1).

    Returns:
        Shape (T - 1, K, N).
    """
    ended = (rollout.terminated | rollout.truncated)[:-1]
    truncated = rollout.truncated[:-1]
    follows = torch.where(ended, value.new_tensor(gamma * episode_gamma), gamma)
    follows = follows.masked_fill(trial_start[1:], 0.0)
    follows = follows.masked_fill(truncated, 0.0)
    going_on = torch.where(truncated, gamma * value[:-1], follows * value[1:])
    delta = rollout.reward[:-1] + going_on - value[:-1]
    decay = gae_lambda * follows
    states = scan(decay.flip(0), delta.flip(0), torch.zeros_like(delta[0]))
    return states.flip(0)
