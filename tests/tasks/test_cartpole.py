"""CartPole's physics: equal to Gymnasium's at its parameters, and moved by every parameter."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from ssm_metarl.tasks.cartpole import CARTPOLE, THETA_LIMIT, X_LIMIT, CartPoleDynamics

DYNAMICS = CartPoleDynamics()


def random_states(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States around and beyond the limits, shape (1, count, 4), and actions (1, count)."""
    rng = np.random.default_rng(seed)
    scale = np.array([2.6, 4.0, 0.23, 4.0])
    states = rng.uniform(-scale, scale, size=(1, count, 4))
    return torch.from_numpy(states), torch.from_numpy(rng.integers(2, size=(1, count)))


def parameters(count: int, **changes: float) -> dict[str, torch.Tensor]:
    values = CARTPOLE.default_task | changes
    return {name: torch.full((1, count), v, dtype=torch.float64) for name, v in values.items()}


def gymnasium_steps(env, states, actions):
    """One step of Gymnasium's environment from every state."""
    next_states, rewards, ends = [], [], []
    for state, action in zip(states[0].numpy(), actions[0].tolist(), strict=True):
        env.state, env.steps_beyond_terminated = state, None
        _, reward, terminated, _, _ = env.step(action)
        next_states.append(env.state)
        rewards.append(reward)
        ends.append(terminated)
    return torch.tensor(np.array(next_states)), torch.tensor(rewards), torch.tensor(ends)


def test_every_step_agrees_with_gymnasium():
    states, actions = random_states(10_000, seed=0)
    ours, reward, terminated = DYNAMICS.step(states, actions, parameters(10_000))
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    expected, expected_reward, expected_end = gymnasium_steps(env, states, actions)

    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-9)
    assert torch.equal(terminated[0], expected_end)
    assert torch.equal(reward[0], expected_reward.double())
    # The comparison means something only if both kinds of end occur, on both sides.
    x, theta = expected[:, 0], expected[:, 2]
    for side in (x > X_LIMIT, x < -X_LIMIT, theta > THETA_LIMIT, theta < -THETA_LIMIT):
        assert side.sum() > 200
    assert (~expected_end).sum() > 5_000


def test_steps_agree_with_gymnasium_once_its_cached_values_follow():
    task = {"force": 3.0, "length": 0.8, "mass": 0.7, "gravity": 15.0}
    states, actions = random_states(500, seed=1)
    ours, _, _ = DYNAMICS.step(states, actions, parameters(500, **task))
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    env.force_mag, env.length, env.masspole, env.gravity = task.values()
    stale, _, _ = gymnasium_steps(env, states, actions)
    env.total_mass = env.masscart + env.masspole
    env.polemass_length = env.masspole * env.length
    fresh, _, _ = gymnasium_steps(env, states, actions)

    torch.testing.assert_close(ours[0], fresh, rtol=0, atol=1e-9)
    assert (stale - fresh).abs().max() > 1e-3  # the trap: without the two lines, it is not


@pytest.mark.parametrize("parameter", CARTPOLE.parameters, ids=lambda p: p.name)
def test_every_parameter_changes_the_dynamics(parameter):
    states, actions = random_states(100, seed=2)
    low, high = parameter.id.at(0.0), parameter.id.at(0.999)
    one, _, _ = DYNAMICS.step(states, actions, parameters(100, **{parameter.name: low}))
    other, _, _ = DYNAMICS.step(states, actions, parameters(100, **{parameter.name: high}))
    accelerations = (one - other)[..., [1, 3]].abs()
    assert (accelerations > 1e-6).any(-1).all()


def test_the_sign_swaps_the_actions():
    states, actions = random_states(100, seed=3)
    swapped, _, _ = DYNAMICS.step(states, 1 - actions, parameters(100, sign=-1.0))
    plain, _, _ = DYNAMICS.step(states, actions, parameters(100))
    same_action, _, _ = DYNAMICS.step(states, actions, parameters(100, sign=-1.0))
    assert torch.equal(swapped, plain)
    assert not torch.isclose(same_action[..., 1], plain[..., 1]).any()


def test_initial_states_are_gymnasiums():
    uniform = torch.tensor([0.0, 0.5, 0.75, 1.0])
    torch.testing.assert_close(
        DYNAMICS.initial_state(uniform), torch.tensor([-0.05, 0.0, 0.025, 0.05])
    )


def test_the_mirror_that_the_family_declares():
    """Negated states and the other action lead to negated states, and end as they do."""
    assert CARTPOLE.mirror
    states, actions = random_states(500, seed=2)
    task = parameters(500, force=3.0, length=0.8, mass=0.7, gravity=15.0, sign=-1.0)
    ahead, reward, terminated = DYNAMICS.step(states, actions, task)
    mirrored, same_reward, same_end = DYNAMICS.step(-states, 1 - actions, task)
    torch.testing.assert_close(mirrored, -ahead)
    assert torch.equal(same_reward, reward) and torch.equal(same_end, terminated)
    uniform = torch.rand(100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        DYNAMICS.initial_state(1 - uniform), -DYNAMICS.initial_state(uniform)
    )


def test_the_compiled_step_equals_plain_operations():
    tasks = CARTPOLE.sample("ood", 50, seed=0)
    values = {name: v[:, None].expand(-1, 20) for name, v in tasks.values.items()}
    states, actions = (x.view(50, 20, *x.shape[2:]) for x in random_states(1000, seed=2))
    for received, expected in zip(
        DYNAMICS.step(states, actions, values),
        DYNAMICS.step_plainly(states, actions, values),
        strict=True,
    ):
        torch.testing.assert_close(received, expected, rtol=1e-12, atol=1e-12)
