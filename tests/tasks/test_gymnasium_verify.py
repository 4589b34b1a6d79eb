"""What `TaskFamily.verify` finds in Gymnasium environments, and what it says of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.tasks.cartpole import CARTPOLE, CartPoleDynamics
from ssm_metarl.tasks.task_family import Choice, TaskFamily, Uniform

ENV_ID = "SsmMetarlSled-v0"


class Sled(gymnasium.Env):
    """A sled on a line, with attributes of every kind."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3, start=-1)

    def __init__(self, friction: float = 0.1, load: float = 1.0) -> None:
        self.friction, self.load = friction, load
        self._inertia = 1.0 + load  # cached: a load that is set later does half of what it should
        self.wall, self.price, self.noise = 1e6, 1.0, 0.0
        self.colour, self.repeats, self.sticky = 3.0, 1, False

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.1, 0.1, 2)
        return self.state.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        for _ in range(self.repeats):  # a number that must be whole
            place, speed = self.state
            if not (self.sticky and abs(speed) < 0.1 and action == 0):
                speed += 0.1 * (action - self.friction * self.load * speed) / self._inertia
            self.state = np.array([place + 0.1 * speed, speed])
        seen = self.state + (np.random.default_rng().normal(0, 1e-3, 2) if self.noise else 0.0)
        return seen, -self.price * abs(place), bool(abs(place) > self.wall), False, {}


@pytest.fixture(autouse=True)
def sled() -> Iterator[None]:
    gymnasium.register(ENV_ID, entry_point=Sled, max_episode_steps=200)
    yield
    del gymnasium.registry[ENV_ID]


def family(**parameters: Uniform | Choice) -> TaskFamily:
    return TaskFamily.from_gymnasium(ENV_ID, parameters)


def test_what_changes_the_motion_passes_without_a_word() -> None:
    family(friction=Uniform(0.1, 0.5)).verify()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"colour": Uniform(1, 2)}, r"'colour' of Ssm.* from 1 to 2 \(inert: no step reads it"),
        ({"wall": Uniform(1e4, 1e5)}, r"'wall' of .* \(never reached: steps read it, .* a limit"),
        (
            {"friction": Uniform(0.1, 0.5), "noise": Choice((1.0, 2.0))},
            "'friction' of .*: expected the same trajectory .* SsmMetarlSled-v0 has randomness",
        ),
    ],
)
def test_what_is_refused_says_what_was_found(
    parameters: dict[str, Uniform | Choice], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        family(**parameters).verify()
    assert "\n" not in str(error.value)


def test_a_change_of_rewards_alone_is_passed_with_a_word() -> None:
    with pytest.warns(UserWarning, match=r"'price' of SsmMetarlSled-v0: changes rewards alone"):
        family(price=Uniform(1, 2)).verify()


def test_a_value_that_the_constructor_takes_otherwise_is_passed_with_a_word() -> None:
    with pytest.warns(UserWarning, match=r"'load' of .*: half-cached: set as an .* constructor"):
        family(load=Uniform(1.5, 3)).verify()


@pytest.mark.parametrize(
    ("env_id", "name", "values"),
    [
        ("MountainCar-v0", "goal_position", Uniform(0.4, 0.6)),
        ("MountainCarContinuous-v0", "max_speed", Uniform(0.05, 0.1)),
        ("CartPole-v1", "x_threshold", Uniform(1, 4)),
        ("Pendulum-v1", "max_speed", Uniform(9, 20)),
    ],
)
def test_limits_far_from_the_initial_states_are_met(
    env_id: str, name: str, values: Uniform
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaskFamily.from_gymnasium(env_id, {name: values}).verify()


def test_a_limit_of_the_actions_is_built_in_and_the_action_space_follows() -> None:
    limit = TaskFamily.from_gymnasium("Pendulum-v1", {"max_torque": Uniform(2.5, 6)})
    with pytest.warns(UserWarning, match=r"'max_torque' of .*: half-cached: .*\(action_space\)"):
        limit.verify()


class Unsteady(CartPoleDynamics):
    """Batched physics with randomness of its own."""

    def step(self, state: Any, action: Any, parameters: Any) -> Any:
        after, reward, terminated = super().step(state, action, parameters)
        rng = np.random.default_rng()
        return after + torch.from_numpy(rng.normal(0, 1e-3, after.shape)), reward, terminated


def test_batched_physics_must_repeat_themselves_too() -> None:
    with pytest.raises(ValueError, match="'force' of cartpole: expected the same trajectory"):
        replace(CARTPOLE, dynamics=Unsteady()).verify()


def test_whole_numbers_and_switches_stay_what_they_are() -> None:
    declared = family(repeats=Choice((1, 3)), sticky=Choice((False, True)), wall=Uniform(5, 9))
    declared.verify()
    assert declared.default_task == {"repeats": 1, "sticky": False, "wall": 1e6}
    for split in ("train", "ood"):
        for values in declared.sample(split, 6, seed=0).as_dicts():  # type: ignore[arg-type]
            assert [type(v) for v in values.values()] == [int, bool, float]
    worlds = make_worlds(declared.sample("id", 4, seed=0), 1, seed=0, purpose="test")
    worlds.reset()
    worlds.step(torch.zeros(4, 1, dtype=torch.int64))
    worlds.close()
    env = Environment(declared, task={"repeats": 3, "sticky": True})
    assert (env.unwrapped.repeats, env.unwrapped.sticky) == (3, True)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="'wall': expected a number, received True"):
        declared.task({"wall": True})
    with pytest.raises(ValueError, match=r"'sticky' of .* Choice\(\(False, True\)\) for a switch"):
        family(sticky=Uniform(0, 1))
