"""Online adaptation: a change is noticed, and adapted to, while the plant runs.

Place in the flow: stage 7, leaves of `method` over `adaptation.online_adapter`; `evaluation.drift`
runs them. Which of the three applies is a matter of the model: one that remembers nothing takes
gradient steps, one that adapts in context begins a new trial, one trained for both does both.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.config import OnlineAdaptationConfig
from ssm_metarl.methods.frozen import InContext
from ssm_metarl.methods.method import BLUE, ORANGE, PURPLE, Data, Method, Model, Prepared
from ssm_metarl.methods.standard import no_gradient
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


@dataclass(frozen=True)
class Online(Method):
    """See `Method`."""

    config: OnlineAdaptationConfig = field(default_factory=OnlineAdaptationConfig)

    name = "online"
    label = "while it runs"
    definition = "begins unadapted; notices changes, takes gradient steps on the transitions since"
    color = BLUE
    trial = True
    pairs = ("frozen",)
    adapts = True

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the model predicts what it watches, and was trained for a gradient step."""
        if model.policy.in_context:
            return "the model remembers, and restarts its memory instead"
        return watches_nothing(model) or no_gradient(model, self.config)

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """An adapter that acts in one environment a task."""
        return Prepared(OnlineAdapter(model.policy, self.config, num_tasks=len(tasks)))


@dataclass(frozen=True)
class Restarted(Online):
    """See `Method`; takes no gradient step, whatever its settings."""

    name = "in_context_restarted"
    label = "in context, restarted"
    definition = (
        "no gradient; where what least squares has found in the trial stops predicting, the "
        "memory is cleared: a new trial, inside the episode"
    )
    color = ORANGE
    pairs = ("in_context",)

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the model remembers."""
        return InContext().applies(model, family) or watches_nothing(model)

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """An adapter that acts in one environment a task."""
        config = replace(self.config, num_adapt_steps=0)
        return Prepared(OnlineAdapter(model.policy, config, num_tasks=len(tasks)))


@dataclass(frozen=True)
class BothOnline(Online):
    """See `Method`."""

    name = "both"
    label = "both, while it runs"
    definition = (
        "in_context_restarted, and a gradient step on the transitions since, the hidden state "
        "recomputed from zero at the first of them"
    )
    color = PURPLE
    pairs = ("in_context_restarted",)

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the model remembers, and was trained for a gradient step too."""
        return Restarted().applies(model, family) or no_gradient(model, self.config)


def watches_nothing(model: Model) -> str | None:
    """Why nothing can be noticed with a model; None where something can."""
    if not model.policy.heads.predicted_dims:
        return "the model predicts nothing that could be watched"
    return None
