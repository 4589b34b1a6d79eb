"""Parameters take effect while an environment is built, wherever they stand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from ssm_metarl.action_space import Continuous
from ssm_metarl.env_runner.worlds import fingerprint, make_worlds
from ssm_metarl.tasks.attribute_path import parse_path
from ssm_metarl.tasks.gymnasium_plant import GymnasiumPlant
from ssm_metarl.tasks.task_family import Choice, Setting, TaskFamily, Uniform


class Limits(NamedTuple):
    low: float
    high: float


STANDARD = Limits(-1.0, 1.0)


@dataclass(frozen=True)
class Frozen:
    drag: float = 0.1
    limits: Limits = STANDARD


@dataclass
class Model:
    body_mass: np.ndarray = field(default_factory=lambda: np.array([1.0, 2.0, 3.0]))
    params: Frozen = Frozen()
    named: dict[str, float] = field(default_factory=lambda: {"arm": 0.5})


SHARED = SimpleNamespace(stiffness=4.0)


class Machine(gymnasium.Env):
    """An environment that derives something from each of its parameters as it is built."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)
    length = 2.0  # of the class
    shared = SHARED

    def __init__(self, load: float = 1.0, label: str = "") -> None:
        self.label = label
        self.model: Any = None
        self.model = Model()
        self.springs = SHARED
        self.load = load
        self.inertia = 1.0 + self.load
        self.total = float(self.model.body_mass.sum())
        self.drag2 = self.model.params.drag * 2
        self.reach = self.model.params.limits.high - self.model.params.limits.low
        self.area = self.length**2
        self._gain, self.gains_set = 1.0, 0

    @property
    def gain(self) -> float:
        return self._gain

    @gain.setter
    def gain(self, value: float) -> None:
        self._gain = value
        self.gains_set += 1

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.full(1, self.inertia, np.float32), 0.0, False, False, {}


def built(places: dict[str, Any], values: dict[str, Any], make: Any = Machine) -> Machine:
    env = GymnasiumPlant(make, places=tuple(places.items())).build(values)
    assert isinstance(env.unwrapped, Machine)
    return env.unwrapped


def test_what_is_derived_from_an_attribute_follows() -> None:
    with closing(GymnasiumPlant("CartPole-v1").build({"masscart": 3.0})) as env:
        plant: Any = env.unwrapped
        assert (plant.masscart, plant.total_mass) == (3.0, pytest.approx(3.1))
    with closing(GymnasiumPlant("CartPole-v1").build({"masspole": 0.5, "length": 1.0})) as env:
        assert env.unwrapped.polemass_length == 0.5  # type: ignore[attr-defined]
    with closing(GymnasiumPlant("Pendulum-v1").build({"max_torque": 5.0})) as env:
        assert env.action_space.high.tolist() == [5.0]  # type: ignore[attr-defined]
    # and nothing stays behind in the class
    with closing(gymnasium.make("CartPole-v1")) as env:
        plant = env.unwrapped
        assert (plant.masscart, plant.total_mass) == (1.0, 1.1)
        assert not {"masscart", "masspole", "length"} & vars(type(plant)).keys()


@pytest.mark.parametrize("wrapped", [False, True])
def test_attributes_of_every_kind(wrapped: bool) -> None:
    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.OrderEnforcing(Machine())

    plant = built({}, {"load": 3.0, "length": 5.0, "gain": 7.0}, make if wrapped else Machine)
    assert (plant.load, plant.inertia) == (3.0, 4.0)
    assert (plant.length, plant.area, Machine.length) == (5.0, 25.0, 2.0)
    assert (plant.gain, plant.gains_set) == (7.0, 1)


def test_paths_into_objects_arrays_dictionaries_and_what_is_frozen() -> None:
    places = {
        "mass": "model.body_mass[1]",
        "last": "unwrapped.model.body_mass[-1]",
        "drag": "model.params.drag",
        "high": "model.params.limits.high",
        "low": "model.params.limits[0]",
        "arm": "model.named['arm']",
    }
    values = {"mass": 9.0, "last": 4.0, "drag": 0.3, "high": 2.5, "low": -3.0, "arm": 0.75}
    plant = built(places, values)
    assert plant.model.body_mass.tolist() == [1.0, 9.0, 4.0]
    assert plant.model.params == Frozen(0.3, Limits(-3.0, 2.5))
    assert plant.model.named == {"arm": 0.75}
    assert (plant.total, plant.drag2, plant.reach) == (14.0, 0.6, 5.5)  # they follow
    assert built({}, {}).model.params == Frozen()
    for path in ("", "a..b", "a[", "a[b]", "[1]", "a.1"):
        with pytest.raises(ValueError, match=r"expected an attribute or a path such as .*received"):
            parse_path(path)


def test_functions_and_factories_with_arguments() -> None:
    def heavier(env: Any, value: float) -> None:
        env.model.body_mass[:] = np.array([1.0, 2.0, 3.0]) * value

    family = TaskFamily.from_gymnasium(
        Machine,
        {"scale": Setting(heavier, Uniform(0.5, 2, unit="kg"), default=1.0)},
        kwargs={"load": 5.0, "label": "x"},
        max_episode_steps=10,
    )
    assert (family.name, family.gymnasium_id, family.default_task) == (
        "Machine",
        None,
        {"scale": 1.0},
    )
    assert family.parameters[0].unit == "kg"
    with closing(family.plant.build({"scale": 2.0})) as env:
        plant: Any = env.unwrapped
        assert plant.model.body_mass.tolist() == [2.0, 4.0, 6.0]
        assert (plant.inertia, plant.label) == (6.0, "x")
    other = TaskFamily.from_gymnasium(
        Machine, {"scale": Setting("load", Uniform(0.5, 2, unit="kg"), default=1.0)},
        max_episode_steps=10,
    )  # fmt: skip
    assert fingerprint(other) != fingerprint(family)


