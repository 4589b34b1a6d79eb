"""How large a family's observations are, where it does not say: measured on random steps.

Place in the flow: stage 2, on its way from a family to its policy's architecture. What a model sees
should be of the size of 1, be it in metres, millimetres or kilometres.
"""

from __future__ import annotations

import math
from contextlib import closing

import torch

from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import TaskFamily

PURPOSE = "observation-scale"
NUM_TASKS, NUM_STEPS = 8, 128
NOTHING = 1e-9
"""Size up to which it is taken for zero: a sensor that random steps never move."""


def measured_scale(family: TaskFamily) -> tuple[float, ...]:
    """Powers of ten that bring what random steps of training tasks meet to about 1, shape (O,).

    So the same plant in other metric units is the same to a model.
    """
    sizes = measured_sizes(family)
    return tuple(10.0 ** -round(math.log10(s)) if s > NOTHING else 1.0 for s in sizes)


def measured_sizes(family: TaskFamily) -> tuple[float, ...]:
    """Root mean square of each observation, as random steps of training tasks meet it, shape (O,).

    The tasks are the same whatever the seed of the training.
    """
    tasks = family.sample("train", NUM_TASKS, seed=0, stream=PURPOSE)
    with closing(make_worlds(tasks, 1, seed=0, purpose=PURPOSE)) as worlds:
        noise = TaskNoise(0, PURPOSE, tasks.indices)
        actor = random_actor(worlds, noise, NUM_STEPS)
        seen = collect_rollout(worlds, actor, NUM_STEPS, autoreset=True)
    obs = torch.cat([seen.obs, seen.next_obs]).double()
    return tuple(obs.where(obs.isfinite(), 0.0).square().mean(dim=(0, 1, 2)).sqrt().tolist())
