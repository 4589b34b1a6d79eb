"""Worlds for any family: batched physics where there are some, Gymnasium environments otherwise.

Place in the flow: stage 2, in front of `task_batch` and `gymnasium_worlds`; trainers and
evaluators make their worlds here and need not know which kind they got.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from typing import Any

import torch

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.compiled import usual_modes
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.tasks.gymnasium_family import own_limit, plant_of
from ssm_metarl.tasks.gymnasium_spaces import spaces_of
from ssm_metarl.tasks.task_family import Choice, TaskFamily, Tasks, Uniform
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
        device: Where the tensors live.

    Raises:
        ValueError: Pushes or spread starts for Gymnasium environments, whose state is out of
            reach; a time limit below 1.
    """
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps: expected at least 1, received {max_episode_steps}")
    if tasks.family.dynamics is not None:
        return TaskBatch(
            tasks,
            num_envs,
            seed=seed,
            purpose=purpose,
            max_episode_steps=max_episode_steps,
            push_probability=push_probability,
            spread_starts=spread_starts,
            device=device,
        )
    for name, value in (("push_probability", push_probability), ("spread_starts", spread_starts)):
        if value != 0:
            raise ValueError(
                f"{name}: expected 0 for {tasks.family.name!r}, which steps Gymnasium "
                f"environments, received {value:g}"
            )
    # Imported here: a family with batched physics never pays for importing Gymnasium.
    from ssm_metarl.env_runner.gymnasium_worlds import GymnasiumWorlds

    return GymnasiumWorlds(
        tasks,
        num_envs,
        seed=seed,
        purpose=purpose,
        max_episode_steps=max_episode_steps,
        device=device,
    )


def fingerprint(family: TaskFamily) -> str:
    """What a family declares, in short: another one of the same name has another fingerprint.

    Names, defaults and ranges of the parameters, sizes of observations and actions, whose physics,
    and the time limit.
    """
    obs_dim, space = observation_and_action(family)
    declared: dict[str, Any] = {
        "physics": type(family.dynamics).__name__ if family.dynamics else plant_of(family).name,
        "observations": obs_dim,
        "actions": str(space),
        "max_episode_steps": family.max_episode_steps,
        "told_dims": family.told_dims,
        "parameters": [
            [p.name, float(p.default), *(_range(r) for r in (p.id, p.ood))]
            for p in family.parameters
        ],
    }
    plant = family.plant
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


def observation_and_action(family: TaskFamily) -> tuple[int, ActionSpace]:
    """Observation size O and action space of a family's tasks: what a policy for it must fit."""
    if family.dynamics is not None:
        return family.dynamics.obs_dim, family.dynamics.action_space
    plant = plant_of(family)
    if plant.spaces is not None:
        return plant.spaces
    with closing(plant.build()) as env:
        return spaces_of(env, plant.name)


def horizon(family: TaskFamily) -> int | None:
    """Most steps of an episode of a family's tasks; None where they have no limit."""
    if family.dynamics is not None:
        return family.dynamics.max_episode_steps
    if family.max_episode_steps is not None:
        return family.max_episode_steps
    with closing(plant_of(family).build()) as env:
        return own_limit(env)
