"""Observations of any space with numbers in it become one row, with names."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.tasks.gymnasium_spaces import flat, names_of, widest
from ssm_metarl.tasks.task_family import TaskFamily, Uniform


class Shown(gymnasium.Env):
    """Shows the same thing in a space that is given."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: Any, shown: Any) -> None:
        self.observation_space, self.shown, self.gain = space, shown, 1.0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.shown, {}

    def step(self, action: Any) -> Any:
        return self.shown, 0.0, False, False, {}


ARM = spaces.Dict(
    position=spaces.Box(-1, 1, (2,)), contact=spaces.Discrete(3), depth=spaces.Box(0, 1, ())
)
SHOWN = {
    "box": (spaces.Box(-9, 9, (2, 2)), np.arange(4.0).reshape(2, 2), [0, 1, 2, 3], ()),
    "choice": (spaces.Discrete(4, start=1), 3, [0, 0, 1, 0], ()),
    "choices": (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0], ()),
    "switches": (spaces.MultiBinary(3), np.array([1, 0, 1]), [1, 0, 1], ()),
    "dictionary": (
        ARM,
        {"position": np.array([0.5, -0.5]), "contact": 2, "depth": np.array(0.25)},
        [0.5, -0.5, 0, 0, 1, 0.25],
        ("position_0", "position_1", "contact_0", "contact_1", "contact_2", "depth"),
    ),
    "tuple": (
        spaces.Tuple((spaces.Box(-9, 9, (1,)), spaces.Dict(a=spaces.Box(-9, 9, (2,))))),
        (np.array([7.0]), {"a": np.array([8.0, 9.0])}),
        [7, 8, 9],
        ("part_0", "part_1_a_0", "part_1_a_1"),
    ),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_every_space_of_numbers_is_one_row(kind: str) -> None:
    space, shown, row, names = SHOWN[kind]
    assert names_of(space) == names
    np.testing.assert_array_equal(flat(space, shown), row)
    family = TaskFamily.from_gymnasium(
        Shown, {}, kwargs={"space": space, "shown": shown}, max_episode_steps=5
    )
    assert family.spaces == (len(row), Discrete(2))
    assert family.obs_names == names
    worlds = make_worlds(family.task(), 2, seed=0, purpose="test")
    expected = torch.tensor(row, dtype=torch.float32).expand(1, 2, -1)
    assert torch.equal(worlds.reset(), expected)
    assert torch.equal(worlds.step(torch.zeros(1, 2, dtype=torch.int64)).obs, expected)
    worlds.close()
    env = Environment(family)
    seen, _ = env.reset()
    np.testing.assert_array_equal(np.ravel(seen), row)
    env.close()


def test_names_that_meet_are_left_out_and_given_ones_count() -> None:
    clash = spaces.Dict({"a": spaces.Box(0, 1, (2,)), "a_0": spaces.Box(0, 1, (1,))})
    shown = {"a": np.zeros(2), "a_0": np.zeros(1)}
    options: dict[str, Any] = {"kwargs": {"space": clash, "shown": shown}, "max_episode_steps": 5}
    assert TaskFamily.from_gymnasium(Shown, {}, **options).obs_names == ()
    given = TaskFamily.from_gymnasium(Shown, {}, obs_names=("x", "y", "z"), **options)
    assert given.obs_names == ("x", "y", "z")
    with pytest.raises(ValueError, match="obs_names of 2, observations of its environment of 3"):
        TaskFamily.from_gymnasium(Shown, {}, obs_names=("x", "y"), **options)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Dict(a=spaces.Box(0, 1), b=spaces.Sequence(spaces.Discrete(2))),
        spaces.Graph(spaces.Box(0, 1), None),
        spaces.Tuple(()),
    ],
)
def test_what_no_policy_sees_is_refused_as_it_is_declared(space: Any) -> None:
    options: dict[str, Any] = {"kwargs": {"space": space, "shown": 0}, "max_episode_steps": 5}
    with pytest.raises(ValueError, match="observation space of Shown: expected at least one") as e:
        TaskFamily.from_gymnasium(Shown, {}, **options)
    assert "\n" not in str(e.value)


def test_the_widest_bounds_and_sizes_that_differ() -> None:
    one, other = Continuous(2, (-1.0, -2.0), 1.0), Continuous(2, -1.5, (0.5, 3.0))
    assert widest([("", (3, one)), ("x", (3, other))]) == (
        3,
        Continuous(2, (-1.5, -2.0), (1.0, 3.0)),
    )
    for wrong in ((4, one), (3, Discrete(2)), (3, Continuous(1))):
        with pytest.raises(ValueError, match="x: expected observations of size 3 and Continuous"):
            widest([("", (3, one)), ("x", wrong)])  # type: ignore[list-item]

    class Growing(Shown):
        def __init__(self) -> None:
            super().__init__(spaces.Box(0, 1, (2,)), np.zeros(2))
            self.size = 2.0
            self.observation_space = spaces.Box(0, 1, (int(self.size),))

    with pytest.raises(ValueError, match="'size' of Growing, 4: expected observations of size 2"):
        TaskFamily.from_gymnasium(Growing, {"size": Uniform(2, 4.000001)}, max_episode_steps=5)


def test_choices_are_numbers_that_an_environment_may_look_up() -> None:
    family = TaskFamily.from_gymnasium("FrozenLake-v1", {})
    assert family.spaces == (16, Discrete(4))
    worlds = make_worlds(family.task(), 2, seed=0, purpose="test")
    start = worlds.reset()
    step = worlds.step(torch.tensor([[1, 2]]))
    assert start.sum() == step.obs.sum() == 2 and start[..., 0].all()
    worlds.close()
