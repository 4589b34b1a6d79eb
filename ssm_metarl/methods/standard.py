"""Standard adaptation: gradient steps on the support data.

Place in the flow: stage 7, a leaf of `method` over `adaptation.standard_adapter`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import StandardAdaptationConfig
from ssm_metarl.methods.meta_trained import can_adapt
from ssm_metarl.methods.method import BLUE, Cost, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


@dataclass(frozen=True)
class Standard(Method):
    """See `Method`."""

    config: StandardAdaptationConfig = field(default_factory=StandardAdaptationConfig)

    name = "standard"
    label = "after: standard"
    definition = "gradient steps on the support data"
    color = BLUE
    pairs = ("frozen",)
    adapts = True

    @property
    def cost(self) -> Cost:
        """The support data, and the rewards in them where the objective asks for those."""
        return Cost(support=True, reward=self.config.objective == "policy_gradient")

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the model was meta-trained for a gradient step, and has the outputs for it."""
        return no_gradient(model, self.config)

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """One set of parameters a task."""
        policy = model.policy
        params, reports = StandardAdapter(self.config).adapt_tasks(policy, data.rollout())
        return Prepared(policy.actor(params, len(tasks), data.num_envs), reports)


def no_gradient(model: Model, config: StandardAdaptationConfig) -> str | None:
    """Why a gradient step cannot adapt a model; None where one can."""
    if model.policy.adapted:
        return "the model is adapted already"
    if not model.trained.gradient:
        return "the model was not meta-trained for a gradient step"
    if not can_adapt(model.policy, config.objective):
        return f"the model has no outputs for the objective {config.objective!r}"
    return None
