"""Worlds for any family: batched physics where there are some, Gymnasium environments otherwise.

Place in the flow: stage 2, in front of `task_batch` and `gymnasium_worlds`; trainers and
evaluators make their worlds here and need not know which kind they got.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ssm_metarl.compiled import usual_modes
from ssm_metarl.env_runner.gymnasium_worlds import GymnasiumWorlds
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.settings import require
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import Choice, Uniform
from ssm_metarl.types import Worlds


@usual_modes()
def make_worlds(
    tasks: Tasks,
    num_envs: int,
    *,
    seed: int,
    purpose: str,
    max_episode_steps: int | None = None,
    push_probability: float = 0.0,
    spread_starts: float = 0.0,
    trial_episodes: int = 0,
    device: torch.device | str = "cpu",
) -> Worlds:
    """K tasks x N environments that step together.

    Args:
        tasks: K tasks of one family.
        num_envs: N, environments per task.
        seed: Seed of the worlds' own randomness.
        purpose: Names its streams, such as "support": two purposes share no draw.
        max_episode_steps: Time limit; None for the family's own.
        push_probability: Share of steps after which a random push changes the velocities
            (batched physics only).
        spread_starts: Share of episodes that start away from the initial states (likewise).
        trial_episodes: E of a trial, in one environment a task: episode e of a task starts as
            environment e of worlds with E environments does, so that whoever remembers from
            episode to episode meets what others meet side by side. Whoever goes on after E
            episodes meets the same starts again. 0 for no trial.
        device: Where the tensors live.

    Raises:
        ValueError: Pushes or spread starts for Gymnasium environments, whose state is out of
            reach; a time limit below 1.
    """
    limit = max_episode_steps
    require(limit is None or limit >= 1, "max_episode_steps", "at least 1", limit)
    same: dict[str, Any] = {
        "seed": seed,
        "purpose": purpose,
        "max_episode_steps": limit,
        "trial_episodes": trial_episodes,
        "device": device,
    }
    disturbed: dict[str, Any] = {
        "push_probability": push_probability,
        "spread_starts": spread_starts,
    }
    if tasks.family.dynamics is not None:
        return TaskBatch(tasks, num_envs, **same, **disturbed)
    for name, value in disturbed.items():
        expected = f"0 for {tasks.family.name!r}, which steps Gymnasium environments"
        require(value == 0, name, expected, value)
    return GymnasiumWorlds(tasks, num_envs, **same)


def fingerprint(family: TaskFamily) -> str:
    """What a family declares, in short: another one of the same name has another fingerprint.

    Names, defaults and ranges of the parameters, sizes of observations and actions, whose physics,
    and the time limit.
    """
    obs_dim, space = family.spaces
    plant = family.plant
    declared: dict[str, Any] = {
        "physics": type(family.dynamics).__name__ if plant is None else plant.name,
        "observations": obs_dim,
        "actions": str(space),
        "max_episode_steps": plant and plant.limit,
        "told_dims": family.told_dims,
        "parameters": [
            [p.name, float(p.default), *(_range(r) for r in (p.id, p.ood))]
            for p in family.parameters
        ],
    }
    if plant is not None and plant.places:  # elsewhere than under the parameters' names
        declared["places"] = [
            [n, p if isinstance(p, str) else p.__qualname__] for n, p in plant.places
        ]
    if plant is not None and plant.kwargs:
        declared["kwargs"] = {name: repr(value) for name, value in plant.kwargs}
    text = json.dumps(declared, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _range(values: Uniform | Choice) -> list[Any]:
    if isinstance(values, Choice):
        return ["choice", *map(float, values.values)]
    return ["uniform", *([float(low), float(high)] for low, high in values.intervals)]
