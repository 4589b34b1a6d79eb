"""Limits of adaptation: the statistics by known answers, and what a calibration looks at."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from ssm_metarl.config import Calibration
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.evaluation import calibration as module
from ssm_metarl.evaluation.calibration import calibrate, harm_limit, loss_limit, most_falls
from ssm_metarl.evaluation.episodes import collect_support, shuffle_actions
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.tasks.cartpole import CARTPOLE

from .conftest import untrained_policy

SMALL: dict[str, Any] = {"num_tasks": 12, "support_steps": (5, 12)}


@pytest.fixture
def policy() -> Policy:
    return untrained_policy(inner_lr=0.3, action_scale=100)


@pytest.mark.parametrize("num_tasks", [1, 58, 59, 200, 400, 1000])
def test_most_falls_is_the_clopper_pearson_bound(num_tasks: int) -> None:
    """k falls of n bound the share by the 95 % quantile of Beta(k + 1, n - k)."""
    k = most_falls(num_tasks)
    bound = [scipy.stats.beta.ppf(0.95, j + 1, num_tasks - j) for j in range(num_tasks)]
    assert k == sum(b <= 0.05 for b in bound) - 1
    assert (k >= 0) == (num_tasks >= 59)


def test_the_limit_is_the_largest_that_stays_within_the_budget() -> None:
    losses = {"honest": np.arange(100.0), "shuffled": np.arange(100.0) + 0.5}
    falls = {"honest": np.zeros(100, bool), "shuffled": np.arange(100) >= 40}
    allowed = most_falls(100)  # 1
    assert allowed == 1
    # the second fall among the shuffled is at loss 41.5: the limit is the loss seen before it
    assert harm_limit(losses, falls) == 41.0
    nothing_falls = {kind: np.zeros(100, bool) for kind in losses}
    assert harm_limit(losses, nothing_falls) == 99.5


def test_lies_that_look_honest_do_not_keep_honest_steps_from_helping() -> None:
    honest = np.linspace(0.0, 1.0, 101)
    falls = {"honest": np.zeros(101, bool), "shuffled": np.ones(101, bool)}
    told = {"honest": honest, "shuffled": honest + 2.0}  # their losses tell them apart
    assert loss_limit(told, falls) == (2.0, True)
    alike = {"honest": honest, "shuffled": honest}
    assert loss_limit(alike, falls) == (pytest.approx(0.99), False)
    harmful = {"honest": honest > 0.5, "shuffled": np.ones(101, bool)}
    limit, told_lies = loss_limit(alike, harmful)
    assert limit < 0.55 and not told_lies, "honest steps that harm are undone all the same"


def test_where_even_the_lowest_loss_is_followed_by_falls_nothing_is_kept() -> None:
    losses = {"honest": np.full(100, 2.0)}
    limit = harm_limit(losses, {"honest": np.ones(100, bool)})
    assert limit < 2.0


def test_losses_that_are_not_finite_set_no_limit() -> None:
    losses = {"honest": np.array([0.1] * 99 + [np.inf])}
    assert harm_limit(losses, {"honest": np.zeros(100, bool)}) == 0.1


def test_steps_that_overflow_set_limits_that_keep_nothing(policy: Policy) -> None:
    with torch.no_grad():
        policy.step_size.fill_(1e30)
    limits = calibrate(policy, CARTPOLE, MetaTrained(), **SMALL)
    assert limits is not None and limits.max_kl == 0 and limits.max_prediction_error == 0
    json.dumps(asdict(limits), allow_nan=False)


def test_shuffling_keeps_everything_but_the_order_of_the_actions(policy: Policy) -> None:
    tasks = CARTPOLE.sample("id", 6, seed=0)
    honest = collect_support(policy, tasks, 30, "random", seed=0)
    lied = shuffle_actions(honest, seed=0)
    assert torch.equal(lied.obs, honest.obs) and torch.equal(lied.next_obs, honest.next_obs)
    assert torch.equal(lied.action.sum(0), honest.action.sum(0))
    assert ((lied.action != honest.action).any(0)).all()
    assert torch.equal(lied.action, shuffle_actions(honest, seed=0).action)


def test_calibration_is_reproducible_and_leaves_the_policy_alone(policy: Policy) -> None:
    before = {n: v.clone() for n, v in policy.state_dict().items()}
    limits = calibrate(policy, CARTPOLE, MetaTrained(), **SMALL)
    assert limits is not None and limits == calibrate(policy, CARTPOLE, MetaTrained(), **SMALL)
    assert policy.calibration is None
    assert all(torch.equal(v, before[n]) for n, v in policy.state_dict().items())
    assert limits.objective == "prediction" and limits.max_kl > 0
    assert limits.max_prediction_error is not None and limits.max_prediction_error > 0
    assert limits != calibrate(policy, CARTPOLE, MetaTrained(), seed=1, **SMALL)
    # a policy's own limits have no say in new ones
    policy.calibration = Calibration(objective="prediction", max_loss=(0.0,), max_kl=0.0)
    assert limits == calibrate(policy, CARTPOLE, MetaTrained(), **SMALL)


def test_only_training_tasks_are_looked_at(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []
    sample = type(CARTPOLE).sample

    def watch(self: Any, split: str, num_tasks: int, *, seed: int, start: int = 0) -> Any:
        drawn.append((split, start))
        return sample(self, split, num_tasks, seed=seed, start=start)  # type: ignore[arg-type]

    monkeypatch.setattr(type(CARTPOLE), "sample", watch)
    calibrate(policy, CARTPOLE, MetaTrained(), **SMALL)
    assert drawn == [("train", module.FIRST_TASK)]


def test_a_model_that_cannot_adapt_has_no_limits() -> None:
    from ssm_metarl.core.pth_policy import as_policy

    model = as_policy(StateSpaceModel(output_dim=2))
    assert calibrate(model, CARTPOLE, MetaTrained(), **SMALL) is None


def test_a_model_adapted_by_reward_has_no_prediction_error_to_bound() -> None:
    from ssm_metarl.core.pth_policy import as_policy

    model = as_policy(StateSpaceModel(output_dim=2))
    limits = calibrate(model, CARTPOLE, MetaTrained(objective="policy_gradient"), **SMALL)
    assert limits is not None and limits.max_prediction_error is None
