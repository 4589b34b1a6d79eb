"""The contract that every kind of worlds keeps, and which kind a family gets."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.env_runner.gymnasium_worlds import GymnasiumWorlds
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily, Uniform

FAMILIES = {
    "TaskBatch": CARTPOLE,
    "GymnasiumWorlds": TaskFamily.from_gymnasium("CartPole-v1", {"force_mag": Uniform(5, 15)}),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def worlds_of(family, num_tasks=3, num_envs=2, **options):
    tasks = options.pop("tasks", None) or family.sample("id", num_tasks, seed=0)
    return make_worlds(tasks, num_envs, **({"seed": 0, "purpose": "test"} | options))


def rightwards(worlds):
    return torch.ones(worlds.num_tasks, worlds.num_envs, dtype=torch.int64)


def test_each_family_gets_its_kind():
    for name, family in FAMILIES.items():
        assert type(worlds_of(family)).__name__ == name


def test_shapes_and_types(family):
    worlds = worlds_of(family)
    assert (worlds.num_tasks, worlds.num_envs, worlds.obs_dim) == (3, 2, 4)
    assert worlds.action_space == Discrete(2)
    obs = worlds.reset()
    step = worlds.step(rightwards(worlds))
    for tensor, dtype, shape in (
        (obs, torch.float32, (3, 2, 4)),
        (step.obs, torch.float32, (3, 2, 4)),
        (step.reward, torch.float32, (3, 2)),
        (step.terminated, torch.bool, (3, 2)),
        (step.truncated, torch.bool, (3, 2)),
    ):
        assert (tensor.dtype, tensor.shape) == (dtype, shape)


def test_what_was_handed_out_is_not_changed_by_later_steps(family):
    worlds = worlds_of(family)
    obs = worlds.reset()
    step = worlds.step(rightwards(worlds))
    copies = [x.clone() for x in (obs, *step)]
    for _ in range(20):
        worlds.step(rightwards(worlds))
    worlds.reset()
    for tensor, copy in zip((obs, *step), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_an_ended_world_stays_at_its_final_observation_until_it_is_reset(family):
    worlds = worlds_of(family)
    worlds.reset()
    ended = torch.zeros(3, 2, dtype=torch.bool)
    final = torch.zeros(3, 2, 4)
    ends = 0
    for _ in range(40):
        step = worlds.step(rightwards(worlds))
        assert torch.equal(step.obs[ended], final[ended])
        assert (step.reward[ended] == 0).all()
        assert (step.reward[~ended] == 1).all()  # the last step's reward counts
        assert not step.terminated[ended].any()
        assert not step.truncated.any()
        final = torch.where(step.terminated[..., None], step.obs, final)
        ends += int(step.terminated.sum())
        ended |= step.terminated
    assert ends == 6
    # The final observation, not the next episode's first one, within 0.05 of upright.
    assert ((final[..., 2].abs() > 0.2) | (final[..., 0].abs() > 2.4)).all()
    assert (worlds.reset().abs() <= 0.05).all()
    assert (worlds.step(rightwards(worlds)).reward == 1).all()


def test_reset_touches_only_the_masked_worlds(family):
    worlds, untouched = worlds_of(family), worlds_of(family)
    mask = torch.tensor([[True, False], [False, False], [False, True]])
    for w in (worlds, untouched):
        w.reset()
        for _ in range(3):
            before = w.step(rightwards(w)).obs
    after = worlds.reset(mask)
    assert torch.equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).all()
    assert (after[mask].abs() <= 0.05).all()
    one, other = (w.step(rightwards(w)).obs for w in (worlds, untouched))
    assert torch.equal(one[~mask], other[~mask])
    assert torch.equal(worlds.reset(torch.zeros_like(mask)), one)


def test_reset_restarts_the_clock_of_the_masked_worlds_only(family):
    worlds = worlds_of(family, max_episode_steps=4)
    worlds.reset()
    for _ in range(2):
        worlds.step(rightwards(worlds))
    mask = torch.tensor([[True, False]] * 3)
    worlds.reset(mask)
    cut = torch.stack([worlds.step(rightwards(worlds)).truncated for _ in range(4)])
    expected = torch.zeros(4, 3, 2, dtype=torch.bool)
    expected[1, :, 1] = True  # two steps before the reset of the others
    expected[3, :, 0] = True
    assert torch.equal(cut, expected)


def test_the_time_limit_truncates_and_does_not_terminate(family):
    worlds = worlds_of(family, max_episode_steps=5)
    worlds.reset()
    steps = [worlds.step(rightwards(worlds)) for _ in range(7)]
    truncated = torch.stack([s.truncated for s in steps])
    assert truncated[4].all()
    assert truncated.sum() == 6
    assert not torch.stack([s.terminated for s in steps]).any()


def test_an_episode_that_fails_at_the_limit_is_terminated_and_not_truncated(family):
    unlimited = worlds_of(family, num_tasks=1, num_envs=1)
    unlimited.reset()
    length = next(t for t in range(1, 100) if unlimited.step(rightwards(unlimited)).terminated)
    worlds = worlds_of(family, num_tasks=1, num_envs=1, max_episode_steps=length)
    worlds.reset()
    for _ in range(length - 1):
        assert not worlds.step(rightwards(worlds)).terminated
    step = worlds.step(rightwards(worlds))
    assert bool(step.terminated)
    assert not bool(step.truncated)


def rollout_of(family, tasks):
    worlds = worlds_of(family, tasks=tasks)
    actor = random_actor(worlds, TaskNoise(0, "test-action", tasks.indices), 40)
    return collect_rollout(worlds, actor, 40, autoreset=True)


def test_a_task_meets_the_same_whatever_stands_beside_it(family):
    tasks = family.sample("id", 5, seed=0)
    together = rollout_of(family, tasks)
    assert together.terminated.any()  # so that resets are compared as well
    order = [3, 0, 4]
    reordered = rollout_of(family, tasks[order])
    alone = rollout_of(family, tasks[[3]])
    for name in together.__dataclass_fields__:
        values = getattr(together, name)
        assert torch.equal(getattr(reordered, name), values[:, order]), name
        assert torch.equal(getattr(alone, name), values[:, [3]]), name
    assert not torch.equal(together.obs[:, 0], together.obs[:, 1])


def test_seed_and_purpose_name_the_initial_states(family):
    first = worlds_of(family).reset()
    assert torch.equal(worlds_of(family).reset(), first)
    assert (worlds_of(family, seed=1).reset() != first).all()
    assert (worlds_of(family, purpose="query").reset() != first).all()
    worlds = worlds_of(family)
    worlds.reset()
    assert (worlds.reset() != first).all()


def test_global_generators_are_untouched(family):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    rollout_of(family, family.sample("id", 2, seed=0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_pushes_need_batched_physics():
    message = r"push_probability: expected 0 for 'CartPole-v1'.* received 0.03"
    with pytest.raises(ValueError, match=message):
        worlds_of(FAMILIES["GymnasiumWorlds"], push_probability=0.03)
    with pytest.raises(ValueError, match=r"spread_starts: expected 0 .* received 0.5"):
        worlds_of(FAMILIES["GymnasiumWorlds"], spread_starts=0.5)


def test_a_time_limit_is_at_least_one_step(family):
    assert worlds_of(family).max_episode_steps == 500
    assert worlds_of(family, max_episode_steps=1).max_episode_steps == 1
    with pytest.raises(ValueError, match="max_episode_steps: expected at least 1, received 0"):
        worlds_of(family, max_episode_steps=0)


def test_each_kind_refuses_the_other_kinds_family():
    with pytest.raises(ValueError, match="expected a family with batched physics"):
        TaskBatch(FAMILIES["GymnasiumWorlds"].task(), 1, seed=0, purpose="test")
    with pytest.raises(ValueError, match="expected a family that steps Gymnasium"):
        GymnasiumWorlds(CARTPOLE.task(), 1, seed=0, purpose="test")


def test_the_spaces_of_a_family():
    assert CARTPOLE.spaces == (4, Discrete(2))
    pendulum = TaskFamily.from_gymnasium("Pendulum-v1", {})
    assert pendulum.spaces == (3, Continuous(1, -2.0, 2.0))
    with pytest.raises(ValueError, match=r"expected batched physics, .*, received neither"):
        TaskFamily(name="nothing", parameters=())
