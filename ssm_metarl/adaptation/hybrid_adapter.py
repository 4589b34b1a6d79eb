"""Hybrid adaptation: gradient steps on this task's data and on replayed experience.

Place in the flow: stage 4, on `adapter`; the replayed steps are weighed by `propensity`. Where the
buffer is empty it equals `standard_adapter`. The buffer is only read. Experience grows where one
adds to it, such as after an adaptation:

    adapted = HybridAdapter(config).adapt(policy, current_data, buffer)
    buffer.add(current_data, [buffer.next_task_id])
"""

from __future__ import annotations

from functools import partial

import torch

from ssm_metarl import seeding
from ssm_metarl.action_space import Discrete
from ssm_metarl.adaptation.adapter import (
    AdaptationReport,
    AdaptedPolicy,
    adapt_to_one,
    adapt_to_tasks,
    in_parts,
)
from ssm_metarl.adaptation.inner_objective import check_support, weigh_replay
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import HybridAdaptationConfig, Objective
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.types import FlatParams, Rollout

TASKS_AT_ONCE = 16


class HybridAdapter:
    """Adapts a policy to a task from its support data and an experience buffer."""

    def __init__(self, config: HybridAdaptationConfig | None = None) -> None:
        self.config = config or HybridAdaptationConfig()

    @usual_modes()
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
        adapt_tasks = partial(self.adapt_tasks, experience_buffer=experience_buffer)
        return adapt_to_one(adapt_tasks, policy, current_data)

    @usual_modes()
    def adapt_tasks(
        self,
        policy: Policy | StateSpaceModel,
        current_data: Rollout,
        experience_buffer: ExperienceBuffer,
    ) -> tuple[FlatParams, list[AdaptationReport]]:
        """Adapt to K tasks; parameters with a leading K axis, and K reports.

        All tasks replay the same sequences, so memory grows with K times the replayed steps.
        """
        policy, config = as_policy(policy), self.config
        check_support(policy, current_data, config.objective)
        check_experience(policy, experience_buffer, config.objective)
        if len(experience_buffer) == 0 or config.experience_weight == 0:
            return in_parts(
                partial(adapt_to_tasks, policy, config=config), current_data, TASKS_AT_ONCE
            )
        rng = seeding.generator(config.seed, "replay")
        replayed = experience_buffer.sample(config.num_replay_sequences, rng)  # (T, 1, M)

        def adapt(current: Rollout) -> tuple[FlatParams, list[AdaptationReport]]:
            replay = weigh_replay(
                policy,
                current,
                replayed,
                experience_weight=config.experience_weight,
                proximal_weight=config.proximal_weight,
                replay=config.replay,
            )
            return adapt_to_tasks(policy, current, config, replay=replay)

        return in_parts(adapt, current_data, TASKS_AT_ONCE)


def check_experience(
    policy: Policy, experience_buffer: ExperienceBuffer, objective: Objective
) -> None:
    """Raise ValueError unless a policy can replay what a buffer holds."""
    held = experience_buffer.tensors()
    if not held:
        return
    obs_dim, action, space = held["obs"].shape[-1], held["action"], policy.action_space
    if obs_dim != policy.obs_dim:
        raise ValueError(
            f"experience buffer: expected observations of size {policy.obs_dim}, received {obs_dim}"
        )
    if action.is_floating_point():
        received = f"numbers of shape {tuple(action.shape[1:])}"
        fits = not isinstance(space, Discrete) and action.shape[1:] == (space.dim,)
    else:
        lowest, highest = int(action.min()), int(action.max())
        received = f"whole numbers from {lowest} to {highest}"
        choices = space.n if isinstance(space, Discrete) and action.dim() == 1 else 0
        fits = lowest >= 0 and highest < choices
    if not fits:
        raise ValueError(f"experience buffer: expected actions of {space}, received {received}")
    if objective == "policy_gradient" and not bool(torch.isfinite(held["log_prob"]).all()):
        raise ValueError(
            "experience buffer: expected to know how likely its actions were, for the objective "
            "'policy_gradient', received steps of a plant's log, which does not tell"
        )
