"""The rule that adaptation does not hurt: what each limit undoes, and that tasks do not mix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ssm_metarl.adaptation.inner_loop import expand_to_tasks
from ssm_metarl.adaptation.inner_objective import task_loss
from ssm_metarl.adaptation.safeguard import KEPT, LOSS_HIGH, LOSS_ROSE, MOVED_FAR, Safeguard
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import Calibration, StandardAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.types import Rollout

MakeSupport = Callable[..., Rollout]
WIDE = Calibration(objective="prediction", max_loss=(1e9,), max_kl=1e9)


def loss_of(policy: Policy, support: Rollout) -> Callable[..., torch.Tensor]:
    return task_loss(policy, "prediction", support, gamma=0.99, gae_lambda=0.98)


def guard(
    policy: Policy, support: Rollout, calibration: Calibration | None = None, **options: bool
) -> Safeguard:
    return Safeguard(policy, loss_of(policy, support), support, calibration, **options)


def descended(policy: Policy, support: Rollout, rate: float = 1e-3) -> dict[str, torch.Tensor]:
    """Parameters after a plain step, small enough to lower every task's loss."""
    loss = loss_of(policy, support)
    params = {
        n: p.detach().requires_grad_()
        for n, p in expand_to_tasks(policy.meta_params(), support.num_tasks).items()
    }
    grads = torch.autograd.grad(loss(params).sum(), list(params.values()), allow_unused=True)
    return {
        n: (p if g is None else p - rate * g).detach()
        for (n, p), g in zip(params.items(), grads, strict=True)
    }


def mixed(first: dict[str, torch.Tensor], other: dict[str, torch.Tensor], task: int):
    """``first``, but one task's parameters from ``other``."""
    chosen = torch.arange(len(next(iter(first.values())))) == task
    return {
        n: torch.where(chosen.view(-1, *(1,) * (p.dim() - 1)), other[n], p)
        for n, p in first.items()
    }


def test_a_step_that_lowers_the_loss_is_kept(policy: Policy, make_support: MakeSupport) -> None:
    support = make_support(3)
    watch = guard(policy, support, WIDE)
    before = watch.loss
    assert watch.accept(descended(policy, support)).all()
    assert (watch.loss < before).all() and (watch.steps_kept == 1).all()
    assert (watch.verdict == KEPT).all() and (watch.kl > 0).all()


def test_a_step_that_raises_one_tasks_loss_is_undone_there_alone(
    policy: Policy, make_support: MakeSupport
) -> None:
    support = make_support(3)
    down, up = descended(policy, support), descended(policy, support, -1e-3)
    watch = guard(policy, support)
    before = watch.loss.clone()
    assert watch.accept(mixed(down, up, 1)).tolist() == [True, False, True]
    assert watch.verdict.tolist() == [KEPT, LOSS_ROSE, KEPT]
    assert watch.steps_kept.tolist() == [1, 0, 1]
    assert watch.loss[1] == before[1] and watch.kl[1] == 0
    # it takes no more, however good the next step were
    assert not watch.accept(descended(policy, support, 2e-3))[1]
    assert watch.steps_kept[1] == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_undone(
    policy: Policy, make_support: MakeSupport, value: float
) -> None:
    support = make_support(2)
    broken = {n: torch.full_like(p, value) for n, p in descended(policy, support).items()}
    watch = guard(policy, support, WIDE)
    assert watch.accept(mixed(descended(policy, support), broken, 0)).tolist() == [False, True]
    assert torch.isfinite(watch.loss).all()


def test_each_limit_undoes_what_goes_past_it(policy: Policy, make_support: MakeSupport) -> None:
    support = make_support(3)
    step = descended(policy, support)
    free = guard(policy, support, WIDE)
    free.accept(step)
    for name, seen, verdict in (
        ("max_loss", free.loss, LOSS_HIGH),
        ("max_kl", free.kl, MOVED_FAR),
    ):
        limit = float(seen.median())  # of three tasks: two are within, the limit included
        value = (limit,) if name == "max_loss" else limit
        watch = guard(policy, support, replace(WIDE, **{name: value}))
        assert watch.accept(step).sum() == 2
        assert watch.verdict[seen.argmax()] == verdict


@pytest.mark.parametrize(("steps", "kept"), [(2, False), (9, False), (10, True), (25, True)])
def test_the_limit_is_that_of_the_longest_length_reached(
    policy: Policy, make_support: MakeSupport, steps: int, kept: bool
) -> None:
    support = make_support(1, steps)
    limits = replace(WIDE, support_steps=(5, 10), max_loss=(0.0, 1e9))
    assert guard(policy, support, limits).accept(descended(policy, support)).item() is kept


def test_without_rollback_every_step_is_kept_and_watched(
    policy: Policy, make_support: MakeSupport
) -> None:
    support = make_support(2)
    up = descended(policy, support, -1e-3)
    watch = guard(policy, support, WIDE, rollback=False)
    before = watch.loss
    assert watch.accept(up).all()
    assert (watch.loss > before).all() and (watch.verdict == KEPT).all()


def test_rolled_back_adaptation_returns_the_unadapted_parameters(
    policy: Policy, make_support: MakeSupport
) -> None:
    support = make_support(1)
    policy.calibration = replace(WIDE, max_loss=(0.0,))
    with torch.no_grad():
        policy.step_size.fill_(1e-4)
    adapted = StandardAdapter(StandardAdaptationConfig(num_adapt_steps=3)).adapt(policy, support)
    assert adapted.report.num_steps == 0 and adapted.report.kl == 0
    assert adapted.report.rolled_back == "the adapted model does not explain the data"
    assert adapted.report.loss_after == adapted.report.loss_before
    for name, value in policy.state_dict().items():
        assert torch.equal(adapted.state_dict()[name], value)


def test_limits_of_another_objective_or_step_size_do_not_count(
    policy: Policy, make_support: MakeSupport
) -> None:
    support = make_support(1)
    with torch.no_grad():
        policy.step_size.fill_(1e-4)
    tight = Calibration(objective="prediction", max_loss=(-1e9,), max_kl=0.0)
    for limits, rate, kept in (
        (tight, None, 0),
        (replace(tight, objective="policy_gradient"), None, 1),
        (tight, 1e-3, 1),
    ):
        policy.calibration = limits
        config = StandardAdaptationConfig(adapt_lr=rate)
        assert StandardAdapter(config).adapt(policy, support).report.num_steps == kept


def test_later_steps_stop_at_the_first_that_is_undone(
    policy: Policy, make_support: MakeSupport
) -> None:
    """With far too long a rate, the steps kept are those that a shorter adaptation takes."""
    support = make_support(6)
    reports = {
        steps: StandardAdapter(
            StandardAdaptationConfig(adapt_lr=0.4, num_adapt_steps=steps)
        ).adapt_tasks(policy, support)
        for steps in range(1, 9)
    }
    params, last = reports[8]
    undone = [k for k, report in enumerate(last) if 0 < report.num_steps < 8]
    assert undone, "expected a rate that is too long for some task and not at once"
    for k in undone:
        shorter, _ = reports[last[k].num_steps]
        assert all(torch.equal(params[n][k], shorter[n][k]) for n in params)
        assert last[k].rolled_back == "the inner loss did not fall"
