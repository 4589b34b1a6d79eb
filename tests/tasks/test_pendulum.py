"""Batched pendulum: Gymnasium's own physics, the reflection, and an expert that swings it up."""

import math

import gymnasium
import numpy as np
import pytest
import torch

from ssm_metarl.compiled import plain_operations
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.methods.told import ExpertActor
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.task_family import TaskFamily, teacher

DYNAMICS = PENDULUM.dynamics


def _states(num: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(1, num, 2, generator=generator, dtype=torch.float64)
    return (2 * uniform - 1) * torch.tensor([3 * math.pi, 8.0], dtype=torch.float64)


def _parameters(num: int, split: str = "id") -> dict[str, torch.Tensor]:
    tasks = PENDULUM.sample(split, num, seed=5)
    return {name: v[None] for name, v in tasks.values.items()}


def test_a_step_equals_gymnasiums() -> None:
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    default = {n: torch.tensor([[v]]).double() for n, v in PENDULUM.default_task.items()}
    rng = np.random.default_rng(0)
    for state in _states(200)[0]:
        torque = rng.uniform(-3, 3)  # beyond what the motor takes, too
        env.state = state.numpy().copy()
        obs, reward, *_ = env.step(np.array([torque]))
        action = torch.tensor([[[torque]]], dtype=torch.float64)
        after, ours, terminated = DYNAMICS.step(state[None, None], action, default)
        torch.testing.assert_close(after[0, 0].numpy(), env.state, rtol=0, atol=1e-9)
        assert ours.item() == pytest.approx(float(reward), abs=1e-9)
        assert not terminated.any()
        shown = DYNAMICS.observe(after, default)[0, 0].numpy()
        np.testing.assert_allclose(shown, obs, atol=1e-6)  # Gymnasium rounds to float32


def test_compiled_and_plain_steps_agree() -> None:
    state, parameters = _states(64), _parameters(64, "ood")
    action = 3 * torch.randn(1, 64, 1, generator=torch.Generator().manual_seed(1)).double()
    compiled = DYNAMICS.step(state, action, parameters)
    with plain_operations():
        plain = DYNAMICS.step(state, action, parameters)
    torch.testing.assert_close(compiled, plain, rtol=1e-12, atol=1e-12)


def test_its_reflection_is_one_and_minus_all_is_none() -> None:
    state, parameters = _states(50), _parameters(50)
    action = torch.randn(1, 50, 1, generator=torch.Generator().manual_seed(2)).double()
    seen = DYNAMICS.observe(DYNAMICS.step(state, action, parameters)[0], parameters)
    mirrored, reward, _ = DYNAMICS.step(-state, -action, parameters)
    factors = torch.tensor(PENDULUM.reflection, dtype=torch.float64)
    torch.testing.assert_close(DYNAMICS.observe(mirrored, parameters), seen * factors)
    torch.testing.assert_close(reward, DYNAMICS.step(state, action, parameters)[1])
    assert (DYNAMICS.observe(mirrored, parameters) + seen).abs().max() > 0.1


def test_every_parameter_matters() -> None:
    PENDULUM.verify()


@pytest.mark.parametrize("split", ["id", "ood"])
def test_the_expert_swings_up_what_random_torques_do_not(split: str) -> None:
    tasks = PENDULUM.sample(split, 40, seed=7)
    with torch.no_grad():
        worlds = make_worlds(tasks, 2, seed=7, purpose="test")
        told = collect_rollout(worlds, ExpertActor(teacher(tasks), tasks, 2), 200)
        worlds = make_worlds(tasks, 2, seed=7, purpose="test")
        noise = TaskNoise(7, "test", tasks.indices)
        random = collect_rollout(worlds, random_actor(worlds, noise, 200), 200)
    at_the_end = told.obs[150:, ..., 0].mean(dim=0)  # cosines of the last 2.5 s
    assert (at_the_end > 0.95).float().mean() > (0.95 if split == "id" else 0.7)
    assert told.episode_returns().mean() > random.episode_returns().mean() + 500


def test_the_flip_is_of_the_motor_alone() -> None:
    tasks = PENDULUM.sample("id", 10, seed=3)
    flipped = PENDULUM.disturbances["flip"](tasks)
    assert torch.equal(flipped.values["sign"], -tasks.values["sign"])
    assert all(torch.equal(flipped.values[n], v) for n, v in tasks.values.items() if n != "sign")


def test_a_family_is_a_key() -> None:
    assert {PENDULUM: 1}[PENDULUM] == 1  # what is computed once a family is kept under it


def test_a_family_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"obs_scale of 2, dynamics.obs_dim of 3"):
        TaskFamily(name="x", parameters=(), dynamics=DYNAMICS, obs_scale=(1.0, 1.0))
    with pytest.raises(ValueError, match="expected factors -1 or 1"):
        TaskFamily(name="x", parameters=(), dynamics=DYNAMICS, reflection=(0.5, 1.0, 1.0))
