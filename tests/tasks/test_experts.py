"""Told experts: the linear algebra against scipy, and the wiring undone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_are

from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import (
    CART_MASS,
    CARTPOLE,
    PUSH_COST,
    STATE_COST,
    CartPoleExpert,
    linearised_cartpole,
    lqr_gain,
)
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.control import linearised, solve_riccati
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.task_family import TaskFamily, teacher

SEED = 3


@pytest.mark.parametrize("split", ["id", "ood"])
def test_a_cart_is_linearised_as_by_hand(split):
    tasks = CARTPOLE.sample(split, 8, seed=SEED)
    a, b = linearised_cartpole(tasks)
    v = tasks.values
    total_mass = CART_MASS + v["mass"]
    # Linear in theta and force: theta'' = (g theta - force / M) / inertia,
    # x'' = force / M - (m l / M) theta''.
    inertia = v["length"] * (4.0 / 3.0 - v["mass"] / total_mass)
    coupling = v["mass"] * v["length"] / total_mass
    expected = torch.eye(4, dtype=torch.float64).repeat(8, 1, 1)
    expected[:, 0, 1] = expected[:, 2, 3] = 0.02
    expected[:, 1, 2] = -0.02 * coupling * v["gravity"] / inertia
    expected[:, 3, 2] = 0.02 * v["gravity"] / inertia
    torch.testing.assert_close(a, expected)
    push = v["force"] / total_mass  # x'' of a full push, were there no pole
    zero = torch.zeros_like(push)
    slope = torch.stack([zero, push + coupling * push / inertia, zero, -push / inertia], dim=-1)
    torch.testing.assert_close(b[..., 0], 0.02 * slope)


@pytest.mark.parametrize("split", ["id", "ood"])
def test_a_pendulum_is_linearised_as_by_hand_whatever_mode_the_caller_is_in(split):
    tasks = PENDULUM.sample(split, 8, seed=SEED)
    v = tasks.values
    with torch.inference_mode():
        a, b = linearised(PENDULUM.dynamics, v, (0.0, 0.0), (0.0,))
    assert not (a.requires_grad or b.requires_grad)
    # I dtheta'/dt = m g l/2 theta - c dtheta/dt + sign gain u, and the new speed moves the angle
    inertia = v["mass"] * v["length"] ** 2 / 3
    lean = 0.05 * v["mass"] * v["gravity"] * v["length"] / 2 / inertia
    kept, pushed = 1 - 0.05 * v["damping"] / inertia, 0.05 * v["sign"] * v["gain"] / inertia
    rows = [1 + 0.05 * lean, 0.05 * kept, lean, kept]
    torch.testing.assert_close(a, torch.stack(rows, dim=-1).view(8, 2, 2))
    torch.testing.assert_close(b[..., 0], torch.stack([0.05 * pushed, pushed], dim=-1))


@pytest.mark.parametrize("split", ["id", "ood"])
def test_riccati_solution_is_scipys(split):
    a, b = linearised_cartpole(CARTPOLE.sample(split, 12, seed=SEED))
    cost = torch.diag(torch.tensor(STATE_COST, dtype=torch.float64))
    p = solve_riccati(a, b, cost, PUSH_COST)
    expected = np.stack(
        [
            solve_discrete_are(x.numpy(), y.numpy(), cost.numpy(), np.array([[PUSH_COST]]))
            for x, y in zip(a, b, strict=True)
        ]
    )
    np.testing.assert_allclose(p.numpy(), expected, rtol=1e-8)


def test_regulated_linear_plant_is_stable():
    tasks = CARTPOLE.sample("ood", 50, seed=SEED)
    a, b = linearised_cartpole(tasks)
    closed_loop = a + b @ lqr_gain(tasks)[:, None]
    assert torch.linalg.eigvals(closed_loop).abs().max() < 1
    assert torch.linalg.eigvals(a).abs().amax(-1).min() > 1.02  # unregulated it falls


def test_families_with_an_expert():
    assert set(CARTPOLE.experts) == set(CARTPOLE_SCRAMBLED.experts) == {"lqr"}
    other = TaskFamily.from_gymnasium("Pendulum-v1", {})
    with pytest.raises(ValueError, match="received 'Pendulum-v1', which declares none"):
        teacher(other.task())


def _rollout(delay, num_steps=40):
    """Random actions behind unknown wiring, with the states underneath."""
    tasks = CARTPOLE_SCRAMBLED.sample("id", 5, seed=SEED)
    tasks = replace(tasks, values={**tasks.values, "delay": torch.full((5,), delay).double()})
    worlds = make_worlds(tasks, 2, seed=SEED, purpose="test")
    actor = random_actor(worlds, TaskNoise(SEED, "test-action", tasks.indices), num_steps)
    states = []

    def act(obs, reset):
        states.append(worlds._state)
        return actor(obs, reset)

    return tasks, collect_rollout(worlds, act, num_steps, autoreset=True), torch.stack(states)


def test_without_a_delay_it_is_cartpoles_expert_on_the_state_underneath():
    tasks, rollout, states = _rollout(delay=0.0)
    told = teacher(tasks)(rollout.obs, rollout.action, rollout.reset)
    plain = CartPoleExpert(tasks)(states[..., :4], rollout.action, rollout.reset)
    assert (told == plain).double().mean() > 0.995  # but for rounding at the switching plane
    assert 0.2 < told.double().mean() < 0.8


@pytest.mark.parametrize("delay", [1.0, 2.0, 3.0])
def test_with_a_delay_it_acts_on_where_the_plant_will_be(delay):
    # Within an episode the state that many steps later is the one that an action meets.
    tasks, rollout, states = _rollout(delay)
    told = teacher(tasks)(rollout.obs, rollout.action, rollout.reset)
    later = int(delay)
    plain = CartPoleExpert(tasks)(states[later:, ..., :4], rollout.action[later:], rollout.reset)
    same_episode = ~torch.stack(
        [rollout.reset[ago : len(told) - later + ago] for ago in range(1, later + 1)]
    ).any(0)
    agree = (told[:-later] == plain)[same_episode].double().mean()
    assert agree > 0.99
    now = CartPoleExpert(tasks)(states[..., :4], rollout.action, rollout.reset)
    assert (told == now).double().mean() < 0.97


def test_the_last_action_is_not_looked_at():
    tasks, rollout, _ = _rollout(delay=2.0)
    expert, other = teacher(tasks), rollout.action.clone()
    other[-1] = 1 - other[-1]
    one = expert(rollout.obs, rollout.action, rollout.reset)
    assert torch.equal(one, expert(rollout.obs, other, rollout.reset))
