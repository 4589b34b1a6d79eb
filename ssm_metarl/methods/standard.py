"""Gradient steps on the support data: alone, with replayed experience, or before a trial.

Place in the flow: stage 7, leaves of `method` over the adapters of `adaptation`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import HybridAdaptationConfig, StandardAdaptationConfig
from ssm_metarl.methods.frozen import InContext
from ssm_metarl.methods.meta_trained import can_adapt
from ssm_metarl.methods.method import BLUE, GREEN, PURPLE, Cost, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


@dataclass(frozen=True)
class Standard(Method):
    """See `Method`."""

    config: StandardAdaptationConfig = field(default_factory=StandardAdaptationConfig)

    name = "standard"
    label = "after: standard"
    definition = "gradient steps on the support data"
    color = BLUE
    cost = Cost(support=True)
    pairs: ClassVar[tuple[str, ...]] = ("frozen",)
    adapts = True

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the model was meta-trained for a gradient step, and has the outputs for it."""
        return no_gradient(model, self.config)

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """One set of parameters a task."""
        policy = model.policy
        params, reports = StandardAdapter(self.config).adapt_tasks(policy, data.rollout())
        return Prepared(policy.actor(params, len(tasks), data.num_envs), reports)


@dataclass(frozen=True)
class Hybrid(Standard):
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

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where a gradient step can adapt the model, and it has experience of this family."""
        buffer, reason = model.buffer, no_gradient(model, self.config)
        if buffer is None or len(buffer) == 0:
            return reason or "the model has no experience to replay"
        if buffer.family not in (None, family.name):
            return f"the model's experience is that of {buffer.family}"
        return reason

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """One set of parameters a task."""
        assert model.buffer is not None
        adapter = HybridAdapter(self.config)
        params, reports = adapter.adapt_tasks(model.policy, data.rollout(), model.buffer)
        return Prepared(model.policy.actor(params, len(tasks), data.num_envs), reports)


@dataclass(frozen=True)
class Both(Standard):
    """See `Method`; the adapted parameters act in one environment a task, and remember."""

    name = "both"
    label = "after: both"
    definition = "gradient steps on the support data, then hidden state carried through one trial"
    color = PURPLE
    trial = True
    pairs = ("in_context",)

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where both of its halves do."""
        return InContext().applies(model, family) or super().applies(model, family)


def no_gradient(model: Model, config: StandardAdaptationConfig) -> str | None:
    """Why a gradient step cannot adapt a model; None where one can."""
    if model.policy.adapted:
        return "the model is adapted already"
    if not model.trained.gradient:
        return "the model was not meta-trained for a gradient step"
    if not can_adapt(model.policy, config.objective):
        return f"the model has no outputs for the objective {config.objective!r}"
    return None
