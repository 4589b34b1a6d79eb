"""Gymnasium environments whose episodes follow each other from the starts of those side by side.

Place in the flow: stage 2, made by `trial_worlds`.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ssm_metarl.env_runner.gymnasium_worlds import GymnasiumWorlds
from ssm_metarl.tasks.task_family import Tasks


class GymnasiumTrials(GymnasiumWorlds):
    """See `trial_worlds.make_trial_worlds`."""

    def __init__(self, tasks: Tasks, num_episodes: int, *, seed: int, purpose: str) -> None:
        super().__init__(tasks, 1, seed=seed, purpose=purpose)
        # What as many environments side by side would draw at their first reset.
        self._turns = [_Turns(g.integers(2**31, size=num_episodes)) for g in self._seeds]
        self._seeds = self._turns  # type: ignore[assignment]

    def reset(self, mask: Tensor | None = None) -> Tensor:
        """See `Worlds`."""
        obs = super().reset(mask)
        begun = [True] * self.num_tasks if mask is None else mask[:, 0].tolist()
        for turns, one in zip(self._turns, begun, strict=True):
            turns.number += one
        return obs


class _Turns:
    """Stands in for a task's stream of seeds: the same one until its episode has begun."""

    def __init__(self, seeds: np.ndarray) -> None:
        self._seeds, self.number = seeds, 0

    def integers(self, high: int, size: int) -> np.ndarray:
        return np.full(size, self._seeds[self.number % len(self._seeds)])
