"""Hybrid adaptation: gradient steps on the support data and on replayed experience.

Place in the flow: stage 7, a leaf of `method` over `adaptation.hybrid_adapter`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.config import HybridAdaptationConfig
from ssm_metarl.methods.method import GREEN, Cost, Data, Method, Model, Prepared
from ssm_metarl.methods.standard import no_gradient
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


@dataclass(frozen=True)
class Hybrid(Method):
    """See `Method`."""

    config: HybridAdaptationConfig = field(default_factory=HybridAdaptationConfig)

    name = "hybrid"
    label = "after: hybrid"
    definition = (
        "gradient steps on the support data and replayed experience, with an anchor at the "
        "meta-parameters"
    )
    color = GREEN
    pairs = ("frozen", "standard")
    adapts = True

    @property
    def cost(self) -> Cost:
        """The support data, and the rewards in them where the objective asks for those."""
        return Cost(support=True, reward=self.config.objective == "policy_gradient")

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where a gradient step can adapt the model, and it has experience of this family."""
        buffer = model.buffer
        if buffer is None or len(buffer) == 0:
            return no_gradient(model, self.config) or "the model has no experience to replay"
        if buffer.family not in (None, family.name):
            return f"the model's experience is that of {buffer.family}"
        return no_gradient(model, self.config)

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """One set of parameters a task."""
        assert model.buffer is not None
        adapter = HybridAdapter(self.config)
        params, reports = adapter.adapt_tasks(model.policy, data.rollout(), model.buffer)
        return Prepared(model.policy.actor(params, len(tasks), data.num_envs), reports)
