"""What both adapters share: a policy and data in, a new policy and a report out.

Place in the flow: stage 4, after `inner_objective`, `inner_loop` and `safeguard`;
`standard_adapter` and `hybrid_adapter` stand on it. A policy is never touched: a new one is
returned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import torch
from torch import nn

from ssm_metarl.adaptation.inner_loop import adapt_params
from ssm_metarl.adaptation.inner_objective import (
    HybridLoss,
    Replay,
    check_support,
    check_unadapted,
    task_loss,
)
from ssm_metarl.adaptation.safeguard import REASONS, Safeguard
from ssm_metarl.compiled import threads_for_kernels
from ssm_metarl.config import StandardAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.objectives.prediction import silent_dims, target_spread
from ssm_metarl.types import FlatParams, Params, Rollout


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
    """A policy with parameters adapted to one task: a copy in everything else, whatever it has.

    Args:
        policy: The policy before adapting; it is copied, never changed.
        task_params: The parameters of a single task (K = 1), shape (1, ...) each.
        report: What the adaptation did.
        current: The data that it was adapted to.
    """

    def __init__(
        self, policy: Policy, task_params: Params, report: AdaptationReport, current: Rollout
    ) -> None:
        # A module is what stands in its dictionary. Built anew from a list of its arguments, it
        # would lack whatever the list forgets.
        self.__dict__.update(vars(_copied(policy, {n: p[0] for n, p in task_params.items()})))
        self.__class__ = _adapted(type(policy))  # type: ignore[arg-type] # classes do hash
        self.report = report
        self.adapted = report.num_steps > 0
        if policy.calibration is not None and report.num_steps > 0:
            spread = tuple(target_spread(policy, current)[0].tolist())
            self.calibration = replace(policy.calibration, target_spread=spread)


M = TypeVar("M", bound=nn.Module)
OF_EVERY_MODULE = vars(nn.Module()).keys()


def _copied(module: M, values: Params, prefix: str = "") -> M:
    """A copy with tensors of its own, parameters those of ``values`` where it has them.

    What cannot change is shared: to ask all of it, as `copy.deepcopy` does, takes a third of an
    adaptation.
    """
    copied = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, (dict, list, set)) and name not in OF_EVERY_MODULE:
            vars(copied)[name] = copy.deepcopy(value)
    copied._parameters = {
        name: None
        if p is None
        else nn.Parameter(values.get(prefix + name, p).detach().clone(), p.requires_grad)
        for name, p in module._parameters.items()
    }
    copied._buffers = {n: None if b is None else b.clone() for n, b in module._buffers.items()}
    copied._modules = {
        name: None if child is None else _copied(child, values, f"{prefix}{name}.")
        for name, child in module._modules.items()
    }
    return copied


@cache
def _adapted(kind: type[Policy]) -> type[AdaptedPolicy]:
    """`AdaptedPolicy` with the methods of a class of policies."""
    if issubclass(AdaptedPolicy, kind):
        return AdaptedPolicy
    if issubclass(kind, AdaptedPolicy):
        return kind
    return type(f"Adapted{kind.__name__}", (AdaptedPolicy, kind), {})


def adapt_to_tasks(
    policy: Policy,
    current: Rollout,
    config: StandardAdaptationConfig,
    *,
    replay: Replay | None = None,
) -> tuple[FlatParams, list[AdaptationReport]]:
    """Adapt to K tasks at once, by support data (T, K, N) and, where there is any, by replay.

    Returns:
        Task parameters, shape (K, ...) each, and a report for each task.
    """
    learned = config.adapt_lr is None
    # Plain descent goes on from anywhere, and no step leads anywhere.
    if learned and config.num_adapt_steps > 0:
        check_unadapted(policy)
    check_support(policy, current, config.objective)
    silent = None
    if config.objective == "prediction" and policy.heads.predicted_dims:
        silent = silent_dims(policy, current)
    loss = task_loss(
        policy,
        config.objective,
        current,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        replay=replay,
        silent=silent,
    )
    own_loss = loss.own if isinstance(loss, HybridLoss) else loss
    # The limits were set for the learned steps on one objective: of others they know nothing.
    calibration = policy.calibration if learned else None
    if calibration is not None and calibration.objective != config.objective:
        calibration = None
    guard = Safeguard(
        policy, own_loss, current, calibration, silent=silent, rollback=config.rollback
    )
    loss_before = guard.loss
    task_params, _ = adapt_params(
        policy.meta_params(),
        loss,
        policy.step_sizes() if config.adapt_lr is None else float(config.adapt_lr),
        num_tasks=current.num_tasks,
        num_steps=config.num_adapt_steps,
        pull=None if replay is None else replay.pull,
        accept=guard.accept,
    )
    columns = (  # as the report's fields stand
        guard.steps_kept.tolist(), current.steps_taken().tolist(), loss_before.tolist(),
        guard.loss.tolist(), map(REASONS.get, guard.verdict.tolist()), guard.kl.tolist(),
        [None] * current.num_tasks if replay is None else replay.trust.tolist(),
    )  # fmt: skip
    reports = [AdaptationReport(*row) for row in zip(*columns, strict=True)]
    return task_params.at(task_params.flat.detach()), reports


@threads_for_kernels()
def in_parts(
    adapt: Callable[[Rollout], tuple[FlatParams, list[AdaptationReport]]],
    current: Rollout,
    tasks_at_once: int,
) -> tuple[FlatParams, list[AdaptationReport]]:
    """Adapt to some tasks of (T, K, N) at a time, so that their activations stay in cache."""
    current = current.map(lambda x: x.clone() if x.is_inference() else x)
    parts = [
        adapt(current.map(lambda x, start=start: x[:, start : start + tasks_at_once]))  # type: ignore[misc]
        for start in range(0, current.num_tasks, tasks_at_once)
    ]
    params = parts[0][0].at(torch.cat([part.flat for part, _ in parts]))
    return params, [report for _, reports in parts for report in reports]


def adapt_to_one(
    adapt_tasks: Callable[[Policy, Rollout], tuple[FlatParams, list[AdaptationReport]]],
    policy: Policy | StateSpaceModel,
    current: Rollout,
) -> AdaptedPolicy:
    """What a way to adapt to many tasks makes of a single one's data, (T, 1, N)."""
    if current.num_tasks != 1:
        raise ValueError(
            f"support data: expected one task, received {current.num_tasks}; "
            f"adapt_tasks adapts to many"
        )
    policy = as_policy(policy)
    task_params, (report,) = adapt_tasks(policy, current)
    return AdaptedPolicy(policy, task_params, report, current)
