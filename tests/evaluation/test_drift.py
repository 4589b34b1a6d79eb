"""Plants that change inside an episode: shares against counts by hand, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssm_metarl.adaptation.online_adapter import OnlineAdapter, OnlineEvent
from ssm_metarl.checkpoint import load_pretrained
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.env_runner.changing_task_batch import ChangingTaskBatch
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.evaluation import drift
from ssm_metarl.evaluation.drift import Change, Schedule, change_of, measure_drift
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.methods.method import Model
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.task_family import Choice, TaskFamily, TaskParameter

CONFIG = EvaluationConfig(num_tasks=5, seed=3)


@pytest.fixture(scope="module")
def remembering() -> Policy:
    """Untrained."""
    small = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    return build_policy(architecture(small, CARTPOLE), seed=0, inner_lr=0.01)


def change(drift_kind: str, schedule: Schedule, family: TaskFamily = CARTPOLE) -> Change:
    tasks = family.sample("id", CONFIG.num_tasks, seed=CONFIG.seed)
    return change_of(tasks, drift_kind, CONFIG, schedule)


def test_the_shares_are_counts_of_first_episodes() -> None:
    schedule = Schedule(horizon=130, earliest=30, latest=60, moving=20, look_after=40)
    policy = as_policy(load_pretrained("cartpole"))
    result = measure_drift(Model(policy), CARTPOLE, "flip", CONFIG, schedule=schedule)
    arms = result["arms"]
    assert list(arms) == ["frozen", "standard", "online", "random", "lqr"]
    assert arms["standard"]["up_at_change"] == 1.0 and arms["standard"]["up_after"] == 0.0
    assert arms["online"]["up_after"] == 1.0 and arms["online"]["notice_steps"] <= 4
    assert set(result["control_step_ms"]) == {"adapting", "quiet"}
    assert (result["control_period_ms"], result["look_after"]) == (20.0, 40)
    assert arms["lqr"]["up_after"] == 1.0 and arms["random"]["up_after"] == 0.0
    # a reward of 1 a step: before the change of those that are up, after it of as long as they last
    assert (arms["lqr"]["reward_before"], arms["lqr"]["reward_after"]) == (1.0, 1.0)
    assert (arms["lqr"]["of_told"], arms["random"]["of_told"]) == (1.0, 0.0)
    assert 0 < arms["standard"]["of_told"] < 1 == arms["online"]["of_told"]

    changed = change("flip", schedule)
    tasks, later, at = changed.tasks, changed.later, changed.at
    assert torch.equal(later.values["sign"], -tasks.values["sign"])
    assert torch.equal(later.values["force"], tasks.values["force"])
    assert at.min() >= 30 and at.max() < 60 and len(set(at.tolist())) > 1
    worlds = ChangingTaskBatch(
        tasks, later, at, seed=3, purpose="evaluation-drift", max_episode_steps=130
    )
    lives = collect_rollout(worlds, policy.actor(policy.meta_params(), 5, 1), 130).mask.sum(0)[:, 0]
    frozen = arms["frozen"]
    assert frozen["up_at_change"] == (lives >= at).double().mean()
    assert frozen["mean_return"] == lives.double().mean()
    assert 0 < frozen["up_at_change"] < 1, "a case that tells the counts apart"
    after = (lives - at).clamp(0, 40).double() / 40
    assert frozen["reward_after"] == pytest.approx(after.mean().item())


@pytest.mark.parametrize("gradient", [False, True])
def test_the_arms_of_a_model_that_remembers(remembering: Policy, gradient: bool) -> None:
    schedule = Schedule(horizon=60, earliest=5, latest=9, moving=5, look_after=10)
    told: list[float] = []
    result = measure_drift(
        Model(remembering, MetaTrained(gradient=gradient)), CARTPOLE, "flip", CONFIG,
        schedule=schedule,
        on_step=lambda share, what: told.append(share),
    )  # fmt: skip
    arms = result["arms"]
    own = ["in_context", "in_context_restarted", *(["both"] if gradient else [])]
    assert list(arms) == [*own, "random", "lqr"]
    assert set(arms) <= result["definitions"].keys()
    assert arms["in_context_restarted"]["adaptations"] in (0, None), "no gradient step"
    assert "quiet" in result["control_step_ms"]
    assert ("adapting" in result["control_step_ms"]) == gradient
    assert told == [i / (len(arms) + 1) for i in range(len(arms) + 1)]

    changed = change("flip", schedule)
    actor = remembering.actor(remembering.meta_params(), 5, 1)
    lives = collect_rollout(changed.worlds(), actor, 60).mask.sum(0)[:, 0]
    assert arms["in_context"]["mean_return"] == lives.double().mean()


@pytest.mark.parametrize("kind", ["flip", "parameters"])
def test_a_plant_that_never_ends_is_judged_by_what_is_earned(kind: str) -> None:
    small = MetaTrainingConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, PENDULUM), seed=0, inner_lr=0.1)
    result = measure_drift(Model(policy), PENDULUM, kind, CONFIG)
    arms = result["arms"]
    assert (result["horizon"], result["look_after"], result["control_period_ms"]) == (400, 120, 50)
    assert list(arms) == ["frozen", "standard", "online", "random", "energy"]
    assert all(arm["up_after"] is None and arm["up_at_change"] is None for arm in arms.values())
    assert arms["energy"]["of_told"] == 1.0 and arms["random"]["of_told"] == 0.0
    assert -1 < arms["energy"]["reward_after"] < 0 > arms["random"]["reward_after"] + 3
    assert arms["frozen"]["of_told"] < 0.5
    json.dumps(result, allow_nan=False)


def test_categories_stay_whole_while_parameters_move() -> None:
    schedule = Schedule(horizon=60, earliest=5, latest=9, moving=20, look_after=10)
    changed = change("parameters", schedule, CARTPOLE_SCRAMBLED)
    categories = {p.name: choices_of(p) for p in CARTPOLE_SCRAMBLED.parameters if p.is_category}
    assert len(categories) == 7
    worlds = changed.worlds()
    worlds.reset()
    for _ in range(40):
        worlds.step(torch.zeros(5, 1, dtype=torch.int64))
        for name, values in categories.items():
            assert set(worlds._parameters[name].flatten().tolist()) <= values
    policy = build_policy(
        architecture(MetaTrainingConfig(state_dim=4, hidden_dim=8, num_layers=1),
                     CARTPOLE_SCRAMBLED), seed=0, inner_lr=0.1,
    )  # fmt: skip
    for kind in ("flip", "parameters"):
        arms = measure_drift(Model(policy), CARTPOLE_SCRAMBLED, kind, CONFIG, schedule=schedule)[
            "arms"
        ]
        assert arms["lqr"]["of_told"] == 1.0


def choices_of(parameter: TaskParameter) -> set[float]:
    assert isinstance(parameter.id, Choice)
    return set(parameter.id.values)


def test_after_a_flip_a_new_trial_saves_what_the_old_ones_memory_loses() -> None:
    settings = EvaluationConfig(num_tasks=60, seed=77)
    model = Model(load_pretrained("cartpole_in_context"), MetaTrained(gradient=False))
    arms = measure_drift(model, CARTPOLE, "flip", settings)["arms"]
    assert arms["in_context"]["up_at_change"] >= 0.95 and arms["in_context"]["up_after"] <= 0.05
    assert arms["in_context_restarted"]["up_after"] >= 0.95
    assert arms["in_context_restarted"]["notice_steps"] <= 2


def test_moving_physics_keep_the_sign_and_leave_nothing_else() -> None:
    changed = change("parameters", Schedule.of(500))
    tasks, later = changed.tasks, changed.later
    assert torch.equal(later.values["sign"], tasks.values["sign"])
    assert all((later.values[n] != v).all() for n, v in tasks.values.items() if n != "sign")
    assert changed.over == 200 and (changed.at >= 100).all() and (changed.at < 600).all()


def test_what_was_noticed_is_told_from_false_alarms() -> None:
    adapter = OnlineAdapter(as_policy(load_pretrained("cartpole")), num_tasks=2)
    adapter.events = [
        OnlineEvent(20, 0, "settled"),
        OnlineEvent(50, 0, "changed"),  # before there was a change
        OnlineEvent(103, 0, "changed"),
        OnlineEvent(140, 0, "changed"),
        OnlineEvent(95, 1, "changed"),  # its episode had ended
    ]
    adapter.num_adaptations = torch.tensor([30, 900])  # the second one's pole has fallen
    schedule = Schedule(horizon=1000, earliest=1, latest=2, moving=1, look_after=1)
    changed = replace(change("flip", schedule), at=torch.tensor([100, 90]))
    found = drift._noticed(adapter, np.array([1000, 80]), changed)
    assert found == {
        "notice_steps": 3.0, "noticed": 0.5, "false_alarms": 1000 / 180, "adaptations": 30.0
    }  # fmt: skip


def test_a_family_that_cannot_change_is_refused() -> None:
    policy = as_policy(load_pretrained("cartpole"))
    stepped = TaskFamily.from_gymnasium("CartPole-v1", {})
    for what in ("flip", "parameters"):
        with pytest.raises(ValueError, match="drift: expected a family with batched physics"):
            measure_drift(Model(policy), stepped, what, CONFIG)
    with pytest.raises(ValueError, match="expected one of flip, parameters for 'cartpole', rec"):
        measure_drift(Model(policy), CARTPOLE, "break", CONFIG)
