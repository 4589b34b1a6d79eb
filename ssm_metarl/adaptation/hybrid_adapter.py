"""Hybrid adaptation: gradient steps on this task's data and on replayed experience.

Place in the flow: stage 4, a leaf of `adapter`; the replayed steps are weighed by `propensity`.
Its sibling is `standard_adapter`, which it equals where the buffer is empty.
"""

from __future__ import annotations

from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.adaptation.adapter import (
    AdaptationReport,
    AdaptedPolicy,
    adapt_to_tasks,
    single_task,
)
from ssm_metarl.adaptation.inner_objective import Replay, check_support, weigh_replay
from ssm_metarl.config import HybridAdaptationConfig
from ssm_metarl.core.policy import Policy, as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.types import Rollout


class HybridAdapter:
    """Adapts a policy to a task from its support data and an experience buffer."""

    def __init__(self, config: HybridAdaptationConfig | None = None) -> None:
        self.config = config or HybridAdaptationConfig()

    def adapt(
        self,
        policy: Policy | StateSpaceModel,
        current_data: Rollout,
        experience_buffer: ExperienceBuffer,
    ) -> AdaptedPolicy:
        """Adapt to one task.

        Args:
            policy: Stays untouched.
            current_data: Steps taken in the task, (T, 1, N).
            experience_buffer: Experience of any tasks; read only.

        Returns:
            A new policy, with ``.report``.
        """
        policy = single_task(policy, current_data)
        task_params, reports = self.adapt_tasks(policy, current_data, experience_buffer)
        return AdaptedPolicy(policy, task_params, reports[0])

    def adapt_tasks(
        self,
        policy: Policy | StateSpaceModel,
        current_data: Rollout,
        experience_buffer: ExperienceBuffer,
    ) -> tuple[dict[str, Tensor], list[AdaptationReport]]:
        """Adapt to K tasks at once; parameters with a leading K axis, and K reports."""
        policy = as_policy(policy)
        check_support(policy, current_data)
        replay = self._replay(policy, current_data, experience_buffer)
        return adapt_to_tasks(policy, current_data, self.config, replay=replay)

    def _replay(
        self, policy: Policy, current_data: Rollout, experience_buffer: ExperienceBuffer
    ) -> Replay | None:
        config = self.config
        if len(experience_buffer) == 0 or config.experience_weight == 0:
            return None
        rng = seeding.generator(config.seed, "replay")
        replayed = experience_buffer.sample(config.num_replay_sequences, rng)
        if replayed.obs.shape[-1] != policy.obs_dim:
            raise ValueError(
                f"experience buffer: expected observations of size {policy.obs_dim}, "
                f"received {replayed.obs.shape[-1]}"
            )
        return weigh_replay(policy, current_data, replayed, config.experience_weight)
