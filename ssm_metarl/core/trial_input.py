"""What an in-context policy sees at each step of a trial: RL²'s inputs, as numbers of one size.

Place in the flow: stage 3, in front of the core of an in-context `policy`; `trial_memory` makes the
same inputs step by step.

A trial is several episodes of one task (Duan et al. 2016, arXiv 1611.02779). Its hidden state runs
through all of them, so an episode's end is an *input*, and only a trial's start clears the memory.
With z the scaled observation, squash_k(v) = asinh(k v) / asinh(k), and a task of O observations and
C numbers an action's code, of which the last S are told::

    level       squash_50(z), z clipped to what training meets  O
    change      squash_200(z - z of the step before)            O      0 at an episode's first step
    moves       squash_100(W_z): least squares up to now        O O    `identification`
    effect      squash_100(e_S): of an action now, S steps on   C O    `foresight`
    free        squash_50(f_S), clipped: S steps on without it  O      `foresight`
    reward      asinh(last reward)                              1      0 at a trial's first step
    flags       first step of the trial, first of a later episode      2

S, the last actions that count, is one more than the steps that an action may be under way: with
fewer, no coefficient is that of the action that just arrived, and least squares finds a plant that
is none. The plant's part grows with O², and its arithmetic with O³: where observations are many it
is left out (`PolicyConfig.identifies`), and the codes of the last S actions of this episode stand
in its place, 0 where there was none. For two actions the code is +-1: one-hot and "none yet" in one
number. Files of earlier versions (`PolicyConfig.foresees`) have the actions, then all of W.

The trap: an action that still travels through a slow actuator belongs to its episode. The next
episode starts with an empty line, hence without the last one's actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.foresight import foresee
from ssm_metarl.core.identification import Identification

LEVEL, CHANGE, PLANT = 50.0, 200.0, 100.0
"""How much closer to zero than 1 observation, change and coefficient are told from zero."""


@dataclass(frozen=True)
class TrialInput:
    """What stands in the input of one policy."""

    obs_dim: int
    """O."""
    code_dim: int
    """C."""
    actions_seen: int
    """S."""
    identifies: bool
    """Whether what least squares finds of the plant is in it."""
    foresees: bool = False
    """Whether that is what will happen, in place of the actions and all coefficients."""

    @classmethod
    def of(cls, config: PolicyConfig, code_dim: int) -> TrialInput | None:
        """That of an architecture; None where it is no in-context one."""
        if not config.in_context:
            return None
        found = config.identifies, config.foresees
        return cls(len(config.obs_scale), code_dim, config.actions_seen, *found)

    @property
    def actions_dim(self) -> int:
        """Numbers that tell of actions, S C."""
        return self.actions_seen * self.code_dim

    @property
    def plant_rows(self) -> int:
        """Entries of what least squares explains changes by, O + S C; 0 where it is left out."""
        return self.obs_dim + self.actions_dim if self.identifies else 0

    @property
    def size(self) -> int:
        """Size of the input, I."""
        rows = self.obs_dim + self.code_dim + 1 if self.foresees else self.plant_rows
        return 2 * self.obs_dim + self.actions_told + rows * self.obs_dim + 3

    @property
    def actions_told(self) -> int:
        """Numbers of the input that are actions."""
        return 0 if self.foresees else self.actions_dim

    def reflection(self, observed: Tensor) -> Tensor:
        """What the mirrored history's input is, factor by factor, shape (I,).

        An action changes sign. So does the coefficient by which one number moves another where just
        one of the two does. Rewards and ends stay.

        Args:
            observed: Factor of each observation, -1 or 1, shape (O,).
        """
        actions = -observed.new_ones(self.actions_dim)
        movers = torch.cat([observed, actions])[: self.plant_rows]
        if self.foresees:  # the free response is an observation
            movers = torch.cat([observed, actions[: self.code_dim], observed.new_ones(1)])
        moves = (movers[:, None] * observed).flatten()
        told = actions[: self.actions_told]
        return torch.cat([observed, observed, told, moves, observed.new_ones(3)])

    def of_step(
        self,
        z: Tensor,
        limit: Tensor,
        before: Tensor,
        actions: Tensor,
        plant: Tensor,
        reward: Tensor,
        first: Tensor,
        later: Tensor,
    ) -> Tensor:
        """The input of single steps.

        Args:
            z: Scaled observation, shape (..., O).
            limit: Bound of what is told of it either side of zero, shape (O,). Least squares takes
                all.
            before: That of the step before; z itself at an episode's first step.
            actions: Codes of the last actions, newest first, shape (..., S C); 0 for none.
            plant: What `identification` has found, shape (..., (O + S C) O), or (..., 0).
            reward: Last reward, 0 at a trial's first step, shape (...).
            first: True at a trial's first step, shape (...).
            later: True at the first step of a trial's later episodes, shape (...).

        Returns:
            Shape (..., I).
        """
        level = squash(z.clamp(-limit, limit), LEVEL)
        change = squash(z - before, CHANGE)
        flags = torch.stack([torch.asinh(reward), first.to(z.dtype), later.to(z.dtype)], dim=-1)
        told = [actions, squash(plant, PLANT)]
        if self.foresees:
            found = plant.unflatten(-1, (self.plant_rows, self.obs_dim))
            free, effect = foresee(z, actions, found, self.code_dim)
            moves = torch.cat([found[..., : self.obs_dim, :], effect], dim=-2).flatten(-2)
            told = [squash(moves, PLANT), squash(free.clamp(-limit, limit), LEVEL)]
        return torch.cat([level, change, *told, flags], dim=-1)

    def of_sequences(
        self,
        z: Tensor,
        limit: Tensor,
        code: Tensor,
        reward: Tensor,
        episode_start: Tensor,
        trial_start: Tensor,
    ) -> Tensor:
        """The inputs of whole sequences, each of which starts with a trial.

        Args:
            z: Scaled observations, shape (T, ..., O).
            limit: As in `of_step`.
            code: Codes of the actions taken at these steps, shape (T, ..., C).
            reward: Of these steps, shape (T, ...).
            episode_start: True at the first step of an episode, shape (T, ...).
            trial_start: True at the first step of a trial, shape (T, ...).

        Returns:
            Shape (T, ..., I).
        """
        start = episode_start[..., None]
        before = torch.where(start, z, _delayed(z, 1))
        actions, running = [], torch.ones_like(start)
        for ago in range(1, self.actions_seen + 1):
            running = running & ~_delayed(start, ago - 1)  # no episode began since that action
            actions.append(torch.where(running, _delayed(code, ago), 0.0))
        last_reward = torch.where(trial_start, 0.0, _delayed(reward, 1))
        seen = torch.cat(actions, dim=-1)
        plant = z.new_zeros(*z.shape[:-1], 0)
        if self.identifies:
            rows = math.prod(z.shape[1:-1])
            plant = Identification(rows, z.shape[-1], seen.shape[-1]).update(
                *(x.reshape(len(z), rows, -1) for x in (z, before, seen)),
                *(x.reshape(len(z), rows) for x in (episode_start, trial_start)),
            )
            plant = plant.view(*z.shape[:-1], -1)
        later = episode_start & ~trial_start
        return self.of_step(z, limit, before, seen, plant, last_reward, trial_start, later)


def squash(x: Tensor, sharpness: float) -> Tensor:
    """Linear near zero, logarithmic far off, 1 at 1."""
    return torch.asinh(x * sharpness) / math.asinh(sharpness)


def _delayed(x: Tensor, steps: int) -> Tensor:
    """What stood in x so many steps before; zeros before the first step."""
    if steps == 0:
        return x
    return torch.cat([torch.zeros_like(x[:steps]), x[:-steps]])[: len(x)]


def trial_starts(episode_start: Tensor, trial_episodes: int | None) -> Tensor:
    """Where trials of so many episodes start, one after the other, in each environment.

    Args:
        episode_start: True at the first step of an episode, shape (T, ...); True at t = 0.
        trial_episodes: Episodes of a trial; None for one trial without an end.

    Returns:
        Shape (T, ...), bool.
    """
    number = episode_start.long().cumsum(dim=0) - 1
    if trial_episodes is None:
        return episode_start & (number == 0)
    return episode_start & (number % trial_episodes == 0)
