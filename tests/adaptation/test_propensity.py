"""Replayed steps count as far as they fit the task, above all in the actuator's hidden sign."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from float32 import double
from ssm_metarl.adaptation.propensity import propensity_weights
from ssm_metarl.core.policy import Policy
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.objectives.prediction import target_spread
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import Rollout

MakeSupport = Callable[..., Rollout]


def sign_task(sign: float, index: int = 0) -> Tasks:
    """The default plant with an actuator of this sign."""
    return Tasks(CARTPOLE, CARTPOLE.task({"sign": sign}).values, (index,))


def replayed(support: Rollout, task_ids: range) -> Rollout:
    """All episodes of a rollout as one replay (T, 1, M)."""
    buffer = ExperienceBuffer(100_000)
    buffer.add(support, task_ids)
    return buffer.sample(buffer.num_sequences, np.random.default_rng(0))


def weigh(policy: Policy, current: Rollout, past: Rollout) -> tuple[Tensor, Tensor]:
    return propensity_weights(policy, current, past, target_spread(policy, current))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_most_weight_falls_on_the_tasks_own_sign(
    policy: Policy, make_support: MakeSupport, seed: int
) -> None:
    """Twenty steps of a task against those of forty others, half of each sign."""
    train = CARTPOLE.sample("train", 40, seed=seed)
    past = make_support(train, 20, seed=seed)
    past = past.map(lambda x: x.transpose(1, 2))  # the forty tasks as forty sequences, (T, 1, 40)
    test = CARTPOLE.sample("id", 30, seed=seed)
    weights, trust = weigh(policy, make_support(test, 20, seed=seed + 100), past)
    same = train.values["sign"] == test.values["sign"][:, None]  # (30, 40)
    share = (weights.sum(0) * same).sum(1) / weights.sum(dim=(0, 2))
    assert 0.3 < same.double().mean() < 0.7
    assert share.mean() > 0.9
    assert (share > 0.8).double().mean() > 0.9
    assert share.min() > 0.6
    assert ((trust > 0) & (trust <= 1)).all()


def test_weights_have_mean_one_over_the_steps_taken(
    policy: Policy, make_support: MakeSupport
) -> None:
    past = double(replayed(make_support(10, seed=7), range(10)))
    weights, _ = weigh(double(policy), double(make_support(4)), past)
    assert weights.shape == (past.num_steps, 4, past.num_envs)
    assert not past.mask.all()
    torch.testing.assert_close(weights.sum(dim=(0, 2)) / past.mask.sum(), torch.ones(4).double())
    assert (weights[~past.mask.expand_as(weights)] == 0).all()
    assert (weights[past.mask.expand_as(weights)] > 0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_experience_of_the_very_same_task_is_trusted_more_than_of_the_flipped_one(
    policy: Policy, make_support: MakeSupport, sign: float
) -> None:
    current = make_support(sign_task(sign), 40, seed=0)
    trust = {
        other: weigh(policy, current, replayed(make_support(sign_task(other, 9), 200), range(1)))[1]
        for other in (1.0, -1.0)
    }
    assert trust[sign].item() > 2 * trust[-sign].item()
    assert trust[sign].item() > 0.2


def test_steps_that_cannot_be_told_apart_are_trusted_fully(
    policy: Policy, make_support: MakeSupport
) -> None:
    current = double(make_support(1))
    weights, trust = weigh(double(policy), current, current)
    torch.testing.assert_close(weights, torch.ones_like(weights))
    torch.testing.assert_close(trust, torch.ones_like(trust))
    assert trust.item() <= 1


def test_each_tasks_weights_are_its_own(policy: Policy, make_support: MakeSupport) -> None:
    policy, current = double(policy), double(make_support(4))
    past = double(replayed(make_support(10, seed=7), range(10)))
    weights, trust = weigh(policy, current, past)
    for k in range(4):
        alone, its_trust = weigh(policy, current.task(k), past)
        torch.testing.assert_close(alone[:, 0], weights[:, k])
        torch.testing.assert_close(its_trust[0], trust[k])


def test_steps_that_were_not_taken_do_not_count(policy: Policy, make_support: MakeSupport) -> None:
    past = replayed(make_support(10, seed=7), range(10))
    spoiled = {
        name: torch.where(past.mask[..., None] if v.dim() == 4 else past.mask, v, torch.nan)
        for name, v in vars(past).items()
        if v.is_floating_point()
    }
    one, two = (weigh(policy, make_support(2), p) for p in (past, replace(past, **spoiled)))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
