"""The prediction loss: known errors, scales of each task, and steps that were never taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssm_metarl.core.policy import Policy
from ssm_metarl.objectives.prediction import MIN_SPREAD, prediction_loss, target_spread
from ssm_metarl.types import Rollout

MakeRollout = Callable[..., Rollout]


def gradient(policy: Policy, rollout: Rollout, **options: Tensor) -> list[Tensor]:
    """The loss of each task and its gradient, for every parameter that has one."""
    losses = prediction_loss(policy, policy.meta_params(), rollout, **options)
    grads = torch.autograd.grad(
        losses.sum(), list(policy.meta_params().values()), allow_unused=True
    )
    return [losses.detach(), *(g for g in grads if g is not None)]


def test_known_answer(make_rollout: MakeRollout, constant_policy: Callable[..., Policy]) -> None:
    """Prediction (2a - 1) (0.5, -1) for the velocities, targets change / spread."""
    obs, next_obs = torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4)
    next_obs[:, 0, 0] = torch.tensor([[9.0, 3.0, 9.0, 2.0], [9.0, -1.0, 9.0, 2.0]])
    rollout = make_rollout(
        2, obs=obs, next_obs=next_obs, action=torch.tensor([1, 0])[:, None, None]
    )
    policy = constant_policy((0.0, 0.0, 0.5, -1.0))
    assert target_spread(policy, rollout).tolist() == [pytest.approx([5**0.5, 2.0])]
    loss = prediction_loss(policy, policy.meta_params(), rollout, spread=torch.tensor([[2.0, 4.0]]))
    # step 1: (0.5 - 1.5)^2 and (-1 - 0.5)^2; step 2: (-0.5 + 0.5)^2 and (1 - 0.5)^2
    assert loss.tolist() == [pytest.approx((1 + 2.25 + 0 + 0.25) / 4)]
    own = prediction_loss(policy, policy.meta_params(), rollout)
    errors = [0.5 - 3 / 5**0.5, -1 - 1.0, -0.5 + 1 / 5**0.5, 1 - 1.0]
    assert own.tolist() == [pytest.approx(sum(e * e for e in errors) / 4)]


def test_a_perfect_prediction_costs_nothing(
    make_rollout: MakeRollout, constant_policy: Callable[..., Policy]
) -> None:
    action = torch.randint(2, (6, 1, 2), generator=torch.Generator().manual_seed(0))
    obs = torch.zeros(6, 1, 2, 4)
    next_obs = (2.0 * action - 1)[..., None] * torch.tensor([0.0, 0.1, 0.0, -0.3])
    rollout = make_rollout(6, 1, 2, obs=obs, next_obs=next_obs, action=action)
    policy, turned = constant_policy((0, 0, 1.0, -1.0)), constant_policy((0, 0, -1.0, 1.0))
    right = prediction_loss(policy, policy.meta_params(), rollout)
    wrong_sign = prediction_loss(turned, turned.meta_params(), rollout)
    assert right.item() == pytest.approx(0.0, abs=1e-12)
    assert wrong_sign.item() == pytest.approx(4.0)


def test_each_tasks_targets_are_divided_by_its_own_spread(
    policy: Policy, make_rollout: MakeRollout
) -> None:
    """A task whose observations move a hundred times as far has the same loss."""
    small = make_rollout(6, 1, 2)
    change = small.next_obs - small.obs
    both = make_rollout(
        6,
        2,
        2,
        obs=small.obs.expand(-1, 2, -1, -1),
        action=small.action.expand(-1, 2, -1),
        next_obs=torch.cat([small.next_obs, small.obs + 100 * change], dim=1),
    )
    spread = target_spread(policy, both)
    torch.testing.assert_close(spread[1], 100 * spread[0])
    losses = prediction_loss(policy, policy.meta_params(), both)
    torch.testing.assert_close(losses[1], losses[0])


def test_a_dimension_that_does_not_move_is_not_blown_up(
    policy: Policy, make_rollout: MakeRollout
) -> None:
    obs = torch.ones(3, 1, 1, 4)
    rollout = make_rollout(3, obs=obs, next_obs=obs)
    spread = target_spread(policy, rollout)
    assert torch.equal(spread, torch.full_like(spread, MIN_SPREAD))
    assert prediction_loss(policy, policy.meta_params(), rollout).isfinite().all()


def test_weights_choose_the_steps(policy: Policy, make_rollout: MakeRollout) -> None:
    rollout = make_rollout(6, 2, 2)
    spread = target_spread(policy, rollout)
    params = policy.meta_params()
    whole = prediction_loss(policy, params, rollout, spread=spread)
    weight = torch.full((6, 2, 2), 3.0)
    scaled = prediction_loss(policy, params, rollout, spread=spread, weight=weight)
    torch.testing.assert_close(scaled, whole)

    weight = torch.zeros(6, 2, 2)
    weight[:, :, 0] = 1.0
    chosen = prediction_loss(policy, params, rollout, spread=spread, weight=weight)
    alone = rollout.map(lambda x: x[:, :, :1])
    torch.testing.assert_close(chosen, prediction_loss(policy, params, alone, spread=spread))
    assert not torch.allclose(chosen, whole)

    weight[:, 1] = 0.0
    none = prediction_loss(policy, params, rollout, spread=spread, weight=weight)
    assert none[1].item() == 0


def test_steps_never_taken_leak_neither_into_the_value_nor_into_the_gradient(
    policy: Policy,
    make_rollout: MakeRollout,
    ends_early: Tensor,
    spoiled: Callable[[Rollout], Rollout],
) -> None:
    clean = make_rollout(6, 2, 2, mask=ends_early)
    dirty = spoiled(clean)
    assert torch.equal(target_spread(policy, dirty), target_spread(policy, clean))
    weight = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(0))
    nan_outside = torch.where(ends_early, weight, float("nan"))
    for options, dirty_options in (
        ({}, {}),
        ({"weight": weight}, {"weight": nan_outside}),
    ):
        expected = gradient(policy, clean, **options)
        received = gradient(policy, dirty, **dirty_options)
        assert len(received) > 1
        for e, r in zip(expected, received, strict=True):
            assert r.isfinite().all()
            torch.testing.assert_close(r, e)


def test_masked_steps_do_not_count_in_the_mean(policy: Policy, make_rollout: MakeRollout) -> None:
    long = make_rollout(6, mask=(torch.arange(6) < 4)[:, None, None])
    short = long.map(lambda x: x[:4])
    params = policy.meta_params()
    torch.testing.assert_close(
        prediction_loss(policy, params, long), prediction_loss(policy, params, short)
    )
