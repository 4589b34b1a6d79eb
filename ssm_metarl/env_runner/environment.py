"""One world with Gymnasium's interface: any Gymnasium id, or a task of a family.

Place in the flow: stage 2, the front door for a reader's own loops; training and evaluation use
`worlds`, which steps many at once.

The trap: a Gymnasium id, of a family too, is Gymnasium's own environment. Only a ``task``, or the
family's name, brings in the family's physics, whose default task does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from ssm_metarl.action_space import Discrete
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.settings import plain
from ssm_metarl.tasks import names
from ssm_metarl.tasks.gymnasium_plant import GymnasiumPlant
from ssm_metarl.tasks.registry import FAMILIES, TOLD, family_of_env
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


class Environment(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment, stepped with numpy arrays.

    It is a Gymnasium environment itself, so Gymnasium's wrappers and checks apply to it, and it is
    a context manager.

    Args:
        env_id: A Gymnasium id ("Pendulum-v1"), the name of a family ("pendulum"), or a
            `TaskFamily`.
        task: Parameters of the task, such as ``{"mass": 1.2}``; those not named keep their
            defaults. None means the unmodified environment.
        seed: Seed of the first ``reset()``. Later ones continue its stream, unless they are
            given a seed.

    Raises:
        ValueError: An unknown id, a task for an id without a family, an unknown parameter, or
            a value outside its range.
    """

    def __init__(
        self, env_id: str | TaskFamily, task: Mapping[str, Any] | None = None, *, seed: int = 0
    ) -> None:
        self.family = _family_or_none(env_id)
        """The task family that the environment belongs to, None if there is none."""
        named = isinstance(env_id, TaskFamily) or env_id in {**FAMILIES, **TOLD}
        if self.family is not None and (named or task is not None):
            env = _task_environment(self.family.task(task))
        elif task is not None:
            raise ValueError(
                f"task: expected None, for {env_id!r} belongs to no task family, received "
                f"{dict(task)}"
            )
        else:
            expected = f"a Gymnasium id such as {names.ENVIRONMENT!r} or one of {sorted(FAMILIES)}"
            env = GymnasiumPlant(str(env_id)).build(check=True, expected=expected)
        super().__init__(env)
        self._first_seed: int | None = seed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Restarts the environment's randomness from this seed.
            options: Passed on to Gymnasium environments.

        Returns:
            Observation, shape (O,), and an information dictionary.
        """
        first, self._first_seed = self._first_seed, None
        return super().reset(seed=plain(first if seed is None else seed), options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step.

        Raises:
            ValueError: A choice that a discrete action space does not have.
        """
        space = self.action_space
        if isinstance(space, spaces.Discrete) and not space.contains(action):
            raise ValueError(f"action: expected one of {space}, received {action!r}")
        return super().step(action)


class BatchedPhysicsEnvironment(gymnasium.Env[NDArray[np.float32], Any]):
    """One task (K = 1) of a family with batched physics: a `TaskBatch` of one, in float64."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._batch: TaskBatch | None = None
        self._running = False
        obs_dim, space = tasks.family.spaces
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        if isinstance(space, Discrete):
            self.action_space: spaces.Space[Any] = spaces.Discrete(space.n)
        else:
            low, high = np.array(space.bounds, np.float32).T
            self.action_space = spaces.Box(low, high)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; ``options`` are ignored, the information is empty."""
        super().reset(seed=plain(seed), options=options)
        if seed is not None or self._batch is None:
            drawn = int(self.np_random.integers(2**63))
            self._batch = TaskBatch(
                self._tasks, 1, seed=drawn, purpose="environment", dtype=torch.float64
            )
        self._running = True
        return self._batch.reset()[0, 0].numpy().astype(np.float32), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step; the information is empty. Out of bounds an action is clipped by the plant.

        Raises:
            gymnasium.error.ResetNeeded: No episode is running.
        """
        if self._batch is None or not self._running:
            raise gymnasium.error.ResetNeeded("step: expected a running episode; call reset()")
        kind = np.int64 if isinstance(self.action_space, spaces.Discrete) else np.float64
        chosen = torch.as_tensor(np.asarray(action, kind), device="cpu")
        step = self._batch.step(chosen[None, None])
        terminated, truncated = bool(step.terminated), bool(step.truncated)
        self._running = not (terminated or truncated)
        obs = step.obs[0, 0].numpy().astype(np.float32)
        return obs, float(step.reward), terminated, truncated, {}


def _family_or_none(env_id: str | TaskFamily) -> TaskFamily | None:
    if isinstance(env_id, TaskFamily):
        return env_id
    try:
        return family_of_env(env_id)
    except ValueError:
        return None


def _task_environment(tasks: Tasks) -> gymnasium.Env[Any, Any]:
    plant = tasks.family.plant
    if plant is None:
        return BatchedPhysicsEnvironment(tasks)
    env = plant.build(tasks.as_dicts()[0], check=True)
    row = isinstance(env.observation_space, spaces.Box)
    return env if row else gymnasium.wrappers.FlattenObservation(env)
