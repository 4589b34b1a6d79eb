"""One Gymnasium environment as the package steps it: rows of numbers in and out, or one clear line.

Place in the flow: stage 1, around an environment of `gymnasium_plant`; `gymnasium_verify` drives
some, `env_runner.gymnasium_worlds` many. An environment is a stranger's code: whatever it raises or
returns that is no step becomes a ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.tasks.gymnasium_plant import GymnasiumPlant
from ssm_metarl.tasks.gymnasium_spaces import flat, spaces_of

if TYPE_CHECKING:
    import gymnasium

Row = NDArray[Any]


class GymnasiumWorld:
    """An environment in a task.

    Args:
        plant: How it is made.
        values: Of the task's parameters; None for the unmodified environment.
    """

    def __init__(self, plant: GymnasiumPlant, values: Mapping[str, Any] | None = None) -> None:
        from gymnasium import spaces

        self.plant = plant
        self.env: gymnasium.Env[Any, Any] = plant.build(values)
        try:
            self.obs_dim, self.action_space = spaces_of(self.env, plant.name)
        except BaseException:
            self.env.close()
            raise
        space = self.env.observation_space
        self._flat: Callable[[Any], Row] = (
            np.ravel if isinstance(space, spaces.Box) else partial(flat, space)
        )
        self.box = self.env.action_space if isinstance(self.env.action_space, spaces.Box) else None

    def set(self, values: Mapping[str, Any]) -> None:
        """Make it another task's, without building it anew."""
        self.plant.set(self.env, values)

    def reset(self, seed: int | None = None) -> Row:
        """Start an episode; the observation, shape (O,).

        Raises:
            ValueError: The environment raises, or returns no observation.
        """
        try:
            obs, _ = self.env.reset(seed=seed)
            return self._row(obs)
        except Exception as error:
            raise self._refusal("reset", error) from error

    def step(self, action: Any) -> tuple[Row, float, bool, bool]:
        """One step of a `native` action: observation (O,), reward, terminated, truncated.

        Raises:
            ValueError: The environment raises, or returns something else than a step.
        """
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action)
            return self._row(obs), float(reward), bool(terminated), bool(truncated)
        except Exception as error:
            raise self._refusal("step", error) from error

    def native(self, action: Any) -> Any:
        """A choice from 0 on, or a row (A,) of numbers, as the environment takes it: clipped."""
        if self.box is None:
            return np.int64(action) + self.env.action_space.start  # type: ignore[attr-defined]
        return to_box(np.ravel(action), self.box, self.box.low.ravel(), self.box.high.ravel())

    def check(self, obs: Row, reward: float) -> None:
        """See that numbers are numbers.

        Raises:
            ValueError: One is not finite.
        """
        about = f"environment {self.plant.name}: expected"
        wrong = np.flatnonzero(~np.isfinite(obs))
        if wrong.size > 0:
            raise ValueError(
                f"{about} finite observations, received {obs[wrong[0]]} as number {wrong[0]} of "
                f"{obs.size}"
            )
        if not np.isfinite(reward):
            raise ValueError(f"{about} a finite reward, received {reward}")

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _row(self, obs: Any) -> Row:
        row = self._flat(obs)
        if row.size != self.obs_dim:
            raise ValueError(
                f"expected observations of {self.obs_dim} numbers, as its space says, received "
                f"shape {row.shape}"
            )
        return row

    def _refusal(self, what: str, error: Exception) -> ValueError:
        line = " ".join(str(error).split())
        if not line.startswith("expected"):
            kind = type(error).__name__
            line = f"expected what Gymnasium's interface says, received {kind}: {line}"
        return ValueError(f"environment {self.plant.name}: {what}: {line}")


def to_box(rows: Row, box: Any, low: Row, high: Row) -> Row:
    """Actions (..., A) as a box takes them, clipped to bounds that broadcast to theirs."""
    clipped = np.clip(rows, low, high)
    if np.issubdtype(box.dtype, np.integer):
        clipped = np.rint(clipped)
    return clipped.astype(box.dtype).reshape(*rows.shape[:-1], *box.shape)
