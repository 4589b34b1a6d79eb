"""A probe of the family: one fixed controller, told the little that it reads off the support data.

Place in the flow: stage 7, a leaf of `method`, a yardstick. What it scores needs no adaptation
beyond what it read: a bit, where that is a direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.methods.method import Cost, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import Probe, TaskFamily, Tasks


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
