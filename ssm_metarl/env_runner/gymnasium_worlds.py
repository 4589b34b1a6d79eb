"""Gymnasium environments as K tasks x N worlds, for families without batched physics.

Place in the flow: stage 2, beside `task_batch`, between `tasks` (what varies) and `rollout` (what
happened).

The trap: Gymnasium's vector environments reset an ended environment in the *next* step, whose
action is ignored and whose reward is 0: a transition that never happened. With autoreset disabled
they refuse to step while one has ended. So the environments are stepped one by one here: an
ended one stays as it is, at no cost, until it is reset.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.entrance import counts, shaped
from ssm_metarl.env_runner.kept_environments import waiting_environments
from ssm_metarl.tasks.gymnasium_world import GymnasiumWorld, to_box
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import EnvStep


class GymnasiumWorlds:
    """K x N Gymnasium environments behind the `Worlds` protocol.

    Arguments are those of `make_worlds`; a time limit counts where it is shorter than the family's.

    Raises:
        ValueError: A family with batched physics, or an environment that cannot be made.
    """

    def __init__(
        self,
        tasks: Tasks,
        num_envs: int,
        *,
        seed: int,
        purpose: str,
        max_episode_steps: int | None = None,
        trial_episodes: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        family, plant = tasks.family, tasks.family.plant
        if plant is None:
            raise ValueError(
                f"GymnasiumWorlds: expected a family that steps Gymnasium environments, "
                f"received {family.name!r}"
            )
        counts(num_envs=num_envs)
        self.num_tasks, self.num_envs = len(tasks), num_envs
        self.obs_dim, self.action_space = family.spaces
        self.max_episode_steps = min(max_episode_steps or plant.horizon, plant.horizon)
        self.device = torch.device(device)
        self._waiting = waiting_environments(family)
        self._worlds: list[GymnasiumWorld] = []
        try:
            for values in tasks.as_dicts():
                for _ in range(num_envs):
                    if self._waiting:
                        self._worlds.append(self._waiting.pop())
                        self._worlds[-1].set(values)
                    else:
                        self._worlds.append(GymnasiumWorld(plant, values))
        except BaseException:
            self.close()
            raise
        self._box = self._worlds[0].box
        if self._box is not None:  # each task's plant clips to its own bounds
            boxes = [w.box for w in self._worlds if w.box is not None]
            self._low = np.stack([box.low.ravel() for box in boxes])
            self._high = np.stack([box.high.ravel() for box in boxes])
        self._seeds = [seeding.generator(seed, f"{purpose}-reset", i) for i in tasks.indices]
        # What as many environments side by side would draw at their first reset.
        self._trial = [g.integers(2**31, size=trial_episodes) for g in self._seeds]
        self._begun = np.zeros(self.num_tasks, dtype=int)
        self._obs = np.zeros((len(self._worlds), self.obs_dim), dtype=np.float32)
        self._ended = np.ones(len(self._worlds), dtype=bool)
        self._steps = np.zeros(len(self._worlds), dtype=int)

    def reset(self, mask: Tensor | None = None) -> Tensor:
        """See `TaskBatch.reset`.

        Raises:
            ValueError: Another shape; or an environment raises, or shows what it should not.
        """
        shape = (self.num_tasks, self.num_envs)
        chosen = np.ones(shape, bool)
        if mask is not None:
            chosen = shaped("mask", mask, shape, torch.bool, "K, N").cpu().numpy()
        seeds = self._next_seeds(chosen)
        for i in np.flatnonzero(chosen):
            self._obs[i] = self._worlds[i].reset(int(seeds[i]))
            self._ended[i], self._steps[i] = False, 0
        self._check(np.zeros(len(self._worlds), np.float32))
        return self._to_tensor(self._obs)

    def step(self, action: Tensor) -> EnvStep:
        """See `TaskBatch.step`.

        Raises:
            ValueError: Another shape, or no actions of the action space: no step was taken. Or an
                environment raises, or returns something else than a step.
        """
        action = self.action_space.checked(action, (self.num_tasks, self.num_envs), "K, N")
        actions = self._to_native(action)
        rewards = np.zeros(len(self._worlds), np.float32)
        terminated, truncated = np.zeros((2, len(self._worlds)), bool)
        for i in np.flatnonzero(~self._ended).tolist():
            # A choice is a number, an action of a box an array, be it of shape ().
            one = actions[i] if self._box is None else actions[i, ...]
            self._obs[i], rewards[i], terminated[i], cut = self._worlds[i].step(one)
            self._steps[i] += 1
            # Gymnasium may set both; an episode that ended for good has nothing to bootstrap.
            over = cut or self._steps[i] >= self.max_episode_steps
            truncated[i] = over and not terminated[i]
        self._check(rewards)
        self._ended |= terminated | truncated
        return EnvStep(*map(self._to_tensor, (self._obs, rewards, terminated, truncated)))

    def close(self) -> None:
        """Close every environment, or let it wait for another task (`kept_environments`)."""
        if self._waiting is not None:
            self._waiting.extend(self._worlds)
        else:
            for world in self._worlds:
                world.close()
        self._worlds = []

    def _next_seeds(self, chosen: np.ndarray) -> np.ndarray:
        """A seed for each environment, of which those of the chosen ones (K, N) are used."""
        if len(self._trial[0]) > 0:
            seeds = [
                turns[n % len(turns)] for turns, n in zip(self._trial, self._begun, strict=True)
            ]
            self._begun += chosen[:, 0]
            return np.array(seeds)
        # Drawn whether or not they are used: which seed a reset meets depends on the time step
        # and the task alone.
        return np.concatenate([g.integers(2**31, size=self.num_envs) for g in self._seeds])

    def _check(self, rewards: np.ndarray) -> None:
        if not (np.isfinite(self._obs).all() and np.isfinite(rewards).all()):
            for world, obs, reward in zip(self._worlds, self._obs, rewards, strict=True):
                world.check(obs, float(reward))

    def _to_native(self, action: Tensor) -> Any:
        """Actions as Gymnasium wants them, one row per environment."""
        flat = action.detach().flatten(0, 1).cpu().numpy()
        if self._box is None:
            return flat.astype(np.int64) + self._worlds[0].env.action_space.start  # type: ignore[attr-defined]
        return to_box(flat, self._box, self._low, self._high)

    def _to_tensor(self, rows: np.ndarray) -> Tensor:
        """A copy of per-environment rows (K * N, ...), shape (K, N, ...)."""
        shaped = rows.reshape(self.num_tasks, self.num_envs, *rows.shape[1:])
        return torch.from_numpy(shaped.copy()).to(self.device)
