"""Yardsticks of CartPole: the directions, and what they score."""

from dataclasses import replace

import pytest
import torch

from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.methods.told import ExpertActor
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CARTPOLE, read_sign, sign_probe
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.task_family import Tasks, teacher
from ssm_metarl.types import Actor

SEED = 3


def expert_actor(tasks: Tasks, num_envs: int) -> Actor:
    """The family's first expert."""
    return ExpertActor(teacher(tasks), tasks, num_envs)


def _returns(tasks: Tasks, actor, num_envs: int = 2) -> torch.Tensor:
    worlds = TaskBatch(tasks, num_envs, seed=SEED, purpose="query")
    return collect_rollout(worlds, actor, 500).episode_returns()


def _support(tasks: Tasks, num_steps: int = 20, num_envs: int = 1):
    worlds = TaskBatch(tasks, num_envs, seed=SEED, purpose="support")
    noise = TaskNoise(SEED, "support-action", tasks.indices)
    return collect_rollout(worlds, random_actor(worlds, noise, num_steps), num_steps)


def _flipped(tasks: Tasks) -> Tasks:
    return replace(tasks, values={**tasks.values, "sign": -tasks.values["sign"]})


@pytest.mark.parametrize(("split", "least"), [("id", 499.0), ("ood", 480.0)])
def test_lqr_balances(split, least):
    tasks = CARTPOLE.sample(split, 40, seed=SEED)
    assert _returns(tasks, expert_actor(tasks, 2)).mean() > least


@pytest.mark.parametrize(("split", "least"), [("id", 499.0), ("ood", 450.0)])
def test_lqr_balances_behind_unknown_wiring(split, least):
    tasks = CARTPOLE_SCRAMBLED.sample(split, 40, seed=SEED)
    assert _returns(tasks, expert_actor(tasks, 2)).mean() > least


def test_lqr_told_the_wrong_sign_fails():
    tasks = CARTPOLE.sample("id", 20, seed=SEED)
    assert _returns(tasks, expert_actor(_flipped(tasks), 2)).max() < 50


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_pole_leaning_right_is_pushed_right(sign):
    tasks = CARTPOLE.task({"sign": sign})
    leaning = torch.tensor([0.0, 0.0, 0.05, 0.0]).expand(1, 1, 4)
    reset = torch.zeros(1, 1, dtype=torch.bool)
    action, log_prob = expert_actor(tasks, 1)(leaning, reset)
    assert action.item() == (1 if sign > 0 else 0)
    assert log_prob.item() == 0.0


def test_flipping_the_sign_flips_every_action():
    tasks = CARTPOLE.sample("id", 10, seed=SEED)
    obs = TaskNoise(SEED, "obs", tasks.indices).normal(6, 4)[0]
    obs = obs[:, None].expand(-1, 6, -1) * torch.linspace(-1, 1, 6)[:, None]
    reset = torch.zeros(10, 6, dtype=torch.bool)
    told, flipped = expert_actor(tasks, 6), expert_actor(_flipped(tasks), 6)
    assert torch.equal(told(obs, reset)[0], 1 - flipped(obs, reset)[0])


def test_lqr_refuses_another_plant():
    family = replace(CARTPOLE, name="other", experts={})
    tasks = replace(CARTPOLE.sample("id", 2, seed=SEED), family=family)
    with pytest.raises(ValueError, match="'other'"):
        expert_actor(tasks, 1)


@pytest.mark.parametrize("split", ["id", "ood"])
def test_sign_is_read_from_twenty_random_steps(split):
    tasks = CARTPOLE.sample(split, 200, seed=SEED)
    sign = read_sign(_support(tasks))
    assert sign.shape == (200,)
    right = sign.double() == tasks.values["sign"]
    assert right.float().mean() >= 0.99


def test_masked_steps_are_not_read():
    tasks = CARTPOLE.sample("id", 10, seed=SEED)
    support = _support(tasks, num_steps=30, num_envs=2)
    assert not support.mask.all()
    # The worst content: numbers that shout the opposite, and one that is no number.
    sign = tasks.values["sign"].float()[:, None]
    shout = -1e6 * sign * (2 * support.action - 1)
    shout[-1, 0, 0] = float("nan")
    next_obs = support.next_obs.clone()
    next_obs[..., 1] = torch.where(support.mask, next_obs[..., 1], shout)
    spoiled = replace(support, next_obs=next_obs)
    assert torch.equal(read_sign(spoiled), read_sign(support))
    assert torch.equal(read_sign(support)[:, None], sign)


def test_one_action_only_is_enough():
    tasks = CARTPOLE.sample("id", 50, seed=SEED)
    worlds = TaskBatch(tasks, 1, seed=SEED, purpose="support")
    zeros = torch.zeros(50, 1)
    support = collect_rollout(worlds, lambda obs, reset: (zeros.long(), zeros), 6)
    assert torch.equal(read_sign(support).double(), tasks.values["sign"])


@pytest.mark.parametrize(("split", "least"), [("id", 499.0), ("ood", 480.0)])
def test_sign_probe_balances(split, least):
    tasks = CARTPOLE.sample(split, 40, seed=SEED)
    actor = sign_probe(_support(tasks), 2)
    assert _returns(tasks, actor).mean() > least


def test_order_of_tasks_changes_nothing():
    tasks = CARTPOLE.sample("ood", 6, seed=SEED)
    order = [4, 1, 5, 0, 3, 2]
    for make in (lambda t: expert_actor(t, 2), lambda t: sign_probe(_support(t), 2)):
        straight, shuffled = (
            _returns(tasks, make(tasks)),
            _returns(tasks[order], make(tasks[order])),
        )
        assert torch.equal(straight[order], shuffled)
