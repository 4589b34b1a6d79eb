"""What both adapters share: a policy and data in, a new policy and a report out.

Place in the flow: stage 4, after `inner_objective`, `inner_loop` and `safeguard`;
`standard_adapter` and `hybrid_adapter` are its two leaves. ``policy`` is never touched: a new one
is returned.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ssm_metarl.adaptation.inner_loop import adapt_params
from ssm_metarl.adaptation.inner_objective import Replay, check_support, task_loss
from ssm_metarl.adaptation.safeguard import REASONS, Safeguard
from ssm_metarl.config import StandardAdaptationConfig
from ssm_metarl.core.policy import Policy, as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.objectives.prediction import target_spread
from ssm_metarl.types import Rollout


@dataclass(frozen=True)
class AdaptationReport:
    """What an adaptation did and what it cost."""

    num_steps: int
    """Gradient steps kept."""
    env_steps: int
    """Environment steps of support data that it used."""
    loss_before: float
    """Inner loss on the support data before the first step."""
    loss_after: float
    """The same after the last step kept."""
    rolled_back: str | None = None
    """Why one more step was undone; None where every step asked for was kept."""
    kl: float = 0.0
    """KL(adapted || unadapted), in nats a step of the support data."""
    replay_trust: float | None = None
    """How far the replayed data fitted the task, in (0, 1]; None without replay."""


class AdaptedPolicy(Policy):
    """A policy with parameters adapted to one task.

    Args:
        policy: The policy before adapting; it is copied, never changed.
        task_params: The parameters of a single task (K = 1), shape (1, ...) each.
        report: What the adaptation did.
        current: The data that it was adapted to.
    """

    def __init__(
        self,
        policy: Policy,
        task_params: Mapping[str, Tensor],
        report: AdaptationReport,
        current: Rollout,
    ) -> None:
        super().__init__(
            copy.deepcopy(policy.core),
            copy.deepcopy(policy.heads),
            obs_scale=tuple(policy.obs_scale.tolist()),
            obs_limit=tuple(policy.obs_limit.tolist()),
            mirror=policy.mirror,
            inner_lr=0.0,
            config=policy.config,
        )
        self.report = report
        if policy.calibration is not None and report.num_steps > 0:
            spread = tuple(target_spread(policy, current)[0].tolist())
            self.calibration = replace(policy.calibration, target_spread=spread)
        else:
            self.calibration = policy.calibration
        self.to(policy.step_size.dtype)
        with torch.no_grad():
            self.obs_scale.copy_(policy.obs_scale)
            self.obs_limit.copy_(policy.obs_limit)
            self.step_size.copy_(policy.step_size)
            for name, value in self.meta_params().items():
                value.copy_(task_params[name][0])


def adapt_to_tasks(
    policy: Policy,
    current: Rollout,
    config: StandardAdaptationConfig,
    *,
    replay: Replay | None = None,
) -> tuple[dict[str, Tensor], list[AdaptationReport]]:
    """Adapt to K tasks at once.

    Args:
        policy: Stays untouched.
        current: Support data, (T, K, N).
        config: Steps, rate and objective.
        replay: Weighed experience, for hybrid adaptation.

    Returns:
        Task parameters, shape (K, ...) each, and a report for each task.
    """
    check_support(policy, current, config.objective)
    make_loss = partial(
        task_loss,
        policy,
        config.objective,
        current,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    own_loss = make_loss()
    loss = own_loss if replay is None else make_loss(replay=replay)
    # The limits were set for the learned steps on one objective: of others they know nothing.
    calibration = policy.calibration if config.adapt_lr is None else None
    if calibration is not None and calibration.objective != config.objective:
        calibration = None
    guard = Safeguard(policy, own_loss, current, calibration, rollback=config.rollback)
    loss_before = guard.loss
    step_size: Mapping[str, Tensor] | float = (
        policy.step_sizes() if config.adapt_lr is None else float(config.adapt_lr)
    )
    task_params, _ = adapt_params(
        policy.meta_params(),
        loss,
        step_size,
        num_tasks=current.num_tasks,
        num_steps=config.num_adapt_steps,
        accept=guard.accept,
    )
    task_params = {name: p.detach() for name, p in task_params.items()}
    env_steps = current.steps_taken()
    reports = [
        AdaptationReport(
            num_steps=int(guard.steps_kept[k]),
            env_steps=int(env_steps[k]),
            loss_before=float(loss_before[k]),
            loss_after=float(guard.loss[k]),
            rolled_back=REASONS.get(int(guard.verdict[k])),
            kl=float(guard.kl[k]),
            replay_trust=None if replay is None else float(replay.trust[k]),
        )
        for k in range(current.num_tasks)
    ]
    return task_params, reports


def single_task(policy: Policy | StateSpaceModel, current: Rollout) -> Policy:
    """The policy behind ``policy``, having checked that the data are one task's."""
    if current.num_tasks != 1:
        raise ValueError(
            f"support data: expected one task, received {current.num_tasks}; "
            f"adapt_tasks adapts to many"
        )
    return as_policy(policy)
