"""Adapting in context: no step, the hidden state is carried from episode to episode.

Place in the flow: stage 7, a leaf of `method`. It differs from `frozen` in how it is run alone: one
environment a task, whose episodes follow each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.methods.method import SKY, Cost, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


@dataclass(frozen=True)
class InContext(Method):
    """See `Method`."""

    name = "in_context"
    label = "in context"
    definition = "no gradient; hidden state carried through one trial of all of a task's episodes"
    color = SKY
    cost = Cost(reward=True)
    trial = True
    pairs = ("frozen",)
    adapts = True

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the model remembers."""
        return None if model.policy.in_context else "the model remembers nothing between episodes"

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """The meta-parameters; what is learnt is learnt while acting."""
        policy = model.policy
        return Prepared(policy.actor(policy.meta_params(), len(tasks), data.num_envs), [])
