"""Trials: the episodes of a task one after the other, which start where others start side by side.

Place in the flow: stage 2, beside `worlds`. Episode e of task k starts in the same state here, in
one environment whose episodes follow each other, as in environment e of `make_worlds` with as many
environments: so whoever remembers from episode to episode is compared with whoever does not on the
same episodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import Worlds


def make_trial_worlds(tasks: Tasks, num_episodes: int, *, seed: int, purpose: str) -> Worlds:
    """One environment of each of K tasks, for a trial of so many episodes.

    Args:
        tasks: K tasks of one family.
        num_episodes: E; whoever goes on after them meets the same starts again.
        seed: As given to `make_worlds`.
        purpose: Likewise.
    """
    if tasks.family.dynamics is not None:
        return TrialBatch(tasks, num_episodes, seed=seed, purpose=purpose)
    # Imported here: a family with batched physics never pays for importing Gymnasium.
    from ssm_metarl.env_runner.gymnasium_trials import GymnasiumTrials

    return GymnasiumTrials(tasks, num_episodes, seed=seed, purpose=purpose)


class TrialBatch(TaskBatch):
    """See `make_trial_worlds`, for batched physics."""

    def __init__(self, tasks: Tasks, num_episodes: int, *, seed: int, purpose: str) -> None:
        super().__init__(tasks, 1, seed=seed, purpose=purpose)
        noise = TaskNoise(seed, f"{purpose}-reset", tasks.indices)
        uniform = noise.uniform(1, num_episodes, len(self.dynamics.push_scale))[0]
        self._starts = self.dynamics.initial_state(uniform)  # (K, E, S)
        self._begun = torch.zeros(len(tasks), dtype=torch.int64)

    def _fresh(self, mask: Tensor) -> Tensor:
        rows = torch.arange(self.num_tasks)
        fresh = self._starts[rows, self._begun % self._starts.shape[1]]
        self._begun = self._begun + mask[:, 0]
        return fresh[:, None]
