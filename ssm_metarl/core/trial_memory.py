"""What an actor in a trial keeps of the steps before, and the input that it makes of them.

Place in the flow: stage 3, under `acting`. `trial_input` says what the input is and makes it
of whole rollouts; here it grows step by step, in one compiled call on a processor.

A reading that is no number, or that no plant gives (`readings.WILD`), is held: the last good one
stands in for it, and least squares leaves out the steps to and from it. So does the last reward
for one that is no number.
"""

from __future__ import annotations

import math
from copy import copy, deepcopy

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.compiled import ZERO, compiled
from ssm_metarl.core.foresight import foresee_one
from ssm_metarl.core.identification import Identification, regress
from ssm_metarl.core.policy_network import PolicyNetwork
from ssm_metarl.core.readings import WILD
from ssm_metarl.core.trial_input import CHANGE, LEVEL, PLANT
from ssm_metarl.entrance import fitted, shaped


class TrialMemory:
    """Of R environments.

    Two traps: an episode's end clears nothing, only a trial's; and a reward that nobody tells is 0
    to the policy, which may be one that it never met.

    Args:
        policy: An in-context policy; its observations and actions.
        rows: R.
        trial_episodes: Episodes after which all is forgotten; None for never.
    """

    def __init__(self, policy: PolicyNetwork, rows: int, trial_episodes: int | None) -> None:
        assert policy.trial_input is not None
        self._layout = policy.trial_input
        self._policy, self._trial_episodes, self._rows = policy, trial_episodes, rows
        device = policy.step_size.device
        self._plainly = not (device.type == "cpu" and policy.obs_scale.dtype is torch.float32)
        if not self._plainly:
            self._limit, self._scale = policy.obs_limit.numpy(), policy.obs_scale.numpy()
        self.bad_readings = torch.zeros(rows, dtype=torch.int64, device=device)
        """Observations so far in which a number had to be held, shape (R,)."""
        self._held = torch.zeros(rows, dtype=torch.bool, device=device)  # in the last one
        codes, found = self._layout.actions_dim, self._layout.plant_rows
        self._before = torch.zeros(rows, policy.obs_dim, device=device)
        self._actions = torch.zeros(rows, codes, device=device)
        self._reward = torch.zeros(rows, device=device)
        self._told = torch.zeros(rows, device=device)  # the last reward that was a number
        self._episode = torch.zeros(rows, dtype=torch.int64, device=device)
        self._plant = Identification(rows, policy.obs_dim, found - policy.obs_dim)
        shape = (rows, found, policy.obs_dim)
        self._found = torch.zeros(shape, dtype=torch.float64, device=device)

    def copy(self) -> TrialMemory:
        """Another one that remembers the same."""
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value.clone())
        other._plant = deepcopy(self._plant)
        return other

    def acted(self, action: Tensor) -> None:
        """The actions (R[, A]) that were chosen; their rewards are not known yet."""
        space = self._policy.action_space
        if isinstance(space, Discrete):
            action = shaped("action", action, (self._rows,), torch.int64, "R")
        else:
            shape = (self._rows, space.dim)
            action = shaped("action", action, shape, self._actions.dtype, "R, A")
        code = space.code(action.detach())
        self._actions = torch.cat([code, self._actions[:, : -code.shape[-1]]], dim=-1)
        self._reward = torch.zeros_like(self._reward)

    def rewarded(self, reward: Tensor) -> None:
        """What these actions brought, (R,)."""
        kind = self._reward.dtype
        reward = shaped("reward", reward, (self._rows,), kind, "R")
        self._reward = reward.detach().to(self._reward)

    def surprise(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """How far the last step went from what least squares expected, before it takes it in.

        Args:
            obs: Observations that the step led to, shape (R, O).

        Returns:
            The squared error of the expected change, and the squared change, shape (R,) each.

        Raises:
            ValueError: A shape does not fit.
        """
        obs = shaped("obs", obs, tuple(self._before.shape), self._before.dtype, "R, O")
        change = obs * self._policy.obs_scale - self._before
        phi = torch.cat([self._before, self._actions], dim=-1)
        expected = (phi[:, None] @ self._found.to(phi.dtype))[:, 0]
        return (change - expected).square().sum(-1), change.square().sum(-1)

    def forget(self, rows: Tensor) -> None:
        """Begin a new trial where ``rows`` (R,) is True, at the next `observe` with ``reset``."""
        rows = shaped("rows", rows, (self._rows,), torch.bool, "R")
        self._episode = self._episode.masked_fill(rows, 0)

    def observe(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """The next step's observations (R, O), and where they start an episode (R,).

        Returns:
            Inputs (R, I), and where a trial starts (R,).

        Raises:
            ValueError: A shape does not fit.
        """
        plant = self._plant
        if self._plainly:
            return self.observe_plainly(obs, reset)
        obs = fitted("obs", obs, self._before.shape, torch.float32, "R, O")
        reset = fitted("reset", reset, (self._rows,), torch.bool, "R")
        x, first = np.empty((self._rows, self._layout.size), np.float32), np.empty(self._rows, bool)
        _observe(
            obs.numpy(), reset.numpy(), self._limit, self._scale,
            self._trial_episodes or 0, self._before.numpy(), self._actions.numpy(),
            self._reward.numpy(), self._told.numpy(), self._episode.numpy(), plant.gram.numpy(),
            plant.cross.numpy(), self._found.numpy(), self._held.numpy(),
            self.bad_readings.numpy(), self._layout.code_dim * self._layout.foresees, x, first,
        )  # fmt: skip
        return torch.from_numpy(x), torch.from_numpy(first)

    def observe_plainly(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """`observe` by PyTorch's own operations, on any device."""
        kind = self._before.dtype
        obs = shaped("obs", obs, self._before.shape, kind, "R, O")
        reset = shaped("reset", reset, (self._rows,), torch.bool, "R")
        number = self._episode % self._trial_episodes if self._trial_episodes else self._episode
        first = reset & (number == 0)
        self._episode = self._episode + reset
        policy = self._policy
        z, limit, start = (
            obs * policy.obs_scale,
            policy.obs_limit * policy.obs_scale,
            reset[:, None],
        )
        good = z.abs() < WILD  # NaN is not less
        z = torch.where(good, z, self._before.masked_fill(start, 0.0))
        held = ~good.all(dim=-1)
        unknown = reset | held | self._held
        self._held = held
        self.bad_readings = self.bad_readings + held
        self._actions = self._actions.masked_fill(start, 0.0)
        before = torch.where(start, z, self._before)
        self._told = torch.where(self._reward.isfinite(), self._reward, self._told)
        reward = self._told.masked_fill(first, 0.0)
        columns = (z, before, self._actions, unknown, first)
        plant = z.new_zeros(self._rows, 0)
        if self._layout.identifies:
            plant = self._plant.update(*(v[None] for v in columns))[0]
            self._found = plant.view(self._found.shape).double()
        self._before = z
        last = (reward, first, reset & ~first)
        return self._layout.of_step(z, limit, before, self._actions, plant, *last), first


@compiled
def squash(value, sharpness):  # type: ignore[no-untyped-def]
    """`trial_input.squash` of one number."""
    return math.asinh(value * sharpness) / math.asinh(sharpness)


@compiled
def _put(coefficients, x, place):  # type: ignore[no-untyped-def]
    """Squash (F, O) into x from a place on; the place after it."""
    for i in range(coefficients.shape[0]):
        for j in range(coefficients.shape[1]):
            x[place] = squash(coefficients[i, j], PLANT)
            place += 1
    return place


@compiled
def _observe(  # type: ignore[no-untyped-def]
    obs, reset, limit, scale, trial_episodes, before, actions, reward, told, episode, gram, cross,
    found, held, bad, foreseen_codes, x, first,
):  # fmt: skip
    """`TrialMemory.observe_plainly`, number by number; foreseen_codes is C, or 0 for none."""
    dims, codes = obs.shape[1], actions.shape[1]
    size = dims + codes
    phi, y = np.empty(size), np.empty(dims)
    root = np.empty((size, size))
    moved, free, effect = np.empty(dims), np.empty(dims), np.empty((foreseen_codes, dims))
    for r in range(len(obs)):
        number = episode[r] % trial_episodes if trial_episodes > 0 else episode[r]
        first[r] = reset[r] and number == 0
        episode[r] += reset[r]
        if reset[r]:
            for j in range(codes):
                actions[r, j] = 0
        unknown = reset[r] or held[r]
        held[r] = False
        for i in range(dims):
            z = obs[r, i] * scale[i]
            if not abs(z) < WILD:
                z, held[r] = ZERO if reset[r] else before[r, i], True
            if reset[r]:
                before[r, i] = z
            y[i] = z - before[r, i]
            phi[i] = before[r, i]
            before[r, i] = z
            x[r, i] = squash(min(max(z, -limit[i] * scale[i]), limit[i] * scale[i]), LEVEL)
            x[r, dims + i] = squash(y[i], CHANGE)
        for j in range(codes):
            phi[dims + j] = actions[r, j]
        bad[r] += held[r]
        place = 2 * dims
        if found.shape[1] > 0:
            regress(phi, y, unknown or held[r], first[r], gram[r], cross[r], root, found[r])
        if foreseen_codes == 0:
            for j in range(codes):
                x[r, place + j] = actions[r, j]
            place += codes
            place = _put(found[r], x[r], place)
        else:
            foresee_one(before[r], actions[r], found[r], moved, free, effect)
            place = _put(found[r, :dims], x[r], place)
            place = _put(effect, x[r], place)
            for i in range(dims):
                bound = limit[i] * scale[i]
                x[r, place + i] = squash(min(max(free[i], -bound), bound), LEVEL)
            place += dims
        if math.isfinite(reward[r]):
            told[r] = reward[r]
        x[r, place] = 0 if first[r] else math.asinh(told[r])
        x[r, place + 1] = first[r]
        x[r, place + 2] = reset[r] and not first[r]
