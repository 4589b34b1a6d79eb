"""What a controller scores that is *told* what a policy must find out: the family's own.

Place in the flow: stage 7, leaves of `method`, yardsticks without chance in them. An expert sees
what a policy sees, and is told every parameter of its task. A probe reads the little that it is
told off the support data: what it scores needs no adaptation beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.methods.method import Cost, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import Expert, Probe, TaskFamily, Tasks


@dataclass(frozen=True)
class Told(Method):
    """See `Method`; named as the family names the expert."""

    expert: str

    cost = Cost(told=True)

    name = property(lambda self: self.expert)

    @property
    def label(self) -> str:
        """With an acronym in capitals."""
        short = len(self.expert) <= 3
        return f"{self.expert.upper() if short else self.expert}, told the physics"

    @property
    def definition(self) -> str:
        """Which of the family's experts it is."""
        return f"the expert {self.expert!r} of the family, told the task's parameters"

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the family has that expert."""
        if self.expert in family.experts:
            return None
        return f"{family.name} has no expert {self.expert!r}"

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """The expert of these tasks."""
        expert = tasks.family.experts[self.expert](tasks)
        return Prepared(ExpertActor(expert, tasks, data.num_envs))


@dataclass(frozen=True)
class Probed(Method):
    """See `Method`; what it is called and does, the family's probe says."""

    probe: Probe

    cost = Cost(support=True)
    name = property(lambda self: self.probe.name)
    label = property(lambda self: self.probe.label)
    definition = property(lambda self: self.probe.definition)

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the family has that probe."""
        return None if self.probe in family.probes else f"{family.name} has no such probe"

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """The controller, told what the support data show."""
        return Prepared(self.probe.controller(data.rollout(), data.num_envs))


class ExpertActor:
    """The expert of K tasks as an actor: it remembers the actions that may still be under way."""

    def __init__(self, expert: Expert, tasks: Tasks, num_envs: int) -> None:
        self._expert = expert
        _, space = tasks.family.spaces
        shape = (tasks.family.dead_time, len(tasks), num_envs)
        self._actions = (
            torch.zeros(shape, dtype=torch.int64)
            if isinstance(space, Discrete)
            else torch.zeros(*shape, space.dim)
        )
        self._nothing = self._actions.new_zeros(1, *self._actions.shape[1:])
        self._starts = torch.ones(shape, dtype=torch.bool)

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]) for observations (K, N, O), and 0."""
        starts = torch.cat([self._starts, reset[None]])
        actions = torch.cat([self._actions, self._nothing])
        action = self._expert(obs.expand(len(starts), *obs.shape), actions, starts)[-1]
        self._actions = torch.cat([self._actions, action[None]])[1:]
        self._starts = starts[1:]
        return action, torch.zeros(obs.shape[:2])
