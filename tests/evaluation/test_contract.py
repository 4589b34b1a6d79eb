"""The contract of task families: the package's own keep it, and each planted fault is named."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from ssm_metarl.action_space import Continuous
from ssm_metarl.evaluation.contract import Finding, check_contract
from ssm_metarl.tasks.registry import FAMILIES, TOLD
from ssm_metarl.tasks.sketch import Shape, Sketch
from ssm_metarl.tasks.task_family import Choice, TaskFamily, TaskParameter, Tasks, Uniform


class SledDynamics:
    """A sled that is pushed along a line: state and observation (place, speed)."""

    obs_dim, max_episode_steps = 2, 60
    action_space = Continuous(1, -1.0, 1.0)
    push_scale, start_spread = (0.0, 0.1), (0.5, 0.5)

    def initial_state(self, uniform: Tensor) -> Tensor:
        return 2 * uniform - 1

    def observe(self, state: Tensor, parameters: Any) -> Tensor:
        return state

    def pushed(self, action: Tensor) -> Tensor:
        return action[..., 0].clamp(-1, 1)

    def step(self, state: Tensor, action: Tensor, parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
        place, speed = state.unbind(-1)
        push = parameters["sign"] * parameters["force"] * self.pushed(action)
        speed = speed + 0.1 * push.to(speed)
        after = torch.stack((place + 0.1 * speed, speed), dim=-1)
        return after, -place.square(), torch.zeros_like(place, dtype=torch.bool)


class Unclipped(SledDynamics):
    def pushed(self, action: Tensor) -> Tensor:
        return action[..., 0]


class Noisy(SledDynamics):
    def observe(self, state: Tensor, parameters: Any) -> Tensor:
        return state + 1e-3 * torch.from_numpy(np.random.default_rng().random(state.shape)).to(
            state
        )


class Breaking(SledDynamics):
    def observe(self, state: Tensor, parameters: Any) -> Tensor:
        return torch.where(state.abs() > 1.5, torch.nan, state)


class Wide(SledDynamics):
    def observe(self, state: Tensor, parameters: Any) -> Tensor:
        return torch.cat([state, state[..., :1]], dim=-1)


class Endless(SledDynamics):
    max_episode_steps = 10**9


class Late(SledDynamics):
    """The place is shown a step late: an action shows in the speed alone at first."""

    def step(self, state: Tensor, action: Tensor, parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
        after, reward, ended = super().step(state[..., :2], action, parameters)
        return torch.cat([after, state[..., :2]], dim=-1), reward, ended

    push_scale, start_spread = (0.0,) * 4, (0.0,) * 4

    def observe(self, state: Tensor, parameters: Any) -> Tensor:
        return state[..., 2:]


class Priced(SledDynamics):
    def step(self, state: Tensor, action: Tensor, parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
        after, reward, ended = super().step(state, action, parameters)
        return after, reward * parameters["price"], ended


class Guessing(SledDynamics):
    """A game: an action changes nothing but what it is paid."""

    def step(self, state: Tensor, action: Tensor, parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
        after, _, ended = super().step(state, torch.zeros_like(action), parameters)
        paid = parameters["sign"] * parameters["force"] * self.pushed(action)
        return after, paid, ended


class Centring:
    """An expert that pushes towards the middle, or away from it."""

    def __init__(self, tasks: Tasks, way: float = 1.0) -> None:
        self._sign = way * tasks.values["sign"][:, None]

    def __call__(self, obs: Tensor, action: Tensor, episode_start: Tensor) -> Tensor:
        return (-self._sign.to(obs) * (2 * obs[..., 0] + 2 * obs[..., 1])).clamp(-1, 1)[..., None]


def parameter(name: str, values: Uniform | Choice) -> TaskParameter:
    ood = values if isinstance(values, Choice) else Uniform(values.high, 2 * values.high)
    return TaskParameter(name=name, unit="", default=values.at(0.5), id=values, ood=ood)


FORCE, SIGN = parameter("force", Uniform(0.5, 2)), parameter("sign", Choice((-1.0, 1.0)))
SLED = TaskFamily(
    name="sled",
    parameters=(FORCE, SIGN),
    dynamics=SledDynamics(),
    obs_names=("place", "speed"),
    obs_scale=(1.0, 1.0),
    reflection=(-1.0, -1.0),
    disturbances={"flip": lambda tasks: tasks.changed(sign=-tasks.values["sign"])},
    experts={"centring": Centring},
    sketch=Sketch(
        (-2, 2, -1, 1), lambda state, p: [Shape("disc", ((state[0], 0.0),), 0.1, "body")]
    ),
)


class Cached(gymnasium.Env):
    """A load that is derived from once, and a step that may go wrong."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    fault = ""

    def __init__(self) -> None:
        if self.fault == "warns":
            warnings.warn("low precision", stacklevel=2)
        self.load = 1.0
        self.inertia = 1.0 + self.load

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform())
        return np.full(1, self.place, np.float32), {}

    def step(self, action: Any) -> Any:
        if self.fault == "raises":
            raise ZeroDivisionError("division\nby zero")
        self.place += (2 * action - 1) / self.inertia
        shape, shown = (3 if self.fault == "shape" else 1), self.place
        if self.fault == "nan":
            shown = np.nan
        return np.full(shape, shown, np.float32), 0.0, False, False, {}


