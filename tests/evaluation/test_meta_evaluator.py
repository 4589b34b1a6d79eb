"""The evaluator: which arms there are, that they are paired, and what their numbers mean."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.animation import record
from ssm_metarl.evaluation.episodes import PURPOSE, collect_support, run_arm, run_trials
from ssm_metarl.evaluation.meta_evaluator import (
    agrees,
    evaluate,
    in_context_curve_point,
    learning_curve_point,
    verify,
)
from ssm_metarl.evaluation.report import write_report
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.methods.fixed_policy import Effort, search_fixed_policy
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.methods.method import Model
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.task_family import TaskFamily, Uniform

from .conftest import untrained_policy

SMALL = {"num_tasks": 5, "episodes_per_task": 2, "support_steps": 12, "rollback": False}


def config(**settings: Any) -> EvaluationConfig:
    return EvaluationConfig(**(SMALL | settings))


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Untrained, with step sizes and an action head large enough for adapting to change it."""
    return untrained_policy(inner_lr=1.0, action_scale=1000)


@pytest.fixture(scope="module")
def buffer(policy: Policy) -> ExperienceBuffer:
    tasks = CARTPOLE.sample("train", 8, seed=0)
    buffer = ExperienceBuffer(1000)
    buffer.add(collect_support(policy, tasks, 20, "random", seed=0), tasks.indices)
    return buffer


@pytest.fixture(scope="module")
def pendulum() -> TaskFamily:
    """A family without sign and CartPole's state, with continuous actions."""
    return TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15, unit="m/s²")})


@pytest.fixture(scope="module")
def pendulum_policy(pendulum: TaskFamily) -> Policy:
    small = MetaTrainingConfig(state_dim=4, hidden_dim=8, num_layers=1)
    return build_policy(architecture(small, pendulum), seed=0, inner_lr=0.1)


def test_arms_that_apply_are_there_in_order(policy: Policy, buffer: ExperienceBuffer) -> None:
    with_buffer = evaluate(policy, CARTPOLE, config(), model="m", buffer=buffer)
    names = ["random", "frozen", "standard", "hybrid", "lqr", "sign_probe"]
    assert list(with_buffer["arms"]) == names
    assert with_buffer["absent"].keys() == {"in_context", "both", "least_squares"}
    seen: list[str] = []
    without = evaluate(policy, CARTPOLE, config(), model="m", on_arm=seen.append)
    assert list(without["arms"]) == seen == [n for n in names if n != "hybrid"]
    assert list(without["paired"]) == ["standard-frozen"]
    empty = evaluate(policy, CARTPOLE, config(), model="m", buffer=ExperienceBuffer(5))
    assert empty == without and "no experience" in without["absent"]["hybrid"]


def test_a_family_without_experts_or_categories_has_no_such_arms(
    pendulum: TaskFamily, pendulum_policy: Policy
) -> None:
    small = config(num_tasks=1, episodes_per_task=1)
    result = evaluate(pendulum_policy, pendulum, small, model="m")
    assert list(result["arms"]) == ["random", "frozen", "standard"]
    assert result["by_category"] == {} and "by_sign" not in result
    assert result["arms"]["random"]["mean"] < 0  # the pendulum's costs, not CartPole's steps


def test_a_model_without_prediction_outputs_adapts_by_policy_gradient_only() -> None:
    model = StateSpaceModel(output_dim=2)
    result = evaluate(model, CARTPOLE, config(), model="m")
    assert list(result["arms"]) == ["random", "frozen", "lqr", "sign_probe"]
    assert result["paired"] == {} and result["adaptation"] == {}
    rewarded = evaluate(model, CARTPOLE, config(objective="policy_gradient"), model="m")
    assert "standard" in rewarded["arms"]
    assert rewarded["arms"]["frozen"] == result["arms"]["frozen"]


def test_a_raw_model_of_the_documented_shape_is_a_policy() -> None:
    model = StateSpaceModel()
    result = evaluate(model, CARTPOLE, config(), model="m")
    assert "standard" in result["arms"]
    assert result == evaluate(as_policy(model), CARTPOLE, config(), model="m")


