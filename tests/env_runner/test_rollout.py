"""Collecting rollouts, on worlds whose every number is known."""

from __future__ import annotations

import math
import re

import pytest
import torch

from ssm_metarl.action_space import Discrete
from ssm_metarl.env_runner.rollout import CHECK_EVERY, collect_rollout, random_actor
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.types import EnvStep, Rollout


class Countdown:
    """World (0, n) ends after ``lengths[n]`` steps and shows 100 * episode + step."""

    num_tasks = 1
    obs_dim = 1
    action_space = Discrete(2)
    device = torch.device("cpu")

    def __init__(self, lengths, truncates=False):
        self.num_envs = len(lengths)
        self.lengths = torch.tensor([lengths])
        self.truncates = truncates
        self.episode = torch.zeros(1, self.num_envs, dtype=torch.int64)
        self.count = self.lengths.clone()

    def obs(self):
        return (100.0 * self.episode + self.count)[..., None]

    def reset(self, mask=None):
        mask = torch.ones_like(self.count, dtype=torch.bool) if mask is None else mask
        self.episode = self.episode + mask
        self.count = torch.where(mask, 0, self.count)
        return self.obs()

    def step(self, action):
        running = self.count < self.lengths
        self.count = self.count + running
        ended = running & (self.count == self.lengths)
        no = torch.zeros_like(ended)
        terminated, truncated = (no, ended) if self.truncates else (ended, no)
        return EnvStep(self.obs(), running.float(), terminated, truncated)


class CountingActor:
    """Always 1; remembers the flags that it was told."""

    def __init__(self):
        self.resets = []

    def __call__(self, obs, reset):
        self.resets.append(reset)
        return torch.ones(obs.shape[:2], dtype=torch.int64), torch.full(obs.shape[:2], -0.5)


@pytest.mark.parametrize("truncates", [False, True])
def test_single_episodes_are_masked_after_their_end(truncates):
    actor = CountingActor()
    rollout = collect_rollout(Countdown([2, 5, 40], truncates), actor, 10)
    assert rollout.num_steps == 10
    assert rollout.mask[:, 0].sum(0).tolist() == [2, 5, 10]
    assert rollout.mask[:, 0, 1].tolist() == [True] * 5 + [False] * 5
    assert rollout.steps_taken().tolist() == [17]
    assert rollout.episode_returns().tolist() == [[2, 5, 10]]
    assert rollout.reset[0].all()
    assert not rollout.reset[1:].any()
    ends, others = rollout.terminated, rollout.truncated
    if truncates:
        ends, others = others, ends
    assert ends[:, 0].nonzero().tolist() == [[1, 0], [4, 1]]
    assert not others.any()
    assert rollout.next_obs[4, 0, 1].item() == 105


def test_autoreset_starts_the_next_episode_and_keeps_the_final_observation():
    actor = CountingActor()
    rollout = collect_rollout(Countdown([2, 3]), actor, 7, autoreset=True)
    assert rollout.num_steps == 7
    assert rollout.mask.all()
    assert rollout.reset[:, 0, 0].tolist() == [True, False, True, False, True, False, True]
    assert rollout.reset[:, 0, 1].tolist() == [True, False, False, True, False, False, True]
    assert rollout.terminated[:, 0, 1].tolist() == [False, False, True, False, False, True, False]
    assert rollout.obs[:, 0, 1, 0].tolist() == [100, 101, 102, 200, 201, 202, 300]
    assert rollout.next_obs[:, 0, 1, 0].tolist() == [101, 102, 103, 201, 202, 203, 301]
    assert torch.equal(torch.stack(actor.resets), rollout.reset)
    assert (rollout.log_prob == -0.5).all()


def test_collection_stops_once_every_episode_has_ended():
    longest = CHECK_EVERY + 1
    rollout = collect_rollout(Countdown([1, longest]), CountingActor(), 1000)
    assert rollout.num_steps == 2 * CHECK_EVERY
    assert rollout.steps_taken().item() == 1 + longest
    running_on = collect_rollout(Countdown([1, 9]), CountingActor(), 50, autoreset=True)
    assert running_on.num_steps == 50


def test_no_gradient_is_recorded():
    weight = torch.ones((), requires_grad=True)

    def actor(obs, reset):
        return torch.ones(obs.shape[:2], dtype=torch.int64), obs[..., 0] * weight

    rollout = collect_rollout(Countdown([3]), actor, 3)
    assert not rollout.log_prob.requires_grad


def test_random_actors_are_uniform_and_belong_to_the_task():
    worlds = Countdown([100] * 500)

    def actions(indices):
        act = random_actor(worlds, TaskNoise(0, "test", indices), 4)
        obs, reset = torch.zeros(len(indices), 500, 1), torch.zeros(len(indices), 500).bool()
        steps = [act(obs, reset) for _ in range(4)]
        return torch.stack([a for a, _ in steps]), torch.stack([p for _, p in steps])

    action, log_prob = actions([3, 8])
    assert action.double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert log_prob.unique().item() == pytest.approx(-math.log(2))
    assert torch.equal(actions([8])[0][:, 0], action[:, 1])
    assert not torch.equal(action[:, 0], action[:, 1])


def tensors(**changes):
    flag = torch.zeros(5, 3, 2, dtype=torch.bool)
    number = torch.zeros(5, 3, 2)
    return {
        "obs": torch.zeros(5, 3, 2, 4),
        "action": number.long(),
        "reward": number,
        "next_obs": torch.zeros(5, 3, 2, 4),
        "terminated": flag,
        "truncated": flag,
        "reset": flag,
        "mask": flag,
        "log_prob": number,
    } | changes


@pytest.mark.parametrize("name", sorted(set(tensors()) - {"obs"}))
def test_a_rollout_refuses_a_mismatch(name):
    Rollout(**tensors())  # well-formed: the mismatch alone is what is refused
    wrong = tensors()[name][:4]
    message = f"{name}: expected leading shape (T, K, N) = (5, 3, 2), received {tuple(wrong.shape)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Rollout(**tensors(**{name: wrong}))


def test_a_rollout_refuses_observations_without_a_task_axis():
    with pytest.raises(ValueError, match=re.escape("expected shape (T, K, N, O), received (5, 3")):
        Rollout(**tensors(obs=torch.zeros(5, 3, 4)))


def test_one_task_of_a_rollout():
    reward = torch.arange(30.0).reshape(5, 3, 2)
    rollout = Rollout(**tensors(reward=reward)).task(1)
    assert (rollout.num_steps, rollout.num_tasks, rollout.num_envs) == (5, 1, 2)
    assert torch.equal(rollout.reward, reward[:, 1:2])


@pytest.mark.parametrize("made_for", [(1, 1), (8, 2)])
def test_an_actor_of_other_worlds_is_refused_by_name(made_for):
    class Sized:
        num_tasks, num_envs = made_for

        def __call__(self, obs, reset):
            raise AssertionError("it was asked")

    with pytest.raises(ValueError) as error:
        collect_rollout(Countdown([3, 3]), Sized(), 4)
    assert str(error.value) == (
        f"actor: expected one for (K, N) = (1, 2) environments, received Sized made for {made_for}"
    )
    with pytest.raises(ValueError, match="num_steps: expected a whole number of at least 1"):
        collect_rollout(Countdown([3]), Sized(), 0)
