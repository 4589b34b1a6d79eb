"""Uniform actions: what chance scores.

Place in the flow: stage 7, a leaf of `method`, a yardstick.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ssm_metarl.methods.method import Data, Method, Model, Prepared
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import Actor

PURPOSE = "evaluation-random"
BLOCK = 100  # steps that are drawn at a time


@dataclass(frozen=True)
class Random(Method):
    """See `Method`."""

    name = "random"
    label = "random actions"
    definition = "uniform actions"

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """Actions from streams that belong to the tasks."""
        return Prepared(uniform_actor(tasks, data.num_envs, data.seed))


def uniform_actor(tasks: Tasks, num_envs: int, seed: int) -> Actor:
    """Uniform actions in N environments of each task, for as many steps as are asked for."""
    _, space = tasks.family.spaces
    noise = TaskNoise(seed, PURPOSE, tasks.indices)

    def drawn() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from zip(*space.draw_random(noise, BLOCK, num_envs), strict=True)

    steps = drawn()
    return lambda obs, reset: next(steps)
