"""Gymnasium's environments as worlds, against plain loops over the environments themselves."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ssm_metarl import seeding
from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.env_runner.gymnasium_worlds import GymnasiumWorlds
from ssm_metarl.tasks.gymnasium_spaces import spaces_of
from ssm_metarl.tasks.task_family import TaskFamily, Uniform


def plain_env(env_id, seed, **attributes):
    env = gymnasium.make(env_id)
    for name, value in attributes.items():
        setattr(env.unwrapped, name, value)
    obs, _ = env.reset(seed=seed)
    return env, obs


def reset_seeds(indices, num_envs):
    """The documented stream: one generator per task, ``num_envs`` seeds a reset."""
    return [
        seeding.generator(5, "loop-reset", i).integers(2**31, size=num_envs).tolist()
        for i in indices
    ]


def test_pendulum_agrees_with_a_plain_loop():
    family = TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15)})
    tasks = family.sample("id", 3, seed=0, start=10)
    worlds = GymnasiumWorlds(tasks, 2, seed=5, purpose="loop")
    assert worlds.action_space == Continuous(1, -2.0, 2.0)
    obs = worlds.reset()
    envs = [
        plain_env("Pendulum-v1", seed, g=g)
        for g, seeds in zip(tasks.values["g"].tolist(), reset_seeds((10, 11, 12), 2), strict=True)
        for seed in seeds
    ]
    np.testing.assert_array_equal(obs.flatten(0, 1), [o for _, o in envs])
    actions = np.random.default_rng(0).uniform(-2, 2, (200, 3, 2, 1)).astype(np.float32)
    for t, action in enumerate(actions):
        step = worlds.step(torch.from_numpy(action))
        expected = [e.step(a) for (e, _), a in zip(envs, action.reshape(6, 1), strict=True)]
        np.testing.assert_array_equal(step.obs.flatten(0, 1), [e[0] for e in expected])
        rewards = np.array([e[1] for e in expected], np.float32)
        np.testing.assert_array_equal(step.reward.flatten(), rewards)
        assert not step.terminated.any()
        assert step.truncated.all() == (t == 199)
    worlds.close()


def test_cartpole_agrees_with_a_plain_loop_to_every_end():
    family = TaskFamily.from_gymnasium("CartPole-v1", {"force_mag": Uniform(5, 15)})
    tasks = family.sample("id", 2, seed=0)
    worlds = GymnasiumWorlds(tasks, 3, seed=5, purpose="loop")
    worlds.reset()
    actions = np.random.default_rng(1).integers(2, size=(300, 2, 3))
    steps = [worlds.step(torch.from_numpy(a)) for a in actions]
    forces = tasks.values["force_mag"].tolist()
    for k, seeds in enumerate(reset_seeds((0, 1), 3)):
        for n, seed in enumerate(seeds):
            env, _ = plain_env("CartPole-v1", seed, force_mag=forces[k])
            for step, action in zip(steps, actions[:, k, n].tolist(), strict=True):
                obs, reward, terminated, _, _ = env.step(action)
                np.testing.assert_array_equal(step.obs[k, n], obs)
                assert step.reward[k, n] == reward
                assert step.terminated[k, n] == terminated
                if terminated:
                    break
            assert terminated
    np.testing.assert_array_equal(steps[-1].reward, np.zeros((2, 3)))


def test_continuous_actions_are_clipped():
    # This environment charges for the action as given: 0.1 * action².
    family = TaskFamily.from_gymnasium("MountainCarContinuous-v0", {})
    worlds = GymnasiumWorlds(family.task(), 3, seed=0, purpose="test")
    worlds.reset()
    step = worlds.step(torch.tensor([[[-7.0], [0.5], [7.0]]]))
    torch.testing.assert_close(step.reward, torch.tensor([[-0.1, -0.025, -0.1]]))


class Recorder(gymnasium.Env):
    """Three actions that start at -1, observations of shape (2, 2), episodes without an end."""

    observation_space = spaces.Box(-1, 1, (2, 2), np.float64)
    action_space = spaces.Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((2, 2)), {}

    def step(self, action):
        return np.array([[action, 0.1], [0.2, 0.3]]), float(action), False, False, {}


@pytest.fixture
def recorder_id():
    env_id = "SsmMetarlRecorder-v0"
    gymnasium.register(env_id, entry_point=Recorder, max_episode_steps=9)
    yield env_id
    del gymnasium.registry[env_id]


def test_actions_that_do_not_start_at_0_and_observations_with_two_axes(recorder_id):
    family = TaskFamily.from_gymnasium(recorder_id, {})
    worlds = GymnasiumWorlds(family.task(), 3, seed=0, purpose="test")
    assert (worlds.obs_dim, worlds.action_space) == (4, Discrete(3))
    worlds.reset()
    step = worlds.step(torch.tensor([[0, 1, 2]]))
    assert step.reward.tolist() == [[-1, 0, 1]]
    torch.testing.assert_close(step.obs[0, 2], torch.tensor([1.0, 0.1, 0.2, 0.3]))


def test_the_time_limit_is_known(recorder_id):
    task = TaskFamily.from_gymnasium(recorder_id, {}).task()
    options = {"seed": 0, "purpose": "test"}
    assert GymnasiumWorlds(task, 1, **options).max_episode_steps == 9
    assert GymnasiumWorlds(task, 1, **options, max_episode_steps=4).max_episode_steps == 4
    gymnasium.registry[recorder_id].max_episode_steps = None
    assert GymnasiumWorlds(task, 1, **options).max_episode_steps == 9  # as it was declared
    with pytest.raises(ValueError, match=r"max_episode_steps: expected a number for .*Recorder"):
        TaskFamily.from_gymnasium(recorder_id, {})
    assert GymnasiumWorlds(task, 1, **options, max_episode_steps=4).max_episode_steps == 4


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_boxes_of_any_shape_get_arrays_of_it(recorder_id, monkeypatch, shape):
    box = spaces.Box(0, 5, shape, np.int64)
    received = []

    def step(self, action):
        received.append(action)
        return np.zeros((2, 2)), 0.0, False, False, {}

    monkeypatch.setattr(Recorder, "action_space", box)
    monkeypatch.setattr(Recorder, "step", step)
    worlds = GymnasiumWorlds(
        TaskFamily.from_gymnasium(recorder_id, {}).task(), 1, seed=0, purpose="test"
    )
    size = int(np.prod(shape))
    assert worlds.action_space == Continuous(size, 0.0, 5.0)
    worlds.reset()
    worlds.step(torch.full((1, 1, size), 2.7))
    assert isinstance(received[0], np.ndarray) and box.contains(received[0])
    assert (received[0] == 3).all()  # the nearest whole number


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (spaces.Text(3), spaces.Discrete(2), r"at least one number, in a Box .*, received Text"),
        (spaces.Sequence(spaces.Box(0, 1)), spaces.Discrete(2), "number, in .* received Sequence"),
        (spaces.Box(0, 1, (0,)), spaces.Discrete(2), "expected at least one number, in a Box"),
        (None, spaces.Box(-np.inf, np.inf, (2,)), "finite bounds, received Box.*TransformAction"),
        (None, spaces.Box(-np.inf, 1.0, (40,)), "expected finite bounds"),
        (None, spaces.Box(1, 1, (2,)), r"low < high, received \[1.0, 1.0\]"),
        (None, spaces.MultiBinary(3), "expected Discrete, or a Box .*, received MultiBinary"),
        (None, spaces.MultiDiscrete([2, 3]), "received MultiDiscrete"),
    ],
)
def test_unsupported_spaces(observations, actions, message):
    env = Recorder()
    env.observation_space = observations or env.observation_space
    env.action_space = actions
    with pytest.raises(ValueError, match=message) as error:
        spaces_of(env, "Recorder")
    assert "\n" not in str(error.value)


def test_what_is_no_action_and_no_mask_is_refused():
    family = TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15)})
    worlds = GymnasiumWorlds(family.sample("id", 2, seed=0), 1, seed=0, purpose="test")
    before = worlds.reset()
    for action, message in (
        (torch.zeros(2, 1), r"action: expected shape \(K, N, A\) = \(2, 1, 1\), received \(2, 1\)"),
        (torch.full((2, 1, 1), torch.nan), "action: expected finite numbers, received nan"),
    ):
        with pytest.raises(ValueError, match=message):
            worlds.step(action)
    assert torch.equal(worlds._to_tensor(worlds._obs), before)
    with pytest.raises(ValueError, match=r"mask: expected shape \(K, N\) = \(2, 1\), received"):
        worlds.reset(torch.ones(1, 2, dtype=torch.bool))
    worlds.close()


def refuses(env, action):
    raise RuntimeError("the motor\nis gone")


def hangs_back(env, action):
    return np.zeros((2, 2)), 0.0, False


BAD_STEPS = {
    "raises": (refuses, "step: expected what Gymnasium's .*RuntimeError: the motor is gone"),
    "too few": (hangs_back, "step: expected what Gymnasium's .*received ValueError: not enough"),
    "NaN": (
        lambda env, action: (np.full((2, 2), np.nan), 0.0, False, False, {}),
        "expected finite observations, received nan as number 0 of 4",
    ),
    "infinite": (
        lambda env, action: (np.array([[0, 0], [0, np.inf]]), 0.0, False, False, {}),
        "expected finite observations, received inf as number 3 of 4",
    ),
    "reward": (
        lambda env, action: (np.zeros((2, 2)), np.nan, False, False, {}),
        "expected a finite reward, received nan",
    ),
    "no reward": (
        lambda env, action: (np.zeros((2, 2)), None, False, False, {}),
        "step: expected what Gymnasium's interface says, received TypeError",
    ),
    "shape": (
        lambda env, action: (np.zeros(3), 0.0, False, False, {}),
        r"step: expected observations of 4 numbers, as its space says, received shape \(3,\)",
    ),
    "one number": (
        lambda env, action: (0.5, 0.0, False, False, {}),
        r"step: expected observations of 4 numbers, .* received shape \(1,\)",
    ),
}


@pytest.mark.parametrize("kind", BAD_STEPS)
def test_what_is_no_step_is_one_clear_line(recorder_id, monkeypatch, kind):
    step, message = BAD_STEPS[kind]
    worlds = GymnasiumWorlds(
        TaskFamily.from_gymnasium(recorder_id, {}).task(), 2, seed=0, purpose="test"
    )
    worlds.reset()
    monkeypatch.setattr(Recorder, "step", step)
    with pytest.raises(ValueError, match=f"environment {recorder_id}: {message}") as error:
        worlds.step(torch.zeros(1, 2, dtype=torch.int64))
    assert "\n" not in str(error.value)
    worlds.close()


def test_what_is_no_reset_is_one_clear_line(recorder_id, monkeypatch):
    task = TaskFamily.from_gymnasium(recorder_id, {}).task()
    for reset, message in (
        (lambda env, **kwargs: (np.full((2, 2), np.nan), {}), "expected finite observations"),
        (lambda env, **kwargs: np.zeros((2, 2)), "reset: expected .*received"),
        (lambda env, **kwargs: 1 / 0, "reset: expected .*ZeroDivisionError: division by zero"),
    ):
        monkeypatch.setattr(Recorder, "reset", reset)
        worlds = GymnasiumWorlds(task, 1, seed=0, purpose="test")
        with pytest.raises(ValueError, match=f"environment {recorder_id}: {message}"):
            worlds.reset()
        worlds.close()


def test_an_environment_that_never_ends_is_cut_at_its_limit(recorder_id, monkeypatch):
    endless = TaskFamily.from_gymnasium(Recorder, {}, max_episode_steps=3)
    worlds = GymnasiumWorlds(endless.task(), 1, seed=0, purpose="test", max_episode_steps=2)
    for _ in range(2):
        worlds.reset()
        cut = [bool(worlds.step(torch.zeros(1, 1).long()).truncated) for _ in range(3)]
        assert cut == [False, True, False]
    worlds.close()
