"""Action spaces: what an environment accepts and a policy's head must give.

Place in the flow: beside `types`, known to both the environment side and the policy side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.entrance import shaped
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

    def checked(
        self, action: Tensor, lead: tuple[int, ...], axes: str, *, taken: Tensor | None = None
    ) -> Tensor:
        """Actions of this space.

        Args:
            action: Expected to have the shape ``lead`` and whole numbers from 0 to n - 1; in a
                `Continuous` space ``(*lead, dim)`` and finite numbers, within the bounds or not,
                for the plant clips them.
            lead: One action for each index.
            axes: Names of its axes.
            taken: True where there is an action at all, shape ``lead``; None for everywhere.

        Raises:
            ValueError: They are none.
        """
        action = shaped("action", action, lead, torch.int64, axes)
        wrong = (action < 0) | (action >= self.n)
        if taken is not None:
            wrong &= taken
        if bool(wrong.any()):
            raise ValueError(
                f"action: expected whole numbers from 0 to {self.n - 1}, received "
                f"{int(action[wrong][0])}"
            )
        return action

    def code(self, action: Tensor) -> Tensor:
        """Centred numbers (..., code_dim): 2a - 1 for two actions, otherwise one-hot minus 1/n."""
        if self.n == 2:
            return (2.0 * action - 1.0)[..., None]
        return torch.nn.functional.one_hot(action, self.n) - 1.0 / self.n

    def mirror_code(self, code: Tensor) -> Tensor:
        """The code of action n - 1 - a from that of action a."""
        return -code if self.n == 2 else code.flip(-1)

    def draw_noise(self, noise: TaskNoise, num_steps: int, num_envs: int) -> Tensor:
        """Uniform numbers, shape (num_steps, K, num_envs, 1)."""
        return noise.uniform(num_steps, num_envs, 1)

    def random(self, rng: np.random.Generator, num: int) -> Tensor:
        """Uniformly random actions, shape (num,)."""
        return torch.from_numpy(rng.integers(self.n, size=num))

    def draw_random(self, noise: TaskNoise, num_steps: int, num_envs: int) -> tuple[Tensor, Tensor]:
        """Uniformly random actions and their log-probability, each (num_steps, K, num_envs)."""
        action = (noise.uniform(num_steps, num_envs) * self.n).long()
        return action, torch.full_like(action, -math.log(self.n), dtype=torch.float32)


Bound = float | tuple[float, ...]
"""Of every dimension of an action, or one number for each."""


@dataclass(frozen=True)
class Continuous:
    """A box of ``dim`` actions, each in [low, high]; bounds that are all alike become one number.

    Raises:
        ValueError: Bounds for another number of dimensions, not finite, or the wrong way round.
    """

    dim: int
    low: Bound = -1.0
    high: Bound = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = getattr(self, name)
            if isinstance(bound, tuple) and len(bound) != self.dim:
                raise ValueError(f"{name}: expected one number, or {self.dim}, received {bound}")
            if isinstance(bound, tuple) and len(set(bound)) == 1:  # the same box, written otherwise
                object.__setattr__(self, name, bound[0])
        # one pair is enough where both are numbers, however many dimensions a file claims
        low, high = np.broadcast_arrays(self.low, self.high)
        if not (np.isfinite([low, high]).all() and (low < high).all()):
            raise ValueError(
                f"action space: expected finite bounds, low < high, received "
                f"[{self.low}, {self.high}]"
            )

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Lowest and highest value of each dimension."""
        low, high = (x if isinstance(x, tuple) else (x,) * self.dim for x in (self.low, self.high))
        return tuple(zip(low, high, strict=True))

    def middle_and_half(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The box's middle and half its width, (dim,): code c is the action middle + half c."""
        low, high = like.new_tensor(self.bounds, dtype=torch.float64).unbind(-1)
        return ((low + high) / 2).to(like.dtype), ((high - low) / 2).to(like.dtype)

    @property
    def logits_dim(self) -> int:
        """Numbers a policy head must give: the means."""
        return self.dim

    @property
    def code_dim(self) -> int:
        """Size of :meth:`code`."""
        return self.dim

    def checked(
        self, action: Tensor, lead: tuple[int, ...], axes: str, *, taken: Tensor | None = None
    ) -> Tensor:
        """See `Discrete.checked`."""
        floating = isinstance(action, Tensor) and action.dtype.is_floating_point
        kind = action.dtype if floating else torch.float32
        action = shaped("action", action, (*lead, self.dim), kind, f"{axes}, A")
        wrong = ~action.isfinite()
        if taken is not None:
            wrong &= taken[..., None]
        if bool(wrong.any()):
            raise ValueError(f"action: expected finite numbers, received {float(action[wrong][0])}")
        return action

    def code(self, action: Tensor) -> Tensor:
        """Actions as the plant executes them, clipped, scaled to [-1, 1], shape (..., dim)."""
        middle, half = self.middle_and_half(action)
        return ((action - middle) / half).clamp(-1.0, 1.0)

    def mirror_code(self, code: Tensor) -> Tensor:
        """The code of the opposite action."""
        return -code

    def draw_noise(self, noise: TaskNoise, num_steps: int, num_envs: int) -> Tensor:
        """Standard normal numbers, shape (num_steps, K, num_envs, dim)."""
        return noise.normal(num_steps, num_envs, self.dim)

    def random(self, rng: np.random.Generator, num: int) -> Tensor:
        """Uniformly random actions, shape (num, dim), float64."""
        low, high = np.array(self.bounds).T
        return torch.from_numpy(rng.uniform(low, high, size=(num, self.dim)))

    def draw_random(self, noise: TaskNoise, num_steps: int, num_envs: int) -> tuple[Tensor, Tensor]:
        """Uniform actions (num_steps, K, num_envs, dim) and their log-density, one axis less."""
        uniform = noise.uniform(num_steps, num_envs, self.dim)
        low, high = uniform.new_tensor(self.bounds, dtype=torch.float64).unbind(-1)
        action = low.to(uniform) + (high - low).to(uniform) * uniform
        return action, torch.full_like(action[..., 0], -float((high - low).log().sum()))


ActionSpace = Discrete | Continuous
