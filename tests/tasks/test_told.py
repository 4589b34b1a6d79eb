"""Told families: the same tasks, the same worlds, and what they tell."""

from __future__ import annotations

import math

import pytest
import torch

from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.registry import FAMILIES, TOLD, family_of_env
from ssm_metarl.tasks.task_family import Split, TaskFamily, Tasks
from ssm_metarl.tasks.told import told
from ssm_metarl.types import Rollout

PLAIN = [CARTPOLE, CARTPOLE_SCRAMBLED]
every_family = pytest.mark.parametrize("plain", PLAIN, ids=lambda family: family.name)


def random_steps(tasks: Tasks) -> Rollout:
    worlds = make_worlds(tasks, 2, seed=5, purpose="test", push_probability=0.2, spread_starts=0.5)
    actor = random_actor(worlds, TaskNoise(5, "test-action", tasks.indices), 30)
    return collect_rollout(worlds, actor, 30, autoreset=True)


@every_family
@pytest.mark.parametrize("split", ["train", "id", "ood"])
def test_task_k_is_task_k_of_the_plain_family(plain: TaskFamily, split: Split) -> None:
    here, there = (f.sample(split, 20, seed=77, start=3) for f in (told(plain), plain))
    assert here.indices == there.indices
    assert here.as_dicts() == there.as_dicts()


@every_family
def test_its_worlds_are_the_plain_ones_and_tell_the_same_at_every_step(plain: TaskFamily) -> None:
    family = told(plain)
    size = plain.dynamics.obs_dim
    here, there = (random_steps(f.sample("id", 6, seed=77)) for f in (family, plain))
    assert torch.equal(here.obs[..., :size], there.obs)
    assert torch.equal(here.next_obs[..., :size], there.next_obs)
    assert torch.equal(here.action, there.action) and torch.equal(here.reset, there.reset)
    codes = here.obs[..., size:]
    assert codes.shape[-1] == family.told_dims
    assert (codes == codes[0, :, 0][None, :, None]).all()
    assert len(codes[0, :, 0].unique(dim=0)) == 6


@every_family
def test_codes_fill_minus_one_to_one_over_the_training_range(plain: TaskFamily) -> None:
    tasks = told(plain).sample("train", 2000, seed=0)
    codes = make_worlds(tasks, 1, seed=0, purpose="test").reset()[:, 0, plain.dynamics.obs_dim :]
    assert codes.abs().max() <= 1 + 1e-6
    assert (codes.amax(dim=0) > 0.98).all()
    assert ((codes.amin(dim=0) < -0.98) | (codes.amin(dim=0) == 0)).all()


def test_known_codes() -> None:
    family = told(CARTPOLE_SCRAMBLED)
    named = dict(zip(family.obs_names, range(len(family.obs_names)), strict=True))
    values = {"force": 5.0, "sign": -1.0, "gain_x": 1.0, "order": 7.0, "delay": 1.0}
    obs = make_worlds(family.task(values), 1, seed=0, purpose="test").reset()[0, 0]

    def at(name: str) -> float:
        return float(obs[named[name]])

    assert at("told_force") == pytest.approx(-1)
    assert at("told_length") == pytest.approx(math.log(0.5 / 0.25) / math.log(3) * 2 - 1)
    assert at("told_sign") == -1
    assert at("told_gain_x") == pytest.approx(0)  # half-way between 1/2 and 2
    assert at("told_delay") == 0
    assert [at(f"told_order_{i}") for i in range(24)] == [float(i == 7) for i in range(24)]
    assert len(obs) == 4 + 5 + 24 + 4 + 4 + 1


def test_names_lead_to_told_families_which_are_not_offered() -> None:
    assert list(TOLD) == [f"{name}_told" for name in FAMILIES]
    assert not set(TOLD) & set(FAMILIES)
    assert family_of_env("cartpole_told") is TOLD["cartpole_told"]
    assert Environment("cartpole_told", seed=3).reset()[0].shape == (9,)


def test_what_cannot_be_told_is_refused() -> None:
    gymnasium = TaskFamily.from_gymnasium("Pendulum-v1", {})
    for family in (gymnasium, told(CARTPOLE)):
        with pytest.raises(ValueError, match="told: expected a family with batched physics"):
            told(family)


@every_family
def test_its_parameters_still_matter(plain: TaskFamily) -> None:
    told(plain).verify()