def gymnasium_family(fault: str = "") -> TaskFamily:
    kind = type("Cached", (Cached,), {"fault": fault})
    return TaskFamily.from_gymnasium(kind, {"load": Uniform(0.5, 2)}, max_episode_steps=20)


def verdicts(findings: list[Finding], verdict: str) -> dict[str, str]:
    return {f.check: f.message for f in findings if f.verdict == verdict}


@pytest.mark.parametrize("family", [*FAMILIES.values(), *TOLD.values(), SLED], ids=lambda f: f.name)
def test_a_sound_family_keeps_it(family: TaskFamily) -> None:
    findings = check_contract(family)
    assert verdicts(findings, "wrong") == verdicts(findings, "note") == {}
    checked = verdicts(findings, "ok")
    assert checked.keys() >= {"steps", "repeats itself", "categories", "dead time", "action codes"}
    assert checked.keys() >= {f"parameter {p.name}" for p in family.parameters}
    assert checked.keys() >= {"reflection", "experts", "observation scale"} or family.told_dims


def lazily(**changes: Any) -> Any:
    return lambda: replace(SLED, **changes)


FAULTS: dict[str, tuple[Any, str, str]] = {
    "inert": (
        lazily(parameters=(FORCE, SIGN, parameter("colour", Uniform(1, 2)))),
        "parameter colour",
        "'colour' of sled: expected a change",
    ),
    "wrong reflection": (lazily(reflection=(-1.0, 1.0)), "reflection", "something else in speed"),
    "another wrong reflection": (lazily(reflection=(1.0, -1.0)), "reflection", "else in place"),
    "unclipped": (lazily(dynamics=Unclipped()), "action codes", "does not clip"),
    "a category that drifts": (
        lazily(disturbances={"wear": lambda tasks: tasks.changed(sign=0.5 * tasks.values["sign"])}),
        "categories",
        "after the disturbance 'wear': task parameter 'sign': expected one of",
    ),
    "a default that is none": (
        lazily(parameters=(FORCE, replace(SIGN, default=0.0))),
        "categories",
        "default: task parameter 'sign': expected one of",
    ),
    "dead time that is not there": (lazily(dead_time=2), "dead time", "received an effect after 0"),
    "dead time that is longer": (
        lazily(dynamics=Late(), obs_scale=None, sketch=None),
        "dead time",
        "expected 0 steps at most, .* received an effect after 1",
    ),
    "an expert worse than random": (
        lazily(experts={"fool": lambda tasks: Centring(tasks, -1.0)}),
        "experts",
        "'fool': expected more than random actions, received -",
    ),
    "randomness of its own": (lazily(dynamics=Noisy()), "repeats itself", "randomness of its own"),
    "never ends": (lazily(dynamics=Endless()), "steps", "it never ends"),
    "NaN": (lazily(dynamics=Breaking()), "steps", "obs: expected finite numbers, received nan"),
    "wrong shape": (lazily(dynamics=Wide()), "steps", r"obs: expected shape .*\(4, 2, 3"),
    "raises": (lambda: gymnasium_family("raises"), "steps", "step: .*ZeroDivision.*by zero"),
    "Gymnasium's NaN": (lambda: gymnasium_family("nan"), "steps", "Cached: .* received nan"),
    "Gymnasium's shape": (lambda: gymnasium_family("shape"), "steps", r"received shape \(3,\)"),
    "a scale of another unit": (lazily(obs_scale=(1e3, 1.0)), "observation scale", "brings place"),
    "returns out of bounds": (lazily(return_bounds=(-1.0, 0.0)), "steps", "return_bounds:"),
    "a sketch of nothing": (
        lazily(sketch=Sketch((0, 1, 0, 1), lambda state, p: [])),
        "sketch",
        "expected shapes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault: str) -> None:
    make, check, message = FAULTS[fault]
    findings = check_contract(make())
    wrong = verdicts(findings, "wrong")
    assert check in wrong
    assert len(wrong) == 1 or fault == "dead time that is longer"  # its mirror is late, too
    assert re.search(message, wrong[check]), wrong[check]
    assert all("\n" not in finding.message for finding in findings)


def test_a_half_cached_parameter_and_one_of_rewards_alone_are_named() -> None:
    noted = verdicts(check_contract(gymnasium_family()), "note")
    assert noted.keys() == {"parameter load"}
    assert "'load' of Cached: half-cached: " in noted["parameter load"]
    assert "(inertia)" in noted["parameter load"]
    priced = (FORCE, SIGN, parameter("price", Uniform(1, 2)))
    noted = verdicts(check_contract(replace(SLED, dynamics=Priced(), parameters=priced)), "note")
    assert noted.keys() == {"parameter price"}
    assert "changes rewards alone" in noted["parameter price"]


@pytest.mark.filterwarnings("ignore:low precision")
def test_what_an_environment_warns_of_itself_is_no_note_about_a_parameter() -> None:
    noted = verdicts(check_contract(gymnasium_family("warns")), "note")
    assert noted == verdicts(check_contract(gymnasium_family()), "note")
    assert noted.keys() == {"parameter load"} and "precision" not in noted["parameter load"]


def test_of_a_game_whose_actions_are_only_paid_for_it_is_said_and_no_dead_time_expected() -> None:
    findings = check_contract(replace(SLED, dynamics=Guessing(), reflection=(), experts={}))
    found = next(finding for finding in findings if finding.check == "dead time")
    assert found.verdict == "unchecked" and "change rewards alone" in found.message
    assert verdicts(findings, "wrong") == {}


def test_a_gymnasium_reflection_is_checked_where_the_environment_keeps_its_state() -> None:
    def verdict(env_id: str, *reflection: float, **parameters: Uniform) -> Finding:
        family = TaskFamily.from_gymnasium(env_id, parameters, reflection=reflection)
        return next(f for f in check_contract(family) if f.check == "reflection")

    assert verdict("Pendulum-v1", 1.0, -1.0, -1.0, g=Uniform(5, 15)).verdict == "ok"
    assert verdict("CartPole-v1", -1.0, -1.0, -1.0, -1.0).verdict == "ok"
    wrong = verdict("Pendulum-v1", -1.0, -1.0, -1.0)
    assert (wrong.verdict, wrong.message[-8:]) == ("wrong", "in obs_0")
    hill = verdict("MountainCarContinuous-v0", -1.0, -1.0)  # a hill on one side alone
    assert hill.verdict == "wrong"
    hidden = verdict("Acrobot-v1", *(1.0,) * 6)
    assert hidden.verdict == "wrong"
