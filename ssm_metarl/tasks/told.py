"""A family whose tasks say which task they are: the observation, then the task's parameters.

Place in the flow: stage 1, around a family with batched physics. A policy trained on it (with
``--adaptation_steps 0``) is told what adaptation has to find out: how much of its score an adapting
policy loses to not knowing, and how much to what it learnt. Unlike the arm ``lqr`` it learns from
rewards, by the same training. Task k is task k of the plain family, and starts in the same states.

The trap: what is told of an OOD task lies beyond -1 and 1, and a policy sees it clipped to the
nearest end that training met.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ssm_metarl.tasks.dynamics import Dynamics, Parameters, Stepped
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.tasks.task_parameter import Choice, TaskParameter


class ParameterCode:
    """How a parameter's value is told.

    A range's ID ends are -1 and 1, with the logarithm between them where all of it is positive; so
    are those of a choice of two values, or of values with a unit, but linear. A choice of names (no
    unit, such as the order of sensors) is one number for each, 1 for the one that it is.

    Args:
        parameter: Which one.
    """

    def __init__(self, parameter: TaskParameter) -> None:
        if isinstance(parameter.id, Choice):
            values = ends = parameter.id.values
        else:
            values, ends = (), tuple(end for pair in parameter.id.intervals for end in pair)
        self.named = len(values) > 2 and not parameter.unit
        self.dim = len(values) if self.named else 1
        self._values = torch.tensor(values, dtype=torch.float64)
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
        self._dynamics = dynamics
        self.codes = {p.name: ParameterCode(p) for p in parameters}
        self.told_dims = sum(code.dim for code in self.codes.values())
        self.obs_dim = dynamics.obs_dim + self.told_dims
        self.action_space = dynamics.action_space
        self.max_episode_steps = dynamics.max_episode_steps
        self.push_scale, self.start_spread = dynamics.push_scale, dynamics.start_spread

    def initial_state(self, uniform: Tensor) -> Tensor:
        """See `Dynamics`."""
        return self._dynamics.initial_state(uniform)

    def step(self, state: Tensor, action: Tensor, parameters: Parameters) -> Stepped:
        """See `Dynamics`."""
        return self._dynamics.step(state, action, parameters)

    def observe(self, state: Tensor, parameters: Parameters) -> Tensor:
        """What the physics show, and the parameters' codes, shape (K, N, O)."""
        codes = [code(parameters[name]).to(state) for name, code in self.codes.items()]
        return torch.cat([self._dynamics.observe(state, parameters), *codes], dim=-1)


def told(family: TaskFamily) -> TaskFamily:
    """The same tasks, told.

    Raises:
        ValueError: The family has no batched physics, or is told already.
    """
    if family.dynamics is None or family.told_dims > 0:
        raise ValueError(
            f"told: expected a family with batched physics that is not told yet, received "
            f"{family.name!r}"
        )
    dynamics = ToldDynamics(family.dynamics, family.parameters)
    extra = dynamics.told_dims
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
        obs_scale=family.obs_scale and (*family.obs_scale, *(1.0,) * extra),
        obs_names=family.obs_names and (*family.obs_names, *names),
        obs_units=family.obs_units and (*family.obs_units, *("",) * extra),
        obs_limit=family.obs_limit and (*family.obs_limit, *(1.0,) * extra),
        reflection=family.reflection and (*family.reflection, *(1.0,) * extra),
        told_dims=extra,
        experts={},
        recipes={},
        probes=(),
    )
