"""The one-world facade: Gymnasium's interface, own physics only where asked for."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily, Uniform


def test_the_documented_loop():
    env = Environment("CartPole-v1")
    obs, info = env.reset()
    assert obs.shape == (4,)
    assert info == {}
    obs, reward, terminated, truncated, info = env.step(1)
    assert (obs.shape, obs.dtype, reward) == ((4,), np.float32, 1.0)
    assert (terminated, truncated, info) == (False, False, {})
    env.close()


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value is -?infinity")
def test_gymnasiums_own_checks_pass():
    check_env(Environment("cartpole", {"sign": -1}), skip_render_check=True)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_an_id_is_gymnasiums_own_environment(env_id):
    env, plain = Environment(env_id, seed=3), gymnasium.make(env_id)
    assert type(env.unwrapped) is type(plain.unwrapped)
    assert env.observation_space == plain.observation_space
    assert env.action_space == plain.action_space
    plain.action_space.seed(0)
    for options in ({"seed": 3}, {}):  # the second episode continues the first one's stream
        np.testing.assert_array_equal(env.reset()[0], plain.reset(**options)[0])
        for _ in range(5):
            action = plain.action_space.sample()
            ours, expected = env.step(action), plain.step(action)
            np.testing.assert_array_equal(ours[0], expected[0])
            assert ours[1:] == expected[1:]


def test_the_familys_default_task_does_what_gymnasium_does():
    env, plain = Environment("cartpole"), gymnasium.make("CartPole-v1").unwrapped
    assert not isinstance(env.unwrapped, type(plain))
    plain.reset(seed=0)
    plain.state = env.reset()[0].astype(np.float64)
    for t in range(100):
        ours, expected = env.step(t % 3 % 2), plain.step(t % 3 % 2)
        np.testing.assert_allclose(ours[0], expected[0], atol=1e-5)
        assert ours[1:] == expected[1:]
        if ours[2]:
            break
    assert ours[2]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "cartpole", CARTPOLE])
def test_a_task_changes_the_physics(env_id):
    velocities = []
    for sign in (1, -1):
        env = Environment(env_id, task={"sign": sign, "force": 15.0})
        start = env.reset()[0]
        velocities.append(env.step(1)[0][1] - start[1])
    assert velocities[0] > 0.2  # about 15 N / 1.1 kg * 0.02 s
    assert velocities[1] < -0.2


def test_the_time_limit_truncates():
    # Weak gravity, a weak actuator and a long pole: alternating pushes balance for 500 steps.
    env = Environment("cartpole", task={"gravity": 0.1, "force": 0.1, "length": 10.0})
    env.reset()
    steps = [env.step(t % 2) for t in range(500)]
    assert not any(s[2] or s[3] for s in steps[:-1])
    assert steps[-1][2:4] == (False, True)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "cartpole"])
def test_seeds(env_id):
    def starts(**options):
        env = Environment(env_id, **options)
        return [env.reset()[0] for _ in range(3)]

    first = starts(seed=1)
    np.testing.assert_array_equal(first, starts(seed=1))
    assert (first[0] != first[1]).all()
    assert (first[0] != starts(seed=2)[0]).all()
    env = Environment(env_id, seed=9)
    env.reset()
    np.testing.assert_array_equal(env.reset(seed=1)[0], first[0])
    np.testing.assert_array_equal(env.reset()[0], first[1])
    assert np.abs(first).max() <= 0.05


def test_families():
    assert Environment("CartPole-v1").family is CARTPOLE
    assert Environment("cartpole").family is CARTPOLE
    assert Environment("MountainCar-v0").family is None


def test_a_declared_family():
    family = TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15)})
    env = Environment(family, task={"g": 5})
    assert env.family is family
    assert env.unwrapped.g == 5
    assert Environment(family).unwrapped.g == 10
    assert env.reset()[0].shape == (3,)


@pytest.mark.parametrize(
    ("env_id", "task", "message"),
    [
        ("CartPol-v1", None, r"such as 'CartPole-v1' or one of \['cartpole', .*\], .*'CartPol-v1'"),
        ("cart pole", None, "received 'cart pole'"),
        ("nowhere:Env-v0", None, "received 'nowhere:Env-v0'"),
        ("MountainCar-v0", {"g": 5}, r"expected None, for 'MountainCar-v0' .* received {'g': 5}"),
        ("CartPole-v1", {"weight": 5}, "expected one of .*'force'.*, received 'weight'"),
        ("cartpole", {"force": -5}, "'force': expected 0.1 to 100 N, received -5"),
    ],
)
def test_bad_arguments_end_in_one_line(env_id, task, message):
    with pytest.raises(ValueError, match=message) as error:
        Environment(env_id, task)
    assert "\n" not in str(error.value)


def test_steps_need_a_running_episode_and_a_known_action():
    env = Environment("cartpole")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match=r"action: expected one of Discrete\(2\), received 2"):
        env.step(2)
    while not env.step(np.int64(1))[2]:
        pass
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(1)
    env.reset()
    assert env.step(1)[1] == 1.0


def test_context_manager_closes():
    with Environment("CartPole-v1") as env:
        env.reset()
        assert env.unwrapped.isopen
        closed = []
        env.unwrapped.close = lambda: closed.append(True)
    assert closed == [True]


@pytest.mark.parametrize("env_id", ["cartpole", "CartPole-v1"])
def test_numbers_that_numpy_drew_are_numbers(env_id: str) -> None:
    task = {"sign": np.int64(-1), "force": np.float32(7)} if env_id == "cartpole" else None
    drawn = Environment(env_id, task=task, seed=np.int64(3))  # type: ignore[arg-type]
    typed = Environment(env_id, task=task and {"sign": -1, "force": 7}, seed=3)
    for seed in ({}, {"seed": 5}):
        others = {n: np.uint16(v) for n, v in seed.items()}
        np.testing.assert_array_equal(drawn.reset(**others)[0], typed.reset(**seed)[0])
        np.testing.assert_array_equal(drawn.step(np.int64(1))[0], typed.step(1)[0])


@pytest.mark.parametrize(
    "value", [np.bool_(True), np.array([1.0]), "7", 10**400, np.float32("inf")]
)
def test_what_is_no_number_is_no_parameter(value: object) -> None:
    with pytest.raises(ValueError, match=r"^task parameter 'force': expected a"):
        Environment("cartpole", task={"force": value})


def test_gymnasiums_own_environments_refuse_unknown_actions_too():
    with Environment("CartPole-v1") as env:
        env.reset()
        for action in (2, -1):
            with pytest.raises(
                ValueError, match=rf"action: expected one of Disc.*received {action}"
            ):
                env.step(action)
        assert env.step(1)[1] == 1.0
