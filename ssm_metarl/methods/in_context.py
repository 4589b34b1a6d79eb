"""Adapting in context: no step, the hidden state is carried from episode to episode.

Place in the flow: stage 7, a leaf of `method`. It differs from `frozen` in how it is run alone: one
environment a task, whose episodes follow each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.methods.frozen import Frozen
from ssm_metarl.methods.method import SKY, Model
from ssm_metarl.tasks.task_family import TaskFamily


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
