"""No gradient: the model as it comes, with a memory or without, or as somebody has adapted it.

Place in the flow: stage 7, leaves of `method`; `frozen` is what all others are compared with.
`in_context` differs from it in how it is run alone: one environment a task, whose episodes follow
each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.methods.method import SKY, VERMILION, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Params


@dataclass(frozen=True)
class Frozen(Method):
    """See `Method`."""

    name = "frozen"
    label = "before adapting"
    definition = "no gradient; hidden state reset every episode"
    color = VERMILION

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """The meta-parameters."""
        policy = model.policy
        return Prepared(policy.actor(policy.meta_params(), len(tasks), data.num_envs))


@dataclass(frozen=True)
class InContext(Frozen):
    """See `Method`; what is learnt is learnt while acting."""

    name = "in_context"
    label = "in context"
    definition = "no gradient; hidden state carried through one trial of all of a task's episodes"
    color = SKY
    trial = True
    pairs = ("frozen",)
    adapts = True

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the model remembers."""
        return None if model.policy.in_context else "the model remembers nothing between episodes"


@dataclass(frozen=True)
class AdaptedTo(Method):
    """Parameters of K tasks, whatever they were adapted by."""

    adapted_to: str
    """What to call them."""
    params: Params
    """Shared, or a set a task."""

    definition = "parameters that were adapted before"
    name = property(lambda self: self.adapted_to)

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """The parameters as they are."""
        return Prepared(model.policy.actor(self.params, len(tasks), data.num_envs))
