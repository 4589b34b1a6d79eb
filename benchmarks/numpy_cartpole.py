"""The episodes of one CartPole task in numpy, as Gymnasium's vector environment steps them.

Place in the flow: the worlds of `task_loop`. As in Gymnasium's ``CartPoleVectorEnv``, all episodes
step in one numpy expression; the hidden physics, pushes and spread starts are those of
`env_runner.task_batch`, so that episodes are as long as there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ssm_metarl.tasks.cartpole import CART_MASS, THETA_LIMIT, TIME_STEP, X_LIMIT, CartPoleDynamics

Step = tuple[np.ndarray, np.ndarray, np.ndarray]


class NumpyCartPole:
    """N episodes of one task; an ended one stays as it is until it is reset.

    Args:
        task: Its parameters by name.
        num_envs: N.
        noise: Draws initial states and pushes.
        max_steps: Time limit.
        push_probability: Share of steps after which a push changes the velocities.
        spread_starts: Share of episodes that start away from the initial states.
    """

    def __init__(
        self,
        task: Mapping[str, float],
        num_envs: int,
        noise: np.random.Generator,
        *,
        max_steps: int,
        push_probability: float = 0.0,
        spread_starts: float = 0.0,
    ) -> None:
        self._task, self._noise, self._max_steps = task, noise, max_steps
        self._push_probability, self._spread_starts = push_probability, spread_starts
        self._state = np.zeros((num_envs, 4), np.float32)
        self._ended, self._count = np.ones(num_envs, bool), np.zeros(num_envs, np.int64)

    def reset(self, mask: np.ndarray | None = None) -> np.ndarray:
        """Start episodes where ``mask`` (N,) is True, or everywhere; observations (N, 4)."""
        mask = np.ones_like(self._ended) if mask is None else mask
        if mask.any():
            size = len(mask)
            fresh = self._noise.uniform(-0.05, 0.05, (size, 4))
            if self._spread_starts > 0:
                far = self._noise.random(size) < self._spread_starts
                offset = self._noise.uniform(-1, 1, (size, 4)) * CartPoleDynamics.start_spread
                fresh += far[:, None] * offset
            self._state = np.where(mask[:, None], fresh, self._state).astype(np.float32)
            self._ended, self._count = self._ended & ~mask, np.where(mask, 0, self._count)
        return self._state

    def step(self, action: np.ndarray) -> Step:
        """Observations (N, 4), terminated and truncated (N,)."""
        p = self._task
        x, x_dot, theta, theta_dot = self._state.T
        total_mass, mass_length = CART_MASS + p["mass"], p["mass"] * p["length"]
        force = np.where(action == 1, p["sign"] * p["force"], -p["sign"] * p["force"])
        sin, cos = np.sin(theta), np.cos(theta)
        push = (force + mass_length * np.square(theta_dot) * sin) / total_mass
        theta_acc = (p["gravity"] * sin - cos * push) / (
            p["length"] * (4.0 / 3.0 - p["mass"] * np.square(cos) / total_mass)
        )
        x_acc = push - mass_length * theta_acc * cos / total_mass
        state = np.stack((
            x + TIME_STEP * x_dot, x_dot + TIME_STEP * x_acc,
            theta + TIME_STEP * theta_dot, theta_dot + TIME_STEP * theta_acc,
        ), axis=1)  # fmt: skip
        running = ~self._ended
        terminated = (np.abs(state[:, 0]) > X_LIMIT) | (np.abs(state[:, 2]) > THETA_LIMIT)
        terminated &= running
        if self._push_probability > 0:
            pushed = (self._noise.random(len(action)) < self._push_probability) & ~terminated
            if pushed.any():
                state += (
                    pushed[:, None]
                    * self._noise.normal(size=state.shape)
                    * CartPoleDynamics.push_scale
                )
        self._state = np.where(running[:, None], state, self._state).astype(np.float32)
        self._count = self._count + running
        truncated = (self._count >= self._max_steps) & running & ~terminated
        self._ended = self._ended | terminated | truncated
        return self._state, terminated, truncated