def test_a_model_that_does_not_fit_is_refused(policy: Policy, pendulum: TaskFamily) -> None:
    with pytest.raises(ValueError, match=r"observations of size 3.*received.*size 4"):
        evaluate(policy, pendulum, config(), model="m")
    with pytest.raises(ValueError, match=r"expected one for cartpole.*received.*size 6"):
        evaluate(StateSpaceModel(input_dim=6), CARTPOLE, config(), model="m")
    with pytest.raises(ValueError, match="experience_weight"):
        evaluate(policy, CARTPOLE, config(experience_weight=-1), model="m")


@pytest.mark.parametrize("family", [CARTPOLE, CARTPOLE_SCRAMBLED, PENDULUM], ids=lambda f: f.name)
def test_every_arm_starts_from_the_same_states(
    family: TaskFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side or one after the other: episode e of task k is the same one."""
    small = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, family), seed=0, inner_lr=0.1)
    buffer = ExperienceBuffer(1000)
    tasks = family.sample("train", 3, seed=0)
    buffer.add(collect_support(policy, tasks, 20, "random", seed=0), tasks.indices)
    starts: dict[str, list[np.ndarray]] = {}
    running: list[str] = []
    reset = TaskBatch.reset

    def recorded(worlds: TaskBatch, mask: torch.Tensor | None = None) -> torch.Tensor:
        obs = reset(worlds, mask)
        if running:  # before the first arm, support data are collected
            begun = obs if mask is None else obs.masked_fill(~mask[..., None], torch.nan)
            starts.setdefault(running[-1], []).append(begun.numpy())
        return obs

    monkeypatch.setattr(TaskBatch, "reset", recorded)
    settings = config(num_tasks=3, episodes_per_task=2)
    arms = evaluate(policy, family, settings, model="m", buffer=buffer, on_arm=running.append)[
        "arms"
    ]
    assert set(starts) == set(arms) > {"frozen", "standard", "hybrid", "in_context", "both"}
    expected = starts["frozen"][0]  # (K, E, O)
    assert len(starts["frozen"]) == 1
    for arm, resets in starts.items():
        if resets[0].shape[1] == 2:
            np.testing.assert_array_equal(resets[0], expected)
            continue
        for k in range(3):  # a trial's resets (t, K, 1, O): nan where no episode began
            begun = [obs[k, 0] for obs in resets if not np.isnan(obs[k]).any()]
            np.testing.assert_array_equal(np.stack(begun[:2]), expected[k], err_msg=arm)
    assert len(np.unique(expected.reshape(6, -1), axis=0)) == 6  # no episode twice


def test_trials_of_a_gymnasium_family_start_where_its_episodes_do(pendulum: TaskFamily) -> None:
    tasks = pendulum.sample("id", 2, seed=0)
    side_by_side = make_worlds(tasks, 3, seed=4, purpose="p").reset()
    worlds = make_worlds(tasks, 1, seed=4, purpose="p", trial_episodes=3)
    never, first = torch.zeros(2, 1, dtype=torch.bool), torch.tensor([[True], [False]])
    assert torch.equal(worlds.reset()[:, 0], side_by_side[:, 0])
    worlds.reset(never)
    assert torch.equal(worlds.reset(first)[0, 0], side_by_side[0, 1])
    both = worlds.reset(~never)
    assert torch.equal(both[0, 0], side_by_side[0, 2])
    assert torch.equal(both[1, 0], side_by_side[1, 1])
    worlds.close()


def test_a_tasks_score_does_not_depend_on_its_neighbours(policy: Policy) -> None:
    tasks = CARTPOLE.sample("id", 5, seed=0)
    params = policy.meta_params()
    together = run_arm(tasks, policy.actor(params, 5, 2), config())
    for k in range(5):
        alone = run_arm(tasks[[k]], policy.actor(params, 1, 2), config())
        np.testing.assert_array_equal(alone[0], together[k])


def test_frozen_is_standard_without_a_step(policy: Policy, buffer: ExperienceBuffer) -> None:
    none = evaluate(policy, CARTPOLE, config(num_adapt_steps=0), model="m", buffer=buffer)
    one = evaluate(policy, CARTPOLE, config(), model="m", buffer=buffer)
    frozen = {k: v for k, v in none["arms"]["frozen"].items() if k != "env_steps"}
    for arm in ("standard", "hybrid"):
        assert {k: v for k, v in none["arms"][arm].items() if k != "env_steps"} == frozen
        assert none["adaptation"][arm]["loss_before"] == none["adaptation"][arm]["loss_after"]
    assert one["arms"]["frozen"] == none["arms"]["frozen"]
    assert one["arms"]["standard"] != one["arms"]["frozen"]  # and with a step it is not
    assert none["paired"]["standard-frozen"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    still = evaluate(policy, CARTPOLE, config(adapt_lr=0.0, num_adapt_steps=3), model="m")
    assert still["paired"]["standard-frozen"]["mean"] == 0.0


def test_settings_reach_the_adaptation(policy: Policy, buffer: ExperienceBuffer) -> None:
    default = evaluate(policy, CARTPOLE, config(), model="m", buffer=buffer)
    for changed in (
        {"adapt_lr": 0.5},
        {"num_adapt_steps": 2},
        {"objective": "policy_gradient"},
        {"support_policy": "policy"},
        {"support_steps": 30},
    ):
        result = evaluate(policy, CARTPOLE, config(**changed), model="m", buffer=buffer)
        assert result["adaptation"]["standard"] != default["adaptation"]["standard"], changed
        assert result["arms"]["frozen"] == default["arms"]["frozen"]
        (name, value) = next(iter(changed.items()))
        assert result[name] == value
    weightless = evaluate(policy, CARTPOLE, config(experience_weight=0), model="m", buffer=buffer)
    assert weightless["arms"]["hybrid"] == weightless["arms"]["standard"]
    trust = default["adaptation"]["hybrid"]["replay_trust"]
    assert 0 < trust < 1 and default["adaptation"]["standard"]["replay_trust"] is None
    uniform = evaluate(policy, CARTPOLE, config(replay="uniform"), model="m", buffer=buffer)
    assert uniform["replay"] == "uniform" and uniform["adaptation"]["hybrid"]["replay_trust"] == 1
    assert uniform["arms"]["hybrid"] != default["arms"]["hybrid"]
    free, held = (
        evaluate(
            policy, CARTPOLE, config(proximal_weight=weight, num_adapt_steps=2, rollback=False),
            model="m", buffer=buffer,
        )["adaptation"]["hybrid"]["loss_after"]
        for weight in (0.0, 1.0)
    )  # fmt: skip
    assert free != held


def test_a_fixed_policy_adds_an_arm_and_what_adapting_is_worth(policy: Policy) -> None:
    effort = Effort(starts=1, generations=1, population=4, elites=2, tasks=2, judged_on=2)
    fixed = search_fixed_policy(CARTPOLE, seed=0, effort=effort)
    without = evaluate(policy, CARTPOLE, config(), model="m")
    result = evaluate(policy, CARTPOLE, config(), model="m", fixed=fixed)
    assert "worth" not in without and "fixed" not in without["arms"]
    assert {a: s for a, s in result["arms"].items() if a != "fixed"} == without["arms"]
    tasks = CARTPOLE.sample("id", SMALL["num_tasks"], seed=0)
    returns = run_arm(tasks, fixed.actor(SMALL["num_tasks"], 2), config())
    assert result["arms"]["fixed"]["mean"] == returns.mean()
    assert result["arms"]["fixed"]["env_steps"] == 0
    worth, arms = result["worth"], result["arms"]
    assert worth["arms"].keys() == {"frozen", "sign_probe", "standard"}
    for arm, s in worth["arms"].items():
        difference = arms[arm]["mean"] - arms["fixed"]["mean"]
        assert s["over_fixed"]["mean"] == pytest.approx(difference)
        gap = arms["lqr"]["mean"] - arms["fixed"]["mean"]
        assert s["share"]["mean"] == pytest.approx(difference / gap)
    assert worth["fixed_policy"]["training_score"] == fixed.score
    json.dumps(result, allow_nan=False)


def test_defaults_come_from_the_meta_training(policy: Policy) -> None:
    training = {"objective": "policy_gradient", "support_policy": "policy", "gamma": 0.9}
    trained = MetaTrained.from_training({**training, "seed": 7})
    assert trained == MetaTrained("policy_gradient", "policy", gamma=0.9)
    adaptation = trained.adaptation(num_adapt_steps=2)
    assert (adaptation.objective, adaptation.gamma) == ("policy_gradient", 0.9)
    assert trained.adaptation(objective="prediction").objective == "prediction"
    result = evaluate(policy, CARTPOLE, config(), model="m", trained=trained)
    assert (result["objective"], result["support_policy"]) == ("policy_gradient", "policy")
    assert result["meta_trained_support_policy"] == "policy"
    overridden = config(objective="prediction", support_policy="random")
    result = evaluate(policy, CARTPOLE, overridden, model="m", trained=trained)
    assert result["arms"] == evaluate(policy, CARTPOLE, config(), model="m")["arms"]
    assert result["meta_trained_support_policy"] == "policy"


def test_the_same_arguments_give_the_same_json(policy: Policy, buffer: ExperienceBuffer) -> None:
    def text(**settings: Any) -> str:
        result = evaluate(policy, CARTPOLE, config(**settings), model="m", buffer=buffer)
        return json.dumps(result, allow_nan=False)

    torch.manual_seed(1)
    first = text()
    torch.manual_seed(2)
    assert text() == first
    assert text(seed=1) != first and text(split="ood") != first


def test_the_policy_stays_untouched(policy: Policy, buffer: ExperienceBuffer) -> None:
    before = {n: v.clone() for n, v in policy.state_dict().items()}
    size = len(buffer)
    evaluate(policy, CARTPOLE, config(num_adapt_steps=2), model="m", buffer=buffer)
    assert all(torch.equal(v, before[n]) for n, v in policy.state_dict().items())
    assert len(buffer) == size and all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("support_policy", ["random", "policy"])
def test_the_cost_is_the_support_data_of_one_task(
    policy: Policy, buffer: ExperienceBuffer, support_policy: str
) -> None:
    tasks = CARTPOLE.sample("id", 4, seed=0)
    support = collect_support(policy, tasks, 33, support_policy, seed=0)
    assert support.steps_taken().tolist() == [33] * 4  # several episodes, the last one cut
    assert int(support.reset.sum()) > 4
    settings = config(support_steps=33, support_policy=support_policy)
    arms = evaluate(policy, CARTPOLE, settings, model="m", buffer=buffer)["arms"]
    paid = {arm for arm, scores in arms.items() if scores["env_steps"] == 33}
    assert paid == {"standard", "hybrid", "sign_probe"}
    assert {scores["env_steps"] for scores in arms.values()} == {0, 33}


def test_a_single_task(policy: Policy, buffer: ExperienceBuffer) -> None:
    result = evaluate(policy, CARTPOLE, config(num_tasks=1), model="m", buffer=buffer)
    for scores in result["arms"].values():
        assert scores["ci95"] == [scores["mean"]] * 2
        assert scores["worst10"] == scores["iqm"] == scores["mean"]
    (sign,) = result["by_sign"]
    assert float(sign) == float(CARTPOLE.sample("id", 1, seed=0).values["sign"])


def test_every_category_of_two_values_has_scores_of_its_own() -> None:
    small = MetaTrainingConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, CARTPOLE_SCRAMBLED), seed=0, inner_lr=0.1)
    result = evaluate(policy, CARTPOLE_SCRAMBLED, config(num_tasks=6), model="m")
    sensors = {f"sensor_sign_{name}" for name in ("x", "x_dot", "theta", "theta_dot")}
    assert result["by_category"].keys() == {"sign", *sensors}
    assert result["by_sign"] == result["by_category"]["sign"]


def test_by_sign_is_the_mean_over_the_tasks_of_that_sign(policy: Policy) -> None:
    settings = config(num_tasks=12)
    result = evaluate(policy, CARTPOLE, settings, model="m")
    tasks = CARTPOLE.sample("id", 12, seed=0)
    rows = {}
    for value in (-1.0, 1.0):
        chosen = [k for k, s in enumerate(tasks.values["sign"].tolist()) if s == value]
        actor = policy.actor(policy.meta_params(), len(chosen), 2)
        rows[f"{value:+g}"] = run_arm(tasks[chosen], actor, settings).mean(axis=1)
    assert set(result["by_sign"]) == {"-1", "+1"}
    for sign, scores in rows.items():
        frozen = result["by_sign"][sign]["frozen"]
        assert frozen["mean"] == pytest.approx(scores.mean())
        assert frozen["worst10"] == scores.min()  # of fewer than 20 tasks: the worst
    assert rows["-1"].mean() != rows["+1"].mean()
    every = np.concatenate(list(rows.values()))
    assert result["arms"]["frozen"]["mean"] == pytest.approx(every.mean())


def test_paired_differences_are_taken_task_by_task(
    policy: Policy, buffer: ExperienceBuffer
) -> None:
    result = evaluate(policy, CARTPOLE, config(num_tasks=12), model="m", buffer=buffer)
    for pair, difference in result["paired"].items():
        first, second = pair.split("-")
        expected = result["arms"][first]["mean"] - result["arms"][second]["mean"]
        assert difference["mean"] == pytest.approx(expected)
        assert difference["ci95"][0] <= difference["mean"] <= difference["ci95"][1]
    assert result["paired"]["standard-frozen"]["mean"] != 0


def test_steps_that_overflow_leave_null_and_not_nan(policy: Policy) -> None:
    settings = config(adapt_lr=1e30, num_adapt_steps=5)
    result = evaluate(policy, CARTPOLE, settings, model="m")
    assert result["adaptation"]["standard"]["loss_after"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_told_the_sign_a_fixed_controller_balances(policy: Policy) -> None:
    arms = evaluate(policy, CARTPOLE, config(num_tasks=20), model="m")["arms"]
    assert arms["lqr"]["mean"] == 500
    assert arms["sign_probe"]["mean"] > 490
    assert arms["random"]["mean"] < 50


def test_verify(policy: Policy) -> None:
    trained = MetaTrained()
    measured = verify(policy, CARTPOLE, trained)
    assert measured == verify(policy, CARTPOLE, trained)
    assert measured["mean"] == np.mean(measured["steps"])  # CartPole's reward is 1 a step
    assert measured["std"] == pytest.approx(np.std(measured["steps"]))
    assert (measured["min"], measured["max"]) == (min(measured["steps"]), max(measured["steps"]))
    assert len(measured["steps"]) == measured["episodes"] == 10
    settings = EvaluationConfig(num_tasks=10, episodes_per_task=1)
    arms = evaluate(policy, CARTPOLE, settings, model="m")["arms"]
    assert measured["mean"] == arms["standard"]["mean"]
    assert measured["frozen_mean"] == arms["frozen"]["mean"]
    assert verify(policy, CARTPOLE, trained, seed=1)["steps"] != measured["steps"]


@pytest.mark.parametrize(
    ("card", "same"),
    [
        ({}, True),
        ({"mean": -230.8284}, True),  # another processor
        ({"mean": -230.9}, False),
        ({"mean": 230.8283}, False),
        ({"mean": float("nan")}, False),
        ({"mean": "-230.8283"}, False),
        ({"mean": None}, False),
        ({"steps": [200, 199]}, False),
        ({"steps": [200]}, False),
        ({"more": 1}, False),
    ],
)
def test_a_card_agrees_to_one_in_ten_thousand(card: dict[str, Any], same: bool) -> None:
    measured = {"episodes": 2, "mean": -230.8283, "steps": [200, 200]}
    assert agrees(measured, measured | card) is same


def test_verify_runs_a_model_that_cannot_adapt_as_it_is() -> None:
    measured = verify(StateSpaceModel(output_dim=2), CARTPOLE, MetaTrained())
    assert measured["support_steps"] == 0
    assert measured["mean"] == measured["frozen_mean"]


def test_a_point_of_the_learning_curve_is_a_small_evaluation(policy: Policy) -> None:
    point = learning_curve_point(policy, CARTPOLE, MetaTrainingConfig(), num_tasks=6)
    settings = EvaluationConfig(num_tasks=6, episodes_per_task=1, seed=1)
    arms, ood_arms = (
        evaluate(policy, CARTPOLE, replace(settings, split=split), model="m")["arms"]
        for split in ("id", "ood")
    )
    for arm in ("adapted", "frozen", "ood_adapted"):  # eight of ten tasks lie between the two
        assert 0 < point.pop(f"{arm}_q10") < point.pop(f"{arm}_q90") <= 500
    assert point == {
        "adapted_mean": arms["standard"]["mean"],
        "adapted_iqm": arms["standard"]["iqm"],
        "frozen_mean": arms["frozen"]["mean"],
        "frozen_iqm": arms["frozen"]["iqm"],
        "ood_adapted_mean": ood_arms["standard"]["mean"],
        "ood_adapted_iqm": ood_arms["standard"]["iqm"],
    }


def test_a_model_that_was_trained_without_inner_steps_runs_as_it_is(policy: Policy) -> None:
    training = MetaTrainingConfig(adaptation_steps=0, support_policy="policy")
    trained = MetaTrained.from_training(asdict(training))
    assert (trained.gradient, trained.support_policy) == (False, "policy")
    arms = evaluate(policy, CARTPOLE, config(), model="m", trained=trained)["arms"]
    assert list(arms) == ["random", "frozen", "lqr", "sign_probe"]
    assert verify(policy, CARTPOLE, trained)["support_steps"] == 0
    point = learning_curve_point(policy, CARTPOLE, training, num_tasks=6)
    assert {name.removesuffix("_mean") for name in point if name.endswith("_mean")} == {
        "frozen", "ood_frozen",
    }  # fmt: skip


@pytest.mark.parametrize("family", [CARTPOLE, PENDULUM], ids=lambda f: f.name)
def test_a_film_is_of_the_same_world_before_and_after(family: TaskFamily) -> None:
    small = MetaTrainingConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, family), seed=3, inner_lr=1.0)
    with torch.no_grad():
        policy.heads.action.weight.mul_(1000)
    model = Model(policy)
    settings = EvaluationConfig(support_steps=20, rollback=False, seed=1)
    film = record(model, family, settings)
    assert film is not None
    totals = {}
    for sign in (-1.0, 1.0):  # of the two directions, the one that the policy is worse at
        tasks = family.task({"sign": sign})
        worlds = make_worlds(tasks, 1, seed=1, purpose="evaluation-film")
        actor = policy.actor(policy.meta_params(), 1, 1)
        totals[sign] = float(collect_rollout(worlds, actor, 500).episode_returns())
    assert film.task == {**family.default_task, "sign": min(totals, key=totals.__getitem__)}
    assert film.before.total == min(totals.values())
    unchanged = record(model, family, replace(settings, num_adapt_steps=0))
    assert unchanged is not None
    np.testing.assert_array_equal(unchanged.after.states, unchanged.before.states)
    np.testing.assert_array_equal(unchanged.before.states, film.before.states)
    assert not np.array_equal(film.before.states, film.after.states)
    assert (film.before.failed, family.name) in ((True, "cartpole"), (False, "pendulum"))
    # the state after one step, of the physics and not of the sensors
    assert film.before.states.shape[1] == len(family.dynamics.push_scale)


def test_only_a_plant_that_can_be_drawn_and_disturbed_is_filmed(
    policy: Policy, pendulum: TaskFamily, pendulum_policy: Policy
) -> None:
    settings = EvaluationConfig()
    assert record(Model(policy), CARTPOLE, settings) is not None
    assert record(Model(policy), replace(CARTPOLE, sketch=None), settings) is None
    assert record(Model(policy), replace(CARTPOLE, disturbances={}), settings) is None
    assert record(Model(policy, MetaTrained(gradient=False)), CARTPOLE, settings) is None
    assert record(Model(pendulum_policy), pendulum, settings) is None


def test_a_report_of_a_family_without_a_sketch_has_no_film(
    pendulum: TaskFamily, pendulum_policy: Policy, tmp_path: Any
) -> None:
    small = config(num_tasks=2, episodes_per_task=1)
    result = evaluate(pendulum_policy, pendulum, small, model="m")
    evaluations = {"in distribution": result}
    page = write_report(tmp_path, evaluations=evaluations, training_log=None, command="again")
    assert "before_after.gif" not in page.read_text()
    assert "adaptation.png" in page.read_text()
    assert not (tmp_path / "before_after.gif").exists()


def test_definitions_cover_every_arm_and_statistic(policy: Policy) -> None:
    result = evaluate(policy, CARTPOLE, config(), model="m")
    names = {*result["arms"], *result["absent"]}
    assert names | {"support", "iqm", "ci95", "worst10", "env_steps"} <= set(result["definitions"])


def test_settings_out_of_range() -> None:
    for wrong in ({"num_tasks": 0}, {"support_steps": 0}, {"episodes_per_task": 0}):
        (name, value) = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, received {value}"):
            config(**wrong)


def test_replay_weighs_what_it_weighed_in_meta_training_unless_told_otherwise() -> None:
    trained = MetaTrained.from_training({"experience_weight": 0.125, "gamma": 0.9})
    standard = trained.adaptation(num_adapt_steps=3)
    assert trained.hybrid(standard).experience_weight == 0.125
    told = trained.hybrid(standard, experience_weight=0.0, seed=4)
    assert (told.experience_weight, told.num_adapt_steps, told.gamma, told.seed) == (0, 3, 0.9, 4)


@pytest.fixture(scope="module")
def in_context_policy() -> Policy:
    small = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, CARTPOLE), seed=0, inner_lr=0.1)
    with torch.no_grad():
        policy.heads.action.weight.mul_(1000)
    return policy


def test_in_context_arm(in_context_policy: Policy) -> None:
    trained = MetaTrained.from_training({"mode": "in_context"})
    settings = config(episodes_per_task=3)
    result = evaluate(in_context_policy, CARTPOLE, settings, model="m", trained=trained)
    assert list(result["arms"]) == [
        "random",
        "frozen",
        "in_context",
        "lqr",
        "least_squares",
        "sign_probe",
    ]
    assert list(result["paired"]) == ["in_context-frozen"]
    arm = result["arms"]["in_context"]
    assert arm["env_steps"] == 0
    episodes = [e["mean"] for e in arm["by_episode"]]
    assert len(episodes) == 3
    assert arm["mean"] == pytest.approx(np.mean(episodes))
    assert "by_episode" not in result["arms"]["frozen"]
    assert {"in_context", "by_episode"} <= result["definitions"].keys()


def test_a_trial_is_one_memory_and_its_first_episode_is_a_frozen_one(
    in_context_policy: Policy,
) -> None:
    policy, tasks = in_context_policy, CARTPOLE.sample("id", 4, seed=0)
    params = policy.meta_params()
    three = run_trials(tasks, policy.actor(params, 4, 1), config(episodes_per_task=3))
    assert three.shape == (4, 3)
    side_by_side = run_arm(tasks, policy.actor(params, 4, 3), config(episodes_per_task=3))
    np.testing.assert_array_equal(three[:, 0], side_by_side[:, 0])
    assert (three[:, 1:] != side_by_side[:, 1:]).any()  # what came before is remembered
    worlds = make_worlds(tasks, 1, seed=0, purpose=PURPOSE, trial_episodes=3)
    whole = collect_rollout(worlds, policy.actor(params, 4, 1), 1500, autoreset=True)
    ends = (whole.terminated | whole.truncated)[:, :, 0]
    for k in range(4):
        steps = ends[:, k].nonzero()[:3, 0]
        lengths = torch.diff(steps, prepend=torch.tensor([-1]))
        assert three[k].tolist() == lengths.tolist()


def test_a_model_trained_in_context_is_verified_as_it_is(in_context_policy: Policy) -> None:
    trained = MetaTrained.from_training({"mode": "in_context"})
    figures = verify(in_context_policy, CARTPOLE, trained)
    assert figures["support_steps"] == 0
    assert figures["mean"] == figures["frozen_mean"]


def test_a_look_on_the_way_at_a_trial(in_context_policy: Policy) -> None:
    point = in_context_curve_point(in_context_policy, CARTPOLE, num_tasks=3)
    assert set(point) == {
        f"{split}episode_{n}_{kind}"
        for split in ("", "ood_") for n in (1, 2) for kind in ("mean", "iqm")
    }  # fmt: skip
