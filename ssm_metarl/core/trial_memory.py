"""What an actor in a trial keeps of the steps before, and the input that it makes of them.

Place in the flow: stage 3, under `trial_actor`. `trial_input` says what the input is and makes it
of whole rollouts; here it grows step by step, in one compiled call on a processor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.compiled import compiled
from ssm_metarl.core.identification import Identification, regress
from ssm_metarl.core.trial_input import ACTIONS_SEEN, CHANGE, LEVEL, PLANT, step_input

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy


class TrialMemory:
    """Of R environments.

    Args:
        policy: An in-context policy; its observations and actions.
        rows: R.
        trial_episodes: Episodes after which all is forgotten; None for never.
    """

    def __init__(self, policy: Policy, rows: int, trial_episodes: int | None) -> None:
        self._policy, self._trial_episodes = policy, trial_episodes
        device = policy.step_size.device
        codes = ACTIONS_SEEN * policy.action_space.code_dim
        self._before = torch.zeros(rows, policy.obs_dim, device=device)
        self._actions = torch.zeros(rows, codes, device=device)
        self._reward = torch.zeros(rows, device=device)
        self._episode = torch.zeros(rows, dtype=torch.int64, device=device)
        self._plant = Identification(rows, policy.obs_dim, codes)
        found = (rows, policy.obs_dim + codes, policy.obs_dim)
        self._found = torch.zeros(found, dtype=torch.float64, device=device)

    def acted(self, action: Tensor) -> None:
        """The actions (R[, A]) that were chosen; their rewards are not known yet."""
        code = self._policy.action_space.code(action)
        self._actions = torch.cat([code, self._actions[:, : -code.shape[-1]]], dim=-1)
        self._reward = torch.zeros_like(self._reward)

    def rewarded(self, reward: Tensor) -> None:
        """What these actions brought, (R,)."""
        self._reward = reward.to(self._reward)

    def surprise(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """How far the last step went from what least squares expected, before it takes it in.

        Args:
            obs: Observations that the step led to, shape (R, O).

        Returns:
            The squared error of the expected change, and the squared change, shape (R,) each.
        """
        change = obs * self._policy.obs_scale - self._before
        phi = torch.cat([self._before, self._actions], dim=-1)
        expected = (phi[:, None] @ self._found.to(phi.dtype))[:, 0]
        return (change - expected).square().sum(-1), change.square().sum(-1)

    def forget(self, rows: Tensor) -> None:
        """Begin a new trial where ``rows`` (R,) is True, at the next `observe` with ``reset``."""
        self._episode = self._episode.masked_fill(rows, 0)

    def observe(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """The next step's observations (R, O), and where they start an episode (R,).

        Returns:
            Inputs (R, I), and where a trial starts (R,).
        """
        policy, plant = self._policy, self._plant
        if obs.device.type != "cpu" or obs.dtype != torch.float32:
            return self.observe_plainly(obs, reset)
        x, first = obs.new_empty(len(obs), policy.input_dim), torch.empty_like(reset)
        _observe(
            obs.numpy(), reset.numpy(), policy.obs_limit.numpy(), policy.obs_scale.numpy(),
            self._trial_episodes or 0, self._before.numpy(), self._actions.numpy(),
            self._reward.numpy(), self._episode.numpy(), plant.gram.numpy(), plant.cross.numpy(),
            self._found.numpy(), x.numpy(), first.numpy(),
        )  # fmt: skip
        return x, first

    def observe_plainly(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """`observe` by PyTorch's own operations, on any device."""
        number = self._episode % self._trial_episodes if self._trial_episodes else self._episode
        first = reset & (number == 0)
        self._episode = self._episode + reset
        policy = self._policy
        z, limit, start = (
            obs * policy.obs_scale,
            policy.obs_limit * policy.obs_scale,
            reset[:, None],
        )
        self._actions = self._actions.masked_fill(start, 0.0)
        before = torch.where(start, z, self._before)
        reward = self._reward.masked_fill(first, 0.0)
        columns = (z, before, self._actions, reset, first)
        plant = self._plant.update(*(v[None] for v in columns))[0]
        self._found = plant.view(self._found.shape).double()
        self._before = z
        later = reset & ~first
        return step_input(z, limit, before, self._actions, plant, reward, first, later), first


@compiled
def squash(value, sharpness):  # type: ignore[no-untyped-def]
    """`trial_input.squash` of one number."""
    return math.asinh(value * sharpness) / math.asinh(sharpness)


@compiled
def _observe(  # type: ignore[no-untyped-def]
    obs, reset, limit, scale, trial_episodes, before, actions, reward, episode, gram, cross,
    found, x, first,
):  # fmt: skip
    """`TrialMemory.observe_plainly`, number by number."""
    dims, codes = obs.shape[1], actions.shape[1]
    size = dims + codes
    phi, y = np.empty(size), np.empty(dims)
    root = np.empty((size, size))
    for r in range(len(obs)):
        number = episode[r] % trial_episodes if trial_episodes > 0 else episode[r]
        first[r] = reset[r] and number == 0
        episode[r] += reset[r]
        if reset[r]:
            for j in range(codes):
                actions[r, j] = 0
        for i in range(dims):
            z = obs[r, i] * scale[i]
            if reset[r]:
                before[r, i] = z
            y[i] = z - before[r, i]
            phi[i] = before[r, i]
            before[r, i] = z
            x[r, i] = squash(min(max(z, -limit[i] * scale[i]), limit[i] * scale[i]), LEVEL)
            x[r, dims + i] = squash(y[i], CHANGE)
        for j in range(codes):
            phi[dims + j] = actions[r, j]
            x[r, 2 * dims + j] = actions[r, j]
        regress(phi, y, reset[r], first[r], gram[r], cross[r], root, found[r])
        place = 2 * dims + codes
        for i in range(size):
            for j in range(dims):
                x[r, place] = squash(found[r, i, j], PLANT)
                place += 1
        x[r, place] = 0 if first[r] else math.asinh(reward[r])
        x[r, place + 1] = first[r]
        x[r, place + 2] = reset[r] and not first[r]
