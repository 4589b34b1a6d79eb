"""The safeguard and the change detector, measured: every share against a count by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import Calibration, EvaluationConfig, MetaTrainingConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.evaluation.episodes import collect_support, run_arm, shuffle_actions
from ssm_metarl.evaluation.safety import MARGIN, SHOWN_STEPS, measure_safety
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.methods.method import Model
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.task_family import TaskFamily

from .conftest import untrained_policy

CONFIG = EvaluationConfig(num_tasks=8, episodes_per_task=1, support_steps=15)
LIMITS = Calibration(objective="prediction", max_loss=(1.1,), max_kl=9.0, max_prediction_error=1.2)


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Untrained, with steps that lower the loss on some tasks and not on others."""
    policy = untrained_policy(inner_lr=0.1, action_scale=100)
    policy.calibration = LIMITS
    return policy


@pytest.fixture(scope="module")
def safety(policy: Policy) -> dict[str, Any]:
    return measure_safety(Model(policy), CARTPOLE, CONFIG)


def test_more_steps_with_rollback_and_without(policy: Policy, safety: dict[str, Any]) -> None:
    tasks = CARTPOLE.sample("id", 8, seed=0)
    support = collect_support(policy, tasks, 15, "random", seed=0)
    assert [row["num_adapt_steps"] for row in safety["more_steps"]] == list(SHOWN_STEPS)
    for row in safety["more_steps"]:
        steps = row["num_adapt_steps"]
        for rollback, shown in ((True, row), (False, row["without_rollback"])):
            config = MetaTrained().adaptation(num_adapt_steps=steps, rollback=rollback)
            params, reports = StandardAdapter(config).adapt_tasks(policy, support)
            scores = run_arm(tasks, policy.actor(params, 8, 1), CONFIG).mean(axis=1)
            assert shown["mean"] == pytest.approx(scores.mean())
            if rollback:
                kept = [report.num_steps for report in reports]
                assert row["steps_kept"] == np.mean(kept)
                assert row["rolled_back"] == np.mean([k < steps for k in kept])
    assert safety["more_steps"][-1]["rolled_back"] > 0


def test_falls_are_counted_between_steps_that_were_kept(
    policy: Policy, safety: dict[str, Any]
) -> None:
    tasks = CARTPOLE.sample("id", 8, seed=0)
    support = collect_support(policy, tasks, 15, "random", seed=0)
    fell = set()
    last = run_arm(tasks, policy.actor(policy.meta_params(), 8, 1), CONFIG)[:, 0]
    taken = [0] * 8
    for steps in range(1, 11):
        config = MetaTrained().adaptation(num_adapt_steps=steps)
        params, reports = StandardAdapter(config).adapt_tasks(policy, support)
        scores = run_arm(tasks, policy.actor(params, 8, 1), CONFIG)[:, 0]
        for k, report in enumerate(reports):
            if report.num_steps > taken[k] and scores[k] < last[k]:
                fell.add(k)
            taken[k] = report.num_steps
        last = scores
    assert safety["falls_after_a_kept_step"] == len(fell) / 8


def test_lying_data_are_harmless_if_undone_or_if_little_is_lost(
    policy: Policy, safety: dict[str, Any]
) -> None:
    tasks = CARTPOLE.sample("id", 8, seed=0)
    lied = shuffle_actions(collect_support(policy, tasks, 15, "random", seed=0), seed=0)
    params, reports = StandardAdapter(MetaTrained().adaptation()).adapt_tasks(policy, lied)
    before = run_arm(tasks, policy.actor(policy.meta_params(), 8, 1), CONFIG)[:, 0]
    after = run_arm(tasks, policy.actor(params, 8, 1), CONFIG)[:, 0]
    undone = [report.num_steps == 0 for report in reports]
    harmless = [u or b - a <= MARGIN * 500 for u, a, b in zip(undone, after, before, strict=True)]
    assert safety["shuffled_actions"] == {
        "rolled_back": np.mean(undone),
        "harmless": np.mean(harmless),
    }


def test_the_detectors_shares_move_with_its_limit(policy: Policy) -> None:
    shares = []
    for limit in (0.0, 1e9):
        policy.calibration = replace(LIMITS, max_prediction_error=limit)
        found = measure_safety(Model(policy), CARTPOLE, CONFIG)["change_detector"]
        shares.append((found["false_alarms"], found["flips_found"]))
    policy.calibration = LIMITS
    assert shares == [(1.0, 1.0), (0.0, 0.0)]


def test_without_a_calibration_there_is_no_detector(policy: Policy) -> None:
    policy.calibration = None
    told: list[float] = []
    result = measure_safety(
        Model(policy), CARTPOLE, CONFIG, on_step=lambda share, what: told.append(share)
    )
    policy.calibration = LIMITS
    assert "change_detector" not in result
    assert told == sorted(told) and told[0] == 0 and told[-1] < 1


@pytest.mark.parametrize("family", [CARTPOLE_SCRAMBLED, PENDULUM], ids=lambda f: f.name)
def test_it_is_measured_on_any_plant(family: TaskFamily) -> None:
    small = MetaTrainingConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, family), seed=0, inner_lr=0.1)
    policy.calibration = LIMITS
    config = replace(CONFIG, num_tasks=3)
    result = measure_safety(Model(policy), family, config)
    assert result["change_detector"].keys() == {"false_alarms", "flips_found"}
    assert 0 <= result["shuffled_actions"]["harmless"] <= 1
    low, high = family.return_bounds or (0.0, 0.0)
    assert all(low <= row["worst10"] <= row["mean"] <= high for row in result["more_steps"])
