"""Tab 2: a plant, a press, before and after."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from float32 import assert_only_rounded
from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.app import forms, result_markup
from ssm_metarl.app.forms import FieldError, OneOf
from ssm_metarl.app.handlers import adapting, plants
from ssm_metarl.app.handlers.before_after import Adaptation, Amount, Side
from ssm_metarl.app.handlers.before_after import film as filmed
from ssm_metarl.app.handlers.drawing import drawing
from ssm_metarl.app.handlers.plants import Plant
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.cli.adapt import episode_returns
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.evaluation.episodes import collect_support
from ssm_metarl.evaluation.opened_model import OpenedModel, open_model
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.registry import FAMILIES
from ssm_metarl.tasks.sketch import Shape, Sketch
from ssm_metarl.tasks.task_family import TaskFamily, Uniform
from ssm_metarl.types import Rollout
from trials import trial_episodes

FLIPPED = replace(plants.default_plant(CARTPOLE), disturbed=True)


def press(server: Server, visitor: Visitor, plant: Plant = FLIPPED, **how: Any) -> Adaptation:
    how = {"mode": "standard", "support_steps": 20, "num_adapt_steps": 1, **how}
    return adapting.adapt(visitor, server.models, server.kernels, plant, how)


def problems(plant: Plant, family: TaskFamily, num_adapt_steps: int = 1) -> dict[str, str]:
    """What the page would say beside its fields."""
    how = {"mode": "none", "support_steps": 20, "num_adapt_steps": num_adapt_steps}
    form = {**plants.plant_form(family), **adapting.how_form(["none"])}
    return forms.problems(form, {**plant.values, **how})


def assert_same(one: Side, other: Side) -> None:
    """The same episodes, state by state."""
    assert one == other
    for states, others in zip(one.states, other.states, strict=True):
        np.testing.assert_array_equal(states, others)


def assert_loss(report: AdaptationReport, task: dict[str, float], mode: Any) -> None:
    """The loss that was reported is that of the shipped model after adapting to a task."""
    opened = open_model("cartpole")
    tasks = opened.family.task(task)
    support = collect_support(opened.policy, tasks, 20, opened.trained.support_policy, seed=0)

    def loss(policy: Policy, support: Rollout) -> torch.Tensor:
        model = replace(opened, policy=policy)
        after = model.adapt(support, mode, opened.trained.adaptation()).report.loss_after
        return torch.tensor(after, dtype=support.obs.dtype)

    assert_only_rounded(torch.tensor(report.loss_after), loss, opened.policy, support)


@pytest.mark.parametrize("model", ["cartpole", "cartpole_hybrid_real_model"])
def test_a_flipped_actuator_is_adapted_to(server: Server, visitor: Visitor, model: str) -> None:
    server.models.choose(visitor, model)
    done = press(server, visitor)
    assert max(done.before.returns) < 200 and all(done.before.failed)
    assert min(done.after.returns) >= 475 and not any(done.after.failed)
    assert done.report is not None and done.report.loss_after < done.report.loss_before
    assert (done.report.env_steps, done.report.num_steps, done.seconds) == (20, 1, 0.4)
    assert [len(e) - 1 for e in done.before.states] == done.before.returns, "a state a step"


def test_what_the_model_expects_needs_no_adapting(server: Server, visitor: Visitor) -> None:
    done = press(server, visitor, replace(FLIPPED, disturbed=False), mode="none")
    assert done.report is None and done.command == ""
    assert_same(done.before, done.after)
    assert min(done.before.returns) >= 475


def test_it_is_what_the_command_line_does(server: Server, visitor: Visitor) -> None:
    done = press(server, visitor, mode="hybrid")
    opened = open_model("cartpole")
    tasks = opened.family.task(done.task)
    support = collect_support(opened.policy, tasks, 20, opened.trained.support_policy, seed=0)
    adapted = opened.adapt(support, "hybrid", opened.trained.adaptation())
    returns = episode_returns(adapted, tasks, EvaluationConfig(episodes_per_task=4, seed=0))
    assert done.after.returns == returns
    assert done.report is not None
    assert_loss(done.report, done.task, "hybrid")
    assert done.command == (
        "ssm-metarl adapt --model cartpole --task "
        """'{"force": 10.0, "length": 0.5, "mass": 0.1, "gravity": 9.8, "sign": 1.0}' """
        "--mode hybrid --support-steps 20 --num-adapt-steps 1"
    )


def test_a_second_press_equals_one_with_twice_the_data_and_steps(server: Server) -> None:
    twice, once = server.visitors.arrive(""), server.visitors.arrive("")
    press(server, twice)
    second = press(server, twice)
    one = press(server, once, support_steps=40, num_adapt_steps=2)
    assert (second.presses, one.presses) == (2, 1)
    assert (
        (second.asked, one.asked) == (Amount(20, 1), Amount(40, 2)) == (Amount(20, 1), second.total)
    )
    assert second.report == one.report and second.report.env_steps == 40
    assert_same(second.after, one.after)


def test_another_plant_or_mode_begins_again(server: Server, visitor: Visitor) -> None:
    press(server, visitor)
    assert press(server, visitor, mode="hybrid").presses == 1
    heavier = Plant({**FLIPPED.values, "mass": 0.3}, True)
    assert press(server, visitor, heavier, mode="hybrid").presses == 1
    assert press(server, visitor, heavier, mode="hybrid").presses == 2
    adapting.start_over(visitor)
    assert press(server, visitor, heavier, mode="hybrid").presses == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("support_steps", 4), ("support_steps", 201), ("support_steps", "20"),
        ("support_steps", None), ("support_steps", True), ("num_adapt_steps", 0),
        ("num_adapt_steps", math.nan), ("num_adapt_steps", math.inf), ("mode", "magic"),
        ("mode", None),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_named_and_nothing_is_lost(
    server: Server, visitor: Visitor, field: str, value: object
) -> None:
    done = press(server, visitor)
    with pytest.raises(FieldError, match=f"{field}: expected") as refusal:
        press(server, visitor, **{field: value})
    assert refusal.value.name == field
    assert visitor.adaptation is done


@pytest.mark.parametrize(
    "values", [{"force": 500}, {"length": "long"}, {"mass": None}, {"gravity": -9.8}]
)
def test_a_plant_beyond_its_sliders_is_refused(
    server: Server, visitor: Visitor, values: dict[str, Any]
) -> None:
    (name,) = values
    with pytest.raises(FieldError, match=f"{name}: expected"):
        press(server, visitor, Plant({**FLIPPED.values, **values}, True))


def test_every_field_that_is_wrong_is_named() -> None:
    plant = Plant({**FLIPPED.values, "force": 0.5, "mass": "x"}, False)  # type: ignore[dict-item]
    found = problems(plant, CARTPOLE, 99)
    assert found == {
        "force": "expected 1 to 20, received 0.5",
        "mass": "expected a number from 0.01 to 1",
        "num_adapt_steps": "expected 1 to 5, received 99",
    }
    assert problems(FLIPPED, CARTPOLE) == {}


def test_a_plant_that_is_being_set_is_kept_if_it_is_one(server: Server, visitor: Visitor) -> None:
    adapting.keep(visitor, FLIPPED, CARTPOLE)
    adapting.keep(visitor, Plant({**FLIPPED.values, "force": 500}, True), CARTPOLE)
    assert visitor.plant == FLIPPED


def test_presses_end_somewhere(server: Server, visitor: Visitor) -> None:
    for _ in range(5):
        press(server, visitor, support_steps=200)
    with pytest.raises(FieldError, match="support_steps: at most 1000"):
        press(server, visitor, support_steps=200)


def test_surprises_are_the_familys_draws_and_every_visitors_own(server: Server) -> None:
    one, other = server.visitors.arrive(""), server.visitors.arrive("")
    one.seed, other.seed = 1, 2
    expected_sign = -1.0 if server.models.expects_disturbed(one) else 1.0
    drawn = [adapting.surprise(one, server.models, "ood") for _ in range(3)]
    expected = CARTPOLE.sample("ood", 3, seed=1, stream="app").as_dicts()
    for plant, task in zip(drawn, expected, strict=True):
        assert plant.disturbed == (task["sign"] != expected_sign)
        for name, value in plant.values.items():
            assert value == pytest.approx(task[name], abs=0.051)
            parameter = next(p for p in CARTPOLE.parameters if p.name == name)
            assert any(a - 0.06 <= value <= b + 0.06 for a, b in parameter.ood.intervals)
    assert adapting.surprise(other, server.models, "ood") not in drawn
    assert adapting.surprise(one, server.models, "id") != drawn[0]


def test_plain_operations_and_kernels_adapt_alike(server: Server) -> None:
    plain, compiled = server.visitors.arrive(""), server.visitors.arrive("")
    server.kernels.compiling, compiled_already = None, server.kernels.compiling
    first = press(server, plain)
    server.kernels.compiling = compiled_already
    second = press(server, compiled)
    assert first.report is not None and second.report is not None
    for done in (first, second):
        assert_loss(done.report, done.task, "standard")
    assert first.after.returns == second.after.returns


def test_the_page_says_what_happened(server: Server, visitor: Visitor) -> None:
    done = press(server, visitor, num_adapt_steps=5)
    report = done.report
    assert report is not None
    html = result_markup.result(done, CARTPOLE)
    before, after = (sum(side.returns) / 4 for side in (done.before, done.after))
    assert f'data-return="before">{before:.0f}<' in html
    assert f'data-return="after">{after:.0f}<' in html
    assert f"{report.num_steps} of 5 kept" in html
    assert (report.rolled_back is not None) == ("was undone" in html)
    assert f"{report.loss_before:.3f} → {report.loss_after:.3f}" in html
    film = filmed(done)
    looks, (first, *_) = film["sketch"]["looks"], film["before"]["episodes"][0]
    assert [kind for kind, *_ in looks[0]] == ["line", "box", "line", "disc"] and len(looks) == 1
    assert film["sketch"]["step_seconds"] == 0.02 and len(film["after"]["episodes"]) == 4
    x, _, theta, _ = done.before.states[0][0]  # upright but for 0.05 rad; the pole is 1 m long
    tip = [x + math.sin(theta), math.cos(theta)]
    numbers = [0, x - 0.25, -0.15, x + 0.25, 0.15, x, 0, *tip, x, 0]
    assert first == pytest.approx(numbers, abs=6e-4)


def remember(server: Server, visitor: Visitor, *, gradient: bool) -> OpenedModel:
    """Give the visitor an untrained model that remembers."""
    small = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    policy = build_policy(architecture(small, CARTPOLE), seed=0, inner_lr=0.05)
    with torch.no_grad():
        policy.heads.action.weight.mul_(1000)
    opened = replace(
        open_model("cartpole"), policy=policy, trained=MetaTrained(gradient=gradient), buffer=None
    )
    server.models._opened[visitor.model] = opened
    return opened


def test_a_model_that_remembers_runs_on_with_every_press(server: Server, visitor: Visitor) -> None:
    opened = remember(server, visitor, gradient=False)
    assert server.models.modes(visitor) == ["none", "in_context"]
    first, second = (press(server, visitor, mode="in_context") for _ in range(2))
    assert (first.presses, second.presses) == (1, 2)
    tasks = opened.family.task(first.task)
    episodes = trial_episodes(
        opened.policy, opened.policy.meta_params(), tasks, num_trials=4, num_episodes=3, seed=0
    )
    returns = [e.episode_returns()[0].tolist() for e in episodes]
    assert [first.before.returns, first.after.returns, second.after.returns] == returns
    assert_same(second.before, first.before)
    assert returns[0] != returns[1]
    assert_same(press(server, visitor, mode="none").before, first.before)
    assert first.report is None and first.command == ""
    html = result_markup.result(second, CARTPOLE)
    assert "episode 3 of a trial" in html and "they stay as they are" in html
    with pytest.raises(FieldError, match="mode: expected one of none, in_context"):
        press(server, visitor, mode="standard")


def test_both_is_a_step_and_then_a_trial(server: Server, visitor: Visitor) -> None:
    opened = remember(server, visitor, gradient=True)
    assert server.models.modes(visitor) == ["none", "standard", "in_context", "both"]
    done = press(server, visitor, mode="both")
    alone = press(server, visitor, mode="standard")
    assert done.report == alone.report and done.report is not None and done.command == ""
    tasks = opened.family.task(done.task)
    support = collect_support(opened.policy, tasks, 20, "random", seed=0)
    adapted = opened.adapt(support, "standard", opened.trained.adaptation()).meta_params()
    *_, last = trial_episodes(opened.policy, adapted, tasks, num_trials=4, num_episodes=2, seed=0)
    assert done.after.returns == last.episode_returns()[0].tolist()
    html = result_markup.result(done, CARTPOLE)
    assert "episode 2 of a trial" in html and "prediction error on the data" in html


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_familys_plants_are_set_by_their_fields(family: TaskFamily) -> None:
    """A range has a slider, a category a list of its values, whatever the disturbance sets none."""
    plant = plants.default_plant(family)
    assert plant.values.keys() == {p.name for p in family.parameters} - {"sign"}
    assert problems(plant, family) == {}
    assert plant.tasks(family, False).as_dicts() == [family.default_task]
    flipped = {**family.default_task, "sign": -1.0}
    assert plant.tasks(family, True).as_dicts() == [flipped]
    assert replace(plant, disturbed=True).tasks(family, False).as_dicts() == [flipped]
    for parameter in plants.fields(family):
        for wrong in ("x", math.nan, True, 1e9):
            spoiled = replace(plant, values={**plant.values, parameter.name: wrong})
            assert list(problems(spoiled, family)) == [parameter.name]
        if parameter.is_category:
            field = plants.field_of(parameter)
            assert isinstance(field, OneOf) and parameter.default in field.values
            for value in field.values:
                chosen = replace(plant, values={**plant.values, parameter.name: value})
                assert chosen.tasks(family, False).as_dicts()[0][parameter.name] == value
    nothing = Plant({}, False)
    assert problems(nothing, family).keys() == {p.name for p in plants.fields(family)}


def test_a_surprise_wires_the_sensors_anew(server: Server, visitor: Visitor) -> None:
    opened = open_model("cartpole", "cartpole_scrambled")
    server.models._opened[visitor.model] = opened
    expected = CARTPOLE_SCRAMBLED.sample("id", 1, seed=visitor.seed, stream="app").as_dicts()[0]
    plant = adapting.surprise(visitor, server.models, "id")
    for parameter in plants.fields(CARTPOLE_SCRAMBLED):
        if parameter.is_category:
            assert plant.values[parameter.name] == expected[parameter.name]
    tasks = plant.tasks(CARTPOLE_SCRAMBLED, server.models.expects_disturbed(visitor))
    assert tasks.as_dicts()[0]["sign"] == expected["sign"]
    done = press(server, visitor, plant)
    assert done.report is not None and done.task == tasks.as_dicts()[0]
    assert len(filmed(done)["before"]["episodes"]) == 4, "drawn as it is, not as it is seen"


def test_a_pendulum_is_disturbed_adapted_to_and_drawn(server: Server, swinging: Visitor) -> None:
    disturbed = replace(plants.default_plant(PENDULUM), disturbed=True)
    done = press(server, swinging, disturbed)
    sign = 1.0 if server.models.expects_disturbed(swinging) else -1.0
    assert done.task == {**PENDULUM.default_task, "sign": sign}
    assert done.report is not None and (done.report.env_steps, done.seconds) == (20, 1.0)
    assert done.before.failed == done.after.failed == [False] * 4, "its end is no failure"
    assert [len(states) for states in done.before.states] == [201] * 4
    for side in (done.before, done.after):
        for total, states in zip(side.returns, side.states, strict=True):
            angles = [math.remainder(theta, 2 * math.pi) ** 2 for theta, _ in states[:-1]]
            speeds = [speed**2 for _, speed in states[:-1]]
            cost = sum(angles) + 0.1 * sum(speeds)  # and at most 0.8 for the torque
            assert -cost - 0.81 <= total <= -cost + 0.01, "a state before every step"
    film = filmed(done)
    looks = [["line", "part", 0.12, ()], ["disc", "joint", 0.08, ()]]
    assert [list(look) for look in film["sketch"]["looks"][0]] == looks
    theta, _ = done.after.states[3][-1]
    assert film["after"]["episodes"][3][-1] == pytest.approx(
        [0, 0, 0, -math.sin(theta), math.cos(theta), 0, 0], abs=6e-4
    )
    assert film["sketch"]["extent"] == (-1.7, 1.7, -1.7, 1.7)
    assert len(json.dumps(film)) < 100_000
    mean = sum(done.after.returns) / 4
    html = result_markup.result(done, PENDULUM)
    assert f'data-return="after">{mean:.0f}<' in html and mean < 0
    assert "from -3255.6 to 0" in html and "1.0 s of the plant" in html
    least, most = PENDULUM.return_bounds or (0.0, 0.0)
    assert f"height:{100 * (done.before.returns[0] - least) / (most - least):.1f}%" in html


def test_a_plant_of_another_family_is_not_carried_over(server: Server, swinging: Visitor) -> None:
    swinging.plant = FLIPPED
    assert plants.current_plant(swinging.plant, CARTPOLE) == FLIPPED
    assert plants.current_plant(swinging.plant, PENDULUM) == plants.default_plant(PENDULUM)
    kept = adapting.surprise(swinging, server.models, "ood")
    assert kept == swinging.plant == plants.current_plant(swinging.plant, PENDULUM)
    default = plants.default_plant(CARTPOLE)
    assert plants.current_plant(swinging.plant, CARTPOLE) == default
    swinging.plant = replace(FLIPPED, values={**FLIPPED.values, "mass": 99.0})
    assert plants.current_plant(swinging.plant, CARTPOLE) == default, "and none that cannot be set"


def test_a_family_without_sketch_disturbance_or_time_has_its_numbers(
    server: Server, visitor: Visitor
) -> None:
    bare = replace(CARTPOLE, sketch=None, disturbances={}, time_step=None, return_bounds=None)
    opened = replace(open_model("cartpole"), family=bare)
    server.models._opened[visitor.model] = opened
    plant = plants.default_plant(bare)
    assert plant.values == bare.default_task, "with no disturbance every parameter has its field"
    done = press(server, visitor, plant)
    assert len(done.after.returns) == 4 and filmed(done) == {} and done.seconds is None
    html = result_markup.result(done, bare)
    assert f"mean return, of {max(*done.before.returns, *done.after.returns):g}" in html
    assert "20 environment steps; no reward" in html


def test_a_gymnasium_family_is_drawn_from_what_is_observed(
    server: Server, visitor: Visitor
) -> None:
    poles = {"length": Uniform(0.4, 0.6)}
    family = TaskFamily.from_gymnasium("CartPole-v1", poles, sketch=CARTPOLE.sketch)
    server.models._opened[visitor.model] = replace(open_model("cartpole"), family=family)
    done = press(server, visitor, plants.default_plant(family))
    for side in (done.before, done.after):
        assert [len(states) - 1 for states in side.states] == side.returns
        assert side.failed == [total < 500 for total in side.returns]
    x, _, theta, _ = done.before.states[0][-1]
    last = filmed(done)["before"]["episodes"][0][-1]
    assert last[7:9] == pytest.approx([x + math.sin(theta), math.cos(theta)], abs=6e-4)


def test_a_look_is_sent_once_and_what_moves_in_every_frame() -> None:
    def draw(state: Sequence[float], parameters: Mapping[str, float]) -> list[Shape]:
        floor = Shape("line", ((0.0, 0.0), (parameters["mass"], 0.0)), 1.0, "ground")
        flame = [Shape("disc", ((state[0], 1.23456),), 2.0, "force")] if state[0] > 5 else []
        return [floor, *flame]

    family = replace(CARTPOLE, sketch=Sketch((0.0, 20.0, 0.0, 20.0), draw), time_step=None)
    sketch, frames = drawing(family, {"mass": 7.0}, [[(1.0,), (6.0,)], [(8.1234,)]])
    ground, flame = ("line", "ground", 1.0, (0.0, 0.0, 7.0, 0.0)), ("disc", "force", 2.0, ())
    assert sketch["looks"] == [(ground,), (ground, flame)]
    assert frames == [[[0], [1, 6.0, 1.23]], [[1, 8.12, 1.23]]]
    assert sketch["step_seconds"] == 0.02 and sketch["extent"] == (0.0, 20.0, 0.0, 20.0)
