"""Standard adaptation: gradient steps on this task's data alone.

Place in the flow: stage 4, on `adapter`. Its sibling is `hybrid_adapter`.
"""

from __future__ import annotations

from functools import partial

from ssm_metarl.adaptation.adapter import (
    AdaptationReport,
    AdaptedPolicy,
    adapt_to_one,
    adapt_to_tasks,
    in_parts,
)
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import StandardAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.types import FlatParams, Rollout

TASKS_AT_ONCE = 256


class StandardAdapter:
    """Adapts a policy to a task from one set of support data."""

    def __init__(self, config: StandardAdaptationConfig | None = None) -> None:
        self.config = config or StandardAdaptationConfig()

    @usual_modes()
    def adapt(self, policy: Policy | StateSpaceModel, current_data: Rollout) -> AdaptedPolicy:
        """Adapt to one task.

        Args:
            policy: Stays untouched.
            current_data: Steps taken in the task, (T, 1, N).

        Returns:
            A new policy, with ``.report``.
        """
        return adapt_to_one(self.adapt_tasks, policy, current_data)

    @usual_modes()
    def adapt_tasks(
        self, policy: Policy | StateSpaceModel, current_data: Rollout
    ) -> tuple[FlatParams, list[AdaptationReport]]:
        """Adapt to K tasks at once; parameters with a leading K axis, and K reports."""
        adapt = partial(adapt_to_tasks, as_policy(policy), config=self.config)
        return in_parts(adapt, current_data, TASKS_AT_ONCE)