def test_a_wider_actuator_is_within_reach_and_a_weaker_one_clips() -> None:
    family = TaskFamily.from_gymnasium("Pendulum-v1", {"max_torque": Uniform(1, 6)})
    _, space = family.spaces
    assert isinstance(space, Continuous)
    assert space.bounds[0] == pytest.approx((-6.0, 6.0))
    tasks = family.sample("id", 2, seed=0)
    low, high = sorted(tasks.values["max_torque"].tolist())
    worlds = make_worlds(tasks, 1, seed=0, purpose="test")
    assert low < high < 6
    for i, world in enumerate(worlds._worlds):  # type: ignore[attr-defined]
        bound = tasks.values["max_torque"][i].item()
        assert world.native(np.array([60.0])) == pytest.approx([bound])
    worlds.close()


def declared(parameters: dict[str, Any], **options: Any) -> TaskFamily:
    return TaskFamily.from_gymnasium(Machine, parameters, max_episode_steps=9, **options)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"modle.body_mass[0]": Uniform(1, 2)}, r"of Machine \(such as model, .*have: modle"),
        ({"model.body_mas[0]": Uniform(1, 2)}, r"of Model \(such as body_mass.*: body_mas"),
        ({"model.body_mass[7]": Uniform(1, 2)}, "an attribute of ndarray .*: 7"),
        ({"model.body_mass": Uniform(1, 2)}, r"number, received array.*model.body_mass\[0\]"),
        ({"model.named['leg']": Uniform(1, 2)}, "of dict .such as arm"),
        ({"x": Setting(lambda env, value: None, Uniform(1, 2))}, "'x': expected Setting"),
        ({"springs.stiffness": Uniform(1, 2)}, "environment's own, .* all share"),
        ({"load": (1, 2)}, r"a Setting, received \(1, 2\)"),
        ({"x": Setting(lambda env, v: 1 / 0, Uniform(1, 2), default=1)}, "set to 1, received Zero"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_as_it_is_declared(parameters: dict[str, Any], message: str) -> None:
    try:
        with pytest.raises(ValueError, match=message) as error:
            declared(parameters)
    finally:
        SHARED.stiffness = 4.0
    assert "\n" not in str(error.value)


def test_a_class_s_own_object_is_copied() -> None:
    assert built({}, {}).shared is SHARED
    family = declared({"shared.stiffness": Uniform(5, 6)})
    assert (family.default_task, SHARED.stiffness) == ({"shared.stiffness": 4.0}, 4.0)


def no_limit() -> gymnasium.Env[Any, Any]:
    return Machine()


def limited() -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TimeLimit(Machine(), 30)


def broken() -> gymnasium.Env[Any, Any]:
    raise AssertionError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_limit, "max_episode_steps: expected a number for no_limit, which has no time limit"),
        (broken, "environment broken: expected one that can be made, received AssertionError: no"),
        (dict, "environment dict: expected a gymnasium.Env, received dict"),
        (7, "environment: expected a Gymnasium id, or a callable .*, received 7"),
    ],
)
def test_factories_that_give_no_environment(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TaskFamily.from_gymnasium(make, {})
    assert "\n" not in str(error.value)


def test_a_factory_s_own_time_limit_counts() -> None:
    family = TaskFamily.from_gymnasium(limited, {"load": Uniform(1, 2)})
    worlds = make_worlds(family.task(), 1, seed=0, purpose="test")
    assert worlds.max_episode_steps == 30
    worlds.close()
    shorter = TaskFamily.from_gymnasium(limited, {}, max_episode_steps=4)
    worlds = make_worlds(shorter.task(), 1, seed=0, purpose="test")
    assert worlds.max_episode_steps == 4
    worlds.close()


def test_a_value_that_cannot_be_built_is_named() -> None:
    class Picky(Machine):
        def __init__(self) -> None:
            super().__init__()
            if self.load > 2:
                raise RuntimeError("too heavy\nto carry")

    with pytest.raises(ValueError, match=r"Picky.*RuntimeError: too heavy to carry"):
        TaskFamily.from_gymnasium(Picky, {"load": Uniform(1, 3)}, max_episode_steps=9)


def test_whole_numbers_stay_whole_at_the_end_of_a_path() -> None:
    class Counting(Machine):
        def __init__(self) -> None:
            super().__init__()
            self.repeat = SimpleNamespace(count=2, on=False)

    family = TaskFamily.from_gymnasium(
        Counting,
        {"repeat.count": Choice((1, 4)), "repeat.on": Choice((False, True))},
        max_episode_steps=9,
    )
    assert family.default_task == {"repeat.count": 2, "repeat.on": False}
    values = family.task({"repeat.count": 4, "repeat.on": True}).as_dicts()[0]
    assert [type(value) for value in values.values()] == [int, bool]


@pytest.fixture
def mujoco(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """MuJoCo's name, with a model of ours and a list of what its constants were computed from."""
    module, settled = ModuleType("mujoco"), list[Any]()
    module.MjModel = Model  # type: ignore[attr-defined]
    module.mj_setConst = lambda model, data: settled.append((model.body_mass.tolist(), data))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mujoco", module)
    yield settled


def test_mujoco_s_constants_follow_a_changed_model(mujoco: list[Any]) -> None:
    class Robot(Machine):
        def __init__(self) -> None:
            super().__init__()
            self.data = "state"

    built({"mass": "model.body_mass[0]"}, {"mass": 8.0}, Robot)
    assert mujoco == [([8.0, 2.0, 3.0], "state")]
