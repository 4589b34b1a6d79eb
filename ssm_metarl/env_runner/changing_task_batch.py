"""Plants that change while they run: no reset, and nothing that tells.

Place in the flow: stage 2, beside `task_batch`, whose physics it runs; `evaluation.drift` asks who
still holds the pole afterwards.
"""

from __future__ import annotations

from torch import Tensor

from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.settings import require
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import EnvStep


class ChangingTaskBatch(TaskBatch):
    """One environment of each task, which becomes another task on the way.

    Args:
        tasks: K tasks, as they begin.
        later: What they become.
        at: Steps that a task takes before it changes, shape (K,), counted over all episodes.
        over: Steps that the change takes, each range moving evenly and each category jumping
            half-way; 1 for a jump of all.
        seed: As of a `TaskBatch` of ``tasks``.
        purpose: Likewise.
        max_episode_steps: Likewise.
    """

    def __init__(
        self,
        tasks: Tasks,
        later: Tasks,
        at: Tensor,
        *,
        over: int = 1,
        seed: int,
        purpose: str,
        max_episode_steps: int | None = None,
    ) -> None:
        if at.shape != (len(tasks),) or len(later) != len(tasks):
            raise ValueError(
                f"at: expected shape ({len(tasks)},) and as many later tasks, received "
                f"{tuple(at.shape)} and {len(later)}"
            )
        require(over >= 1, "over", "at least 1", over)
        limit = max_episode_steps
        super().__init__(tasks, 1, seed=seed, purpose=purpose, max_episode_steps=limit)
        self._before = self._parameters
        self._later = {n: v.to(self._state)[:, None] for n, v in later.values.items()}
        self._kinds = {p.name: p for p in tasks.family.parameters}
        self._at, self._over, self._steps_done = at[:, None], over, 0

    def step(self, action: Tensor) -> EnvStep:
        """As `TaskBatch.step`, under the parameters of this moment."""
        moved = self._steps_done + 1 - self._at
        share = (moved / self._over).clamp(0, 1).to(self._state)  # (K, 1)
        self._parameters = {
            name: self._kinds[name].between(before, self._later[name], share)
            for name, before in self._before.items()
        }
        self._steps_done += 1
        return super().step(action)
