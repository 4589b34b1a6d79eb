"""Fine-tuned: plain training on each task alone, what an inner step is to be compared with.

Place in the flow: stage 7, a leaf of `methods.method` over `fine_tuning`; it stands here because
that loop measures itself by `episodes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.evaluation.fine_tuning import FineTuningConfig, fine_tune
from ssm_metarl.methods.meta_trained import can_adapt
from ssm_metarl.methods.method import ORANGE, Cost, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


@dataclass(frozen=True)
class FineTuned(Method):
    """See `Method`."""

    config: FineTuningConfig

    name = "fine_tuned"
    label = "fine-tuned"
    definition = "plain training on whole episodes of the task alone, from the model's weights"
    color = ORANGE
    cost = Cost(own_steps=True)
    pairs = ("frozen",)
    adapts = True

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Where the policy starts every episode anew, and has the outputs for the objective."""
        if model.policy.in_context:
            return "the model remembers from one episode to the next"
        if not can_adapt(model.policy, self.config.objective):
            return f"the model has no outputs for the objective {self.config.objective!r}"
        return None

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """One set of parameters a task."""
        curve = fine_tune(model.policy, tasks, self.config)
        assert curve.params is not None
        nan = float("nan")  # no inner loss: it trains on several
        reports = [
            AdaptationReport(len(self.config.rounds) * self.config.update_epochs, steps, nan, nan)
            for steps in curve.env_steps[-1].tolist()
        ]
        return Prepared(model.policy.actor(curve.params, len(tasks), data.num_envs), reports)
