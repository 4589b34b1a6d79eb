"""The inner loss of hybrid adaptation is the sum that the module promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from float32 import double
from ssm_metarl.adaptation.inner_objective import Replay, task_loss, weigh_replay
from ssm_metarl.core.policy import Policy
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.objectives.policy_gradient import PolicyGradientLoss
from ssm_metarl.objectives.prediction import prediction_loss, target_spread
from ssm_metarl.objectives.returns import advantages
from ssm_metarl.types import Rollout

MakeSupport = Callable[..., Rollout]
DISCOUNT = {"gamma": 0.9, "gae_lambda": 0.7}


@pytest.fixture
def policy(policy: Policy) -> Policy:
    return double(policy)


@pytest.fixture
def make_support(make_support: MakeSupport) -> MakeSupport:
    return lambda *args, **settings: double(make_support(*args, **settings))


@pytest.fixture
def replay(policy: Policy, make_support: MakeSupport) -> Replay:
    buffer = ExperienceBuffer(1000)
    buffer.add(make_support(6, seed=7), range(6))
    replayed = double(buffer.sample(5, np.random.default_rng(0)))
    return weigh_replay(policy, make_support(3), replayed, experience_weight=0.7)


def test_prediction_with_replay(policy: Policy, make_support: MakeSupport, replay: Replay) -> None:
    current, params = make_support(3), policy.meta_params()
    loss = task_loss(policy, "prediction", current, replay=replay, **DISCOUNT)
    spread = target_spread(policy, current)
    past = prediction_loss(policy, params, replay.rollout, spread=spread, weight=replay.weights)
    expected = prediction_loss(policy, params, current) + 0.7 * replay.trust * past
    torch.testing.assert_close(loss(params), expected)
    assert (0.7 * replay.trust * past > 1e-4).all()


def test_policy_gradient_with_replay(
    policy: Policy, make_support: MakeSupport, replay: Replay
) -> None:
    current, params = make_support(3), policy.meta_params()
    loss = task_loss(policy, "policy_gradient", current, replay=replay, **DISCOUNT)
    expected = PolicyGradientLoss(policy, current, advantages(current, **DISCOUNT))(params)
    weighted = replay.weights * advantages(replay.rollout, **DISCOUNT)
    past = PolicyGradientLoss(policy, replay.rollout, weighted)(params)
    torch.testing.assert_close(loss(params), expected + 0.7 * replay.trust * past)
    assert (past.abs() > 1e-4).all()


def test_without_replay_it_is_the_objective_alone(
    policy: Policy, make_support: MakeSupport
) -> None:
    current, params = make_support(3), policy.meta_params()
    loss = task_loss(policy, "prediction", current, **DISCOUNT)
    assert torch.equal(loss(params), prediction_loss(policy, params, current))


def test_prediction_needs_no_reward(policy: Policy, make_support: MakeSupport) -> None:
    current, params = make_support(3), policy.meta_params()
    other = replace(current, reward=torch.full_like(current.reward, -7.0))
    one, two = (task_loss(policy, "prediction", c, **DISCOUNT)(params) for c in (current, other))
    assert torch.equal(one, two)


def test_every_task_relives_the_same_sequences(policy: Policy, replay: Replay) -> None:
    assert replay.rollout.num_tasks == replay.weights.shape[1] == 3
    assert torch.equal(replay.rollout.obs[:, 0], replay.rollout.obs[:, 2])
    assert not torch.allclose(replay.weights[:, 0], replay.weights[:, 2])


def test_uniform_replay_weighs_every_step_alike_and_trusts_it(
    policy: Policy, make_support: MakeSupport, replay: Replay
) -> None:
    current, past = make_support(3), replay.rollout.task(0)
    uniform = weigh_replay(
        policy, current, past, experience_weight=0.7, proximal_weight=0.5, replay="uniform"
    )
    assert uniform.weights.shape == replay.weights.shape
    assert (uniform.weights == 1).all() and (uniform.trust == 1).all()
    assert (uniform.pull == 0).all()  # nothing is distrusted, so nothing is held back
    params = policy.meta_params()
    spread = target_spread(policy, current)
    expected = prediction_loss(policy, params, current)
    expected = expected + 0.7 * prediction_loss(policy, params, uniform.rollout, spread=spread)
    loss = task_loss(policy, "prediction", current, replay=uniform, **DISCOUNT)
    torch.testing.assert_close(loss(params), expected)


def test_the_anchor_is_as_strong_as_the_replay_is_not_trusted(replay: Replay) -> None:
    assert (replay.pull == 0).all()
    anchored = replace(replay, proximal_weight=0.5)
    torch.testing.assert_close(anchored.pull, 0.5 * (1 - replay.trust))
    assert len(set(anchored.pull.tolist())) == 3


def test_an_unknown_objective_is_refused(policy: Policy, make_support: MakeSupport) -> None:
    with pytest.raises(ValueError, match=r"expected 'prediction' or .* received 'reward'"):
        task_loss(policy, "reward", make_support(1), **DISCOUNT)  # type: ignore[arg-type]
