"""Gymnasium environments as K tasks x N worlds, for families without batched physics.

Place in the flow: stage 2, beside `task_batch`, between `tasks` (what varies) and `rollout` (what
happened).

The trap: Gymnasium's vector environments reset an ended environment in the *next* step, whose
action is ignored and whose reward is 0: a transition that never happened. With autoreset disabled
they refuse to step while one has ended. So the environments are stepped one by one here: an
ended one stays as it is, at no cost, until it is reset.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.entrance import counts, shaped
from ssm_metarl.tasks.gymnasium_family import make_environment, spaces_of
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import EnvStep


class GymnasiumWorlds:
    """K x N Gymnasium environments behind the `Worlds` protocol.

    Args:
        tasks: K tasks of a family that names a Gymnasium id.
        num_envs: N, environments per task.
        seed: Seed of the resets.
        purpose: Names the stream of the resets' seeds, such as "support".
        max_episode_steps: Time limit, where it is shorter than the family's, or else the
            environment's own.
        device: Where the tensors that are handed out live.

    Raises:
        ValueError: A family with batched physics, spaces that `spaces_of` refuses, or no time
            limit at all.
    """

    def __init__(
        self,
        tasks: Tasks,
        num_envs: int,
        *,
        seed: int,
        purpose: str,
        max_episode_steps: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        family = tasks.family
        if family.gymnasium_id is None or family.dynamics is not None:
            raise ValueError(
                f"GymnasiumWorlds: expected a family that steps Gymnasium environments, "
                f"received {family.name!r}"
            )
        counts(num_envs=num_envs)
        self.num_tasks, self.num_envs = len(tasks), num_envs
        self._envs: list[gymnasium.Env[Any, Any]] = []
        limit = _shorter(family, max_episode_steps)
        try:
            for values in tasks.as_dicts():
                for _ in range(num_envs):
                    env = make_environment(family.gymnasium_id, values, max_episode_steps=limit)
                    self._envs.append(env)
            self.obs_dim, self.action_space = spaces_of(self._envs[0])
            self.max_episode_steps = _time_limit(self._envs[0])
        except BaseException:
            self.close()
            raise
        self._native_actions = self._envs[0].action_space
        self._seeds = [seeding.generator(seed, f"{purpose}-reset", i) for i in tasks.indices]
        self._obs = np.zeros((len(self._envs), self.obs_dim), dtype=np.float32)
        self._ended = np.ones(len(self._envs), dtype=bool)
        self.device = torch.device(device)

    def reset(self, mask: Tensor | None = None) -> Tensor:
        """Start new episodes where ``mask`` (K, N) is True, or everywhere.

        Returns:
            Observations, shape (K, N, O), float32.
        """
        shape = (self.num_tasks, self.num_envs)
        chosen = np.ones(shape, bool)
        if mask is not None:
            chosen = shaped("mask", mask, shape, torch.bool, "K, N").cpu().numpy()
        # Drawn whether or not they are used: which seed a reset meets depends on the time step
        # and the task alone.
        seeds = np.concatenate([g.integers(2**31, size=self.num_envs) for g in self._seeds])
        for i in np.flatnonzero(chosen):
            obs, _ = self._envs[i].reset(seed=int(seeds[i]))
            self._obs[i] = np.ravel(obs)
            self._ended[i] = False
        return self._to_tensor(self._obs)

    def step(self, action: Tensor) -> EnvStep:
        """Step every environment that has not ended.

        Args:
            action: (K, N) int64 if discrete, (K, N, A) if continuous, clipped to the bounds.

        Returns:
            The observation that the step led to (K, N, O) and reward, terminated and truncated
            (K, N); for an environment that had ended already: where it stands, 0, False, False.

        Raises:
            ValueError: Another shape, or no actions of the action space; no step was taken.
        """
        action = self.action_space.checked(action, (self.num_tasks, self.num_envs), "K, N")
        actions = self._to_native(action)
        count = len(self._envs)
        rewards = np.zeros(count, np.float32)
        terminated, truncated = np.zeros(count, bool), np.zeros(count, bool)
        for i in np.flatnonzero(~self._ended).tolist():
            obs, reward, terminated[i], cut, _ = self._envs[i].step(self._one(actions, i))
            self._obs[i], rewards[i] = np.ravel(obs), reward
            # Gymnasium may set both; an episode that ended for good has nothing to bootstrap.
            truncated[i] = cut and not terminated[i]
        self._ended |= terminated | truncated
        return EnvStep(*map(self._to_tensor, (self._obs, rewards, terminated, truncated)))

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _to_native(self, action: Tensor) -> Any:
        """Actions as Gymnasium wants them, one row per environment."""
        flat = action.detach().flatten(0, 1).cpu().numpy()
        if isinstance(self._native_actions, spaces.Discrete):
            return flat.astype(np.int64) + self._native_actions.start
        assert isinstance(self._native_actions, spaces.Box)
        box = self._native_actions
        clipped = np.clip(flat.reshape(-1, *box.shape), box.low, box.high)
        if np.issubdtype(box.dtype, np.integer):
            clipped = np.rint(clipped)
        return clipped.astype(box.dtype)

    def _one(self, actions: Any, i: int) -> Any:
        """An environment's action: an array for a box, be it of shape ()."""
        return actions[i] if isinstance(self._native_actions, spaces.Discrete) else actions[i, ...]

    def _to_tensor(self, rows: np.ndarray) -> Tensor:
        """A copy of per-environment rows (K * N, ...), shape (K, N, ...)."""
        shaped = rows.reshape(self.num_tasks, self.num_envs, *rows.shape[1:])
        return torch.from_numpy(shaped.copy()).to(self.device)


def _shorter(family: TaskFamily, steps: int | None) -> int | None:
    """``steps``, or the family's own limit where that is less; None where neither is known yet."""
    assert family.gymnasium_id is not None
    own = family.max_episode_steps
    if own is None:
        # an id that is not known is named by whoever makes the environment
        with suppress(gymnasium.error.Error, ModuleNotFoundError):
            own = gymnasium.spec(family.gymnasium_id).max_episode_steps
    return min((limit for limit in (steps, own) if limit is not None), default=None)


def _time_limit(env: gymnasium.Env[Any, Any]) -> int:
    limit = env.spec.max_episode_steps if env.spec else None
    if limit is None:
        raise ValueError(f"max_episode_steps: expected a number for {env}, received None")
    return limit
