"""The model as it comes, or with parameters that somebody else has adapted.

Place in the flow: stage 7, leaves of `method`; `frozen` is what all others are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.methods.method import VERMILION, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import Tasks
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
class AdaptedTo(Method):
    """Parameters of K tasks, whatever they were adapted by.

    Args:
        adapted_to: What to call them.
        params: Shared, or a set a task.
    """

    adapted_to: str
    params: Params

    definition = "parameters that were adapted before"

    @property
    def name(self) -> str:
        """What they were adapted to."""
        return self.adapted_to

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """The parameters as they are."""
        return Prepared(model.policy.actor(self.params, len(tasks), data.num_envs))
