"""Action spaces: what an environment accepts and a policy's head must give.

Place in the flow: beside `types`, known to both the environment side and the policy side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl.seeding import TaskNoise


@dataclass(frozen=True)
class Discrete:
    """An action space of ``n`` choices."""

    n: int

    @property
    def logits_dim(self) -> int:
        """Numbers a policy head must give."""
        return self.n

    @property
    def code_dim(self) -> int:
        """Size of :meth:`code`."""
        return 1 if self.n == 2 else self.n

    def code(self, action: Tensor) -> Tensor:
        """Actions as centred numbers, shape (..., code_dim).

        2a - 1 for two actions, otherwise one-hot minus 1/n.
        """
        if self.n == 2:
            return (2.0 * action - 1.0)[..., None]
        return torch.nn.functional.one_hot(action, self.n) - 1.0 / self.n

    def mirror_code(self, code: Tensor) -> Tensor:
        """The code of action n - 1 - a from that of action a."""
        return -code if self.n == 2 else code.flip(-1)

    def draw_noise(self, noise: TaskNoise, num_steps: int, num_envs: int) -> Tensor:
        """Uniform numbers, shape (num_steps, K, num_envs, 1)."""
        return noise.uniform(num_steps, num_envs, 1)

    def draw_random(self, noise: TaskNoise, num_steps: int, num_envs: int) -> tuple[Tensor, Tensor]:
        """Uniformly random actions and their log-probability, each (num_steps, K, num_envs)."""
        action = (noise.uniform(num_steps, num_envs) * self.n).long()
        return action, torch.full_like(action, -math.log(self.n), dtype=torch.float32)


@dataclass(frozen=True)
class Continuous:
    """A box of ``dim`` actions, each in [low, high]."""

    dim: int
    low: float = -1.0
    high: float = 1.0

    @property
    def logits_dim(self) -> int:
        """Numbers a policy head must give: the means."""
        return self.dim

    @property
    def code_dim(self) -> int:
        """Size of :meth:`code`."""
        return self.dim

    def code(self, action: Tensor) -> Tensor:
        """Actions scaled to [-1, 1], shape (..., dim)."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return (action - middle) / half

    def mirror_code(self, code: Tensor) -> Tensor:
        """The code of the opposite action."""
        return -code

    def draw_noise(self, noise: TaskNoise, num_steps: int, num_envs: int) -> Tensor:
        """Standard normal numbers, shape (num_steps, K, num_envs, dim)."""
        return noise.normal(num_steps, num_envs, self.dim)

    def draw_random(self, noise: TaskNoise, num_steps: int, num_envs: int) -> tuple[Tensor, Tensor]:
        """Uniform actions (num_steps, K, num_envs, dim) and their log-density, one axis less."""
        uniform = noise.uniform(num_steps, num_envs, self.dim)
        action = self.low + (self.high - self.low) * uniform
        return action, torch.full_like(action[..., 0], -self.dim * math.log(self.high - self.low))


ActionSpace = Discrete | Continuous
