"""What only batched physics has: pushes, the family's own time limit, the type of its numbers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from float32 import assert_rounds_alike
from ssm_metarl.compiled import plain_operations
from ssm_metarl.env_runner.task_batch import NOISE_BLOCK, TaskBatch
from ssm_metarl.tasks.cartpole import CARTPOLE, CartPoleDynamics


def first_step(push_probability, num_envs=2000, **options):
    batch = TaskBatch(
        CARTPOLE.task(),
        num_envs,
        seed=0,
        purpose="test",
        push_probability=push_probability,
        **options,
    )
    batch.reset()
    return batch.step(torch.ones(1, num_envs, dtype=torch.int64)).obs


def test_pushes_change_velocities_only():
    change = first_step(1.0) - first_step(0.0)
    assert (change[..., [0, 2]] == 0).all()
    assert (change[..., [1, 3]] != 0).all()
    spread = change[..., [1, 3]].std(dim=(0, 1))
    torch.testing.assert_close(spread, torch.tensor([0.5, 0.5]), rtol=0.05, atol=0)
    assert change.mean().abs() < 0.02


def test_pushes_come_as_often_as_asked():
    pushed = (first_step(0.3) != first_step(0.0))[..., 1]
    assert pushed.float().mean().item() == pytest.approx(0.3, abs=0.04)


def starts(spread_starts, num_envs=2000):
    batch = TaskBatch(
        CARTPOLE.task(), num_envs, seed=0, purpose="test", spread_starts=spread_starts
    )
    return batch, batch.reset()[0]


def test_spread_starts_are_as_many_and_as_far_as_asked():
    _, near = starts(0.0)
    _, far = starts(1.0)
    limit = torch.tensor(CartPoleDynamics.start_spread)
    offset = (far - near) / limit
    assert (offset.abs() <= 1 + 1e-5).all() and (offset != 0).all()
    torch.testing.assert_close(offset.std(dim=0), torch.full((4,), 3**-0.5), rtol=0.05, atol=0)
    _, mixed = starts(0.3)
    moved = (mixed != near).any(-1)
    assert moved.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(mixed[moved], far[moved])


def test_only_the_environments_that_are_reset_start_anew():
    batch, first = starts(1.0, num_envs=4)
    again = batch.reset(torch.tensor([[True, False, True, False]]))[0]
    assert torch.equal(again[[1, 3]], first[[1, 3]])
    assert (again[[0, 2]] != first[[0, 2]]).all()


def test_a_pushed_step_that_ends_the_episode_keeps_its_final_state():
    tasks = CARTPOLE.task({"force": 100})
    pushed = TaskBatch(tasks, 50, seed=0, purpose="test", push_probability=1.0)
    dynamics = CartPoleDynamics()
    right = torch.ones(1, 50, dtype=torch.int64)
    parameters = {n: v.float()[:, None].expand(1, 50) for n, v in tasks.values.items()}
    ends = 0
    obs = pushed.reset()
    for _ in range(10):
        unpushed, _, _ = dynamics.step(obs, right, parameters)
        step = pushed.step(right)
        assert torch.equal(step.obs[step.terminated], unpushed[step.terminated])
        ends += int(step.terminated.sum())
        obs = step.obs
    assert ends == 50


def test_numbers_do_not_repeat_when_a_block_of_noise_is_used_up():
    batch = TaskBatch(CARTPOLE.task(), 1, seed=0, purpose="test")
    starts = torch.stack([batch.reset() for _ in range(2 * NOISE_BLOCK + 1)])
    assert len(starts.flatten(1).unique(dim=0)) == 2 * NOISE_BLOCK + 1


def test_the_familys_time_limit_holds_by_default():
    class Balanced(CartPoleDynamics):
        max_episode_steps = 3

        def initial_state(self, uniform):
            return torch.zeros_like(uniform)

    batch = TaskBatch(replace(CARTPOLE, dynamics=Balanced()).task(), 1, seed=0, purpose="test")
    batch.reset()
    action = torch.ones(1, 1, dtype=torch.int64)
    assert [bool(batch.step(action).truncated) for _ in range(4)] == [False, False, True, False]


def test_float64_physics():
    obs = first_step(0.0, num_envs=3, dtype=torch.float64)
    assert obs.dtype == torch.float64
    with plain_operations():
        plain = first_step(0.0, num_envs=3)
    assert_rounds_alike(first_step(0.0, num_envs=3), [plain], obs)


def test_the_compiled_step_equals_plain_operations():
    """Pushes, ends, time limits, resets, and environments that stay where they ended."""

    def run(plainly, dtype=torch.float32):
        tasks = CARTPOLE.sample("train", 5, seed=3)
        batch = TaskBatch(
            tasks, 4, seed=1, purpose="test", max_episode_steps=25, push_probability=0.2,
            dtype=dtype,
        )  # fmt: skip
        if plainly:
            batch._settled = batch._settled_plainly
            batch.dynamics = CartPoleDynamics()
            batch.dynamics.step = batch.dynamics.step_plainly
        obs, steps = batch.reset(), []
        actions = torch.from_numpy(np.random.default_rng(0).integers(2, size=(60, 5, 4)))
        ended = torch.zeros(5, 4, dtype=torch.bool)
        for t, action in enumerate(actions):
            if t % 10 == 0:
                obs = batch.reset(ended & (action == 1))
            step = batch.step(action)
            ended = step.terminated | step.truncated
            steps.append([obs, *step])
        return [torch.stack(column).to(dtype) for column in zip(*steps, strict=True)]

    compiled, plain, exact = run(False), run(True), run(True, torch.float64)
    assert all(column.any() for column in plain)
    assert_rounds_alike(compiled, [plain], exact)


@pytest.mark.parametrize("plainly", [False, True])
@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            torch.zeros(1, 3).long(),
            r"action: expected shape \(K, N\) = \(2, 3\), received \(1, 3\)",
        ),
        (torch.zeros(2, 3, 1).long(), r"action: expected shape \(K, N\) = \(2, 3\), received"),
        (torch.zeros(2, 3), r"action: expected whole numbers \(int64\), received float32"),
        (torch.full((2, 3), 2), "action: expected whole numbers from 0 to 1, received 2"),
        (torch.full((2, 3), -1), "action: expected whole numbers from 0 to 1, received -1"),
    ],
)
def test_what_is_no_action_is_refused_and_no_step_taken(action, message, plainly):
    batch = TaskBatch(CARTPOLE.sample("id", 2, seed=0), 3, seed=0, purpose="test")
    before = batch.reset().clone()
    with plain_operations() if plainly else nullcontext(), pytest.raises(ValueError, match=message):
        batch.step(action)
    assert torch.equal(batch._state, before) and batch._step_count.max() == 0
    batch.step(torch.ones(2, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"mask: expected shape \(K, N\) = \(2, 3\), received"):
        batch.reset(torch.ones(2, 1, dtype=torch.bool))


def test_physics_of_ones_own_cannot_write_past_the_worlds():
    class Short(CartPoleDynamics):
        def step(self, state, action, parameters):
            after, reward, terminated = super().step(state, action, parameters)
            return after, reward[:, :1], terminated

    family = replace(CARTPOLE, name="short", dynamics=Short())
    batch = TaskBatch(family.sample("id", 2, seed=0), 3, seed=0, purpose="test")
    batch.reset()
    with pytest.raises(ValueError, match=r"dynamics: reward: expected shape \(K, N\) = \(2, 3\)"):
        batch.step(torch.zeros(2, 3, dtype=torch.int64))
