"""CartPole behind unknown wiring: what each parameter does, and CartPole itself underneath."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED, LONGEST_DELAY, PLACES, SENSORS

FAMILY, DYNAMICS = CARTPOLE_SCRAMBLED, CARTPOLE_SCRAMBLED.dynamics
STEPS = 15


def trajectory(task=None, family=FAMILY, seed=0):
    """Observations before each of 15 steps of random actions, (STEPS, O), and the actions."""
    rng = np.random.default_rng(seed)
    actions = torch.from_numpy(rng.integers(2, size=STEPS))
    steps = iter(actions.tolist())
    worlds = make_worlds(family.task(task), 1, seed=0, purpose="test")
    # The two families have states of different sizes, hence other initial numbers.
    state = torch.zeros_like(worlds._state)
    state[..., :4] = torch.tensor([0.02, -0.03, 0.01, 0.04])
    worlds.reset()
    worlds._state = state
    seen = []
    for action in steps:
        seen.append(worlds.dynamics.observe(worlds._state, worlds._parameters)[0, 0])
        worlds.step(torch.tensor([[action]]))
    return torch.stack(seen), actions


def test_every_parameter_changes_the_dynamics():
    FAMILY.verify()


@pytest.mark.parametrize("parameter", FAMILY.parameters, ids=lambda p: p.name)
def test_each_parameter_by_itself_changes_what_is_seen(parameter):
    low, high = parameter.id.at(0.0), parameter.id.at(0.999)
    one, other = (trajectory({parameter.name: v})[0] for v in (low, high))
    assert (one - other).abs().max() > 1e-4


def test_the_default_task_is_cartpole():
    torch.testing.assert_close(trajectory()[0], trajectory(family=CARTPOLE)[0])


def test_places_signs_and_gains_are_of_the_sensors_alone():
    plain, _ = trajectory()
    task = {
        "order": 9.0, "gain_x": 2.0, "sensor_sign_x_dot": -1.0, "gain_theta": 0.5,
        "sensor_sign_theta_dot": -1.0, "gain_theta_dot": 3.0,
    }  # fmt: skip
    seen, _ = trajectory(task)
    factors = torch.tensor([2.0, -1.0, 0.5, -3.0])
    expected = torch.empty_like(plain)
    expected[:, PLACES[9]] = plain * factors
    torch.testing.assert_close(seen, expected)


def test_the_orders_are_the_24_permutations():
    assert {tuple(p) for p in PLACES.tolist()} == set(itertools.permutations(range(4)))


@pytest.mark.parametrize("delay", range(LONGEST_DELAY + 1))
def test_a_push_comes_late_by_the_delay(delay):
    rng = np.random.default_rng(1)
    state = torch.zeros(1, 1, 7)
    chosen = torch.from_numpy(rng.integers(2, size=8)).tolist()
    parameters = {n: torch.full((1, 1), v) for n, v in FAMILY.default_task.items()}
    parameters["delay"] = torch.full((1, 1), float(delay))
    speeds = []
    for action in chosen:
        before = state[0, 0, 1].item()
        state, _, _ = DYNAMICS.step(state, torch.tensor([[action]]), parameters)
        speeds.append(state[0, 0, 1].item() - before)
    pushed = [0] * delay + [2 * a - 1 for a in chosen]
    for t, change in enumerate(speeds):
        if pushed[t] == 0:  # nothing has arrived: only the pole, which hardly leans, moves the cart
            assert abs(change) < 0.05
        else:
            assert np.sign(change) == pushed[t]
            assert abs(change) > 0.1


def test_an_episode_starts_with_an_empty_line():
    worlds = make_worlds(FAMILY.task({"delay": 2.0}), 1, seed=0, purpose="test")
    worlds.reset()
    for _ in range(5):
        worlds.step(torch.ones(1, 1, dtype=torch.int64))
    assert worlds._state[0, 0, 4:].tolist() == [1, 1, 1]
    worlds.reset()
    assert worlds._state[0, 0, 4:].tolist() == [0, 0, 0]


def test_compiled_and_plain_sensors_agree():
    tasks = FAMILY.sample("ood", 6, seed=0)
    parameters = {n: v[:, None].expand(-1, 3) for n, v in tasks.values.items()}
    state = torch.from_numpy(np.random.default_rng(2).normal(size=(6, 3, 7)))
    torch.testing.assert_close(
        DYNAMICS.observe(state, parameters), DYNAMICS.observe_plainly(state, parameters)
    )


def test_a_mirrored_history_is_as_likely():
    tasks = FAMILY.sample("id", 5, seed=0)
    parameters = {n: v[:, None] for n, v in tasks.values.items()}
    state = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 1, 7)) * 0.1)
    state[..., 4:] = state[..., 4:].sign()
    action = torch.tensor([[0], [1], [0], [1], [1]])
    here, _, _ = DYNAMICS.step(state, action, parameters)
    there, _, _ = DYNAMICS.step(-state, 1 - action, parameters)
    torch.testing.assert_close(there, -here)
    torch.testing.assert_close(
        DYNAMICS.observe(-state, parameters), -DYNAMICS.observe(state, parameters)
    )


def test_out_of_distribution_is_out_of_range_in_gains_and_delay():
    values = FAMILY.sample("ood", 200, seed=0).values
    assert set(values["delay"].tolist()) == {3.0}
    for name in SENSORS:
        gains = values[f"gain_{name}"]
        assert ((gains < 0.5) | (gains >= 2.0)).all()
        assert {float(g >= 2.0) for g in gains} == {0.0, 1.0}
    assert FAMILY.task({"delay": 3.0}).values["delay"].item() == 3.0
    with pytest.raises(ValueError, match=r"'delay': expected one of \[0.0, 1.0, 2.0, 3.0\]"):
        FAMILY.task({"delay": 4.0})


@pytest.mark.parametrize("seed", range(3))
def test_fixed_linear_controllers_do_not_keep_the_pole_up(seed):
    # The cross-entropy search that docs/in_context.md tells of found none above 70 on any tasks.
    tasks = FAMILY.sample("id", 100, seed=0)
    gain = torch.from_numpy(np.random.default_rng(seed).normal(size=4)).float()

    def act(obs, reset):
        return ((obs * gain).sum(-1) > 0).long(), torch.zeros(obs.shape[:2])

    worlds = make_worlds(tasks, 1, seed=0, purpose="test")
    assert collect_rollout(worlds, act, 500).episode_returns().mean() < 100


@pytest.mark.parametrize("order", [-1.0, 24.0, 1e9, float("nan")])
def test_an_order_that_there_is_not_is_refused_not_looked_up(order):
    state, values = torch.zeros(2, 3, 7), FAMILY.sample("id", 2, seed=0).values
    parameters = {n: v.float()[:, None] for n, v in values.items()}
    DYNAMICS.observe(state, parameters)  # parameters that broadcast are enough
    parameters["order"] = torch.tensor([[0.0], [order]])
    with pytest.raises(ValueError, match="order: expected 0 to 23"):
        DYNAMICS.observe(state, parameters)
    with pytest.raises(ValueError, match=r"gain_x: expected real numbers that broadcast to \(K, N"):
        DYNAMICS.observe(state, {**parameters, "gain_x": torch.ones(2, 2)})
