"""Both: gradient steps on the support data, and then a memory that runs through a trial.

Place in the flow: stage 7, a leaf of `method`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ssm_metarl.config import StandardAdaptationConfig
from ssm_metarl.methods.in_context import InContext
from ssm_metarl.methods.method import PURPLE, Cost, Data, Method, Model, Prepared
from ssm_metarl.methods.standard import Standard
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


@dataclass(frozen=True)
class Both(Method):
    """See `Method`."""

    config: StandardAdaptationConfig = field(default_factory=StandardAdaptationConfig)

    name = "both"
    label = "after: both"
    definition = "gradient steps on the support data, then hidden state carried through one trial"
    color = PURPLE
    cost = Cost(support=True, reward=True)
    trial = True
    pairs = ("in_context",)
    adapts = True

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where either of the two does."""
        return InContext().applies(model, family) or Standard(self.config).applies(model, family)

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """One set of parameters a task, acting in one environment of it."""
        return Standard(self.config).prepare(model, tasks, data)
