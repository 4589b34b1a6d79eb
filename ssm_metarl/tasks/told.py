"""A family whose tasks say which task they are: the observation, then the task's parameters.

Place in the flow: stage 1, around a family with batched physics. A policy trained on it (with
``--adaptation_steps 0``) is told what adaptation has to find out: how much of its score an adapting
policy loses to not knowing, and how much to what it learnt. Unlike the arm ``lqr`` it learns from
rewards, by the same training.

    told observation = (observation, code of parameter 1, code of parameter 2, ...)

- a range: its ID ends are -1 and 1, the logarithm between them where all of it is positive
- a choice of two values, or of values with a unit: likewise, and linear
- a choice of names (no unit, such as the order of sensors): one number for each, 1 for the one
  that it is

Draws depend on seed, split and the parameters' order alone: task k of the told family is task k of
the plain one, and meets the same initial states. The trap: what is told of an OOD task lies beyond
-1 and 1, and a policy sees it clipped to the nearest end that training met.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ssm_metarl.tasks.dynamics import Dynamics
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.tasks.task_parameter import Choice, TaskParameter


class ParameterCode:
    """How a parameter's value is told.

    Args:
        parameter: Which one.
    """

    def __init__(self, parameter: TaskParameter) -> None:
        values = parameter.id.values if isinstance(parameter.id, Choice) else ()
        self.named = len(values) > 2 and not parameter.unit
        self.dim = len(values) if self.named else 1
        self._values = torch.tensor(values, dtype=torch.float64)
        if not isinstance(parameter.id, Choice):
            ends = [end for interval in parameter.id.intervals for end in interval]
        else:
            ends = list(values)
        low, high = min(ends), max(ends)
        self._logarithmic = not values and low > 0
        if self._logarithmic:
            low, high = math.log(low), math.log(high)
        self._middle, self._half = (low + high) / 2, (high - low) / 2 or 1.0

    def __call__(self, value: Tensor) -> Tensor:
        """Codes (..., dim) of values (...); a name that no training has is all zeros."""
        if self.named:
            return (value[..., None] == self._values.to(value)).to(value.dtype)
        if self._logarithmic:
            value = value.log()
        return ((value - self._middle) / self._half)[..., None]


class ToldDynamics:
    """Another family's physics, whose observation also tells the parameters.

    Args:
        dynamics: The physics.
        parameters: What is told.
    """

    def __init__(self, dynamics: Dynamics, parameters: tuple[TaskParameter, ...]) -> None:
        self.dynamics = dynamics
        self.codes = {p.name: ParameterCode(p) for p in parameters}
        self.told_dims = sum(code.dim for code in self.codes.values())
        self.obs_dim = dynamics.obs_dim + self.told_dims
        self.action_space, self.max_episode_steps = (
            dynamics.action_space,
            dynamics.max_episode_steps,
        )
        self.push_scale, self.start_spread = dynamics.push_scale, dynamics.start_spread

    def initial_state(self, uniform: Tensor) -> Tensor:
        """See `Dynamics`."""
        return self.dynamics.initial_state(uniform)

    def step(
        self, state: Tensor, action: Tensor, parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Dynamics`."""
        return self.dynamics.step(state, action, parameters)

    def observe(self, state: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """What the physics show, and the parameters' codes, shape (K, N, O)."""
        codes = [code(parameters[name]).to(state) for name, code in self.codes.items()]
        return torch.cat([self.dynamics.observe(state, parameters), *codes], dim=-1)


def told(family: TaskFamily) -> TaskFamily:
    """The same tasks, told.

    Args:
        family: With batched physics.

    Raises:
        ValueError: It has none, or is told already.
    """
    if family.dynamics is None or family.told_dims > 0:
        raise ValueError(
            f"told: expected a family with batched physics that is not told yet, received "
            f"{family.name!r}"
        )
    dynamics = ToldDynamics(family.dynamics, family.parameters)
    names = [
        f"told_{name}" + (f"_{place}" if code.named else "")
        for name, code in dynamics.codes.items()
        for place in range(code.dim)
    ]
    return replace(
        family,
        name=f"{family.name}_told",
        gymnasium_id=None,
        dynamics=dynamics,
        obs_scale=family.obs_scale and (*family.obs_scale, *(1.0,) * dynamics.told_dims),
        obs_names=(*family.obs_names, *names) if family.obs_names else (),
        obs_units=(*family.obs_units, *("",) * dynamics.told_dims) if family.obs_units else (),
        obs_limit=family.obs_limit and (*family.obs_limit, *(1.0,) * dynamics.told_dims),
        reflection=(*family.reflection, *(1.0,) * dynamics.told_dims) if family.mirror else (),
        told_dims=dynamics.told_dims,
        experts={},
        recipes={},
        probes=(),
    )
