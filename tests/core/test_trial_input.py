"""The inputs of an in-context policy: what is told when, and what must not be told."""

import math

import pytest
import torch

from ssm_metarl.core.identification import Identification
from ssm_metarl.core.trial_input import (
    ACTIONS_SEEN,
    CHANGE,
    LEVEL,
    PLANT,
    squash,
    step_input,
    trial_input_dim,
    trial_inputs,
    trial_starts,
)
from ssm_metarl.seeding import generator

STEPS, OBS = 9, 2
# Episodes start at 0, 3 and 7; a trial has two of them.
LIMIT = torch.tensor([0.5, torch.inf]).double()
STARTS = torch.tensor([t in (0, 3, 7) for t in range(STEPS)])
TRIALS = torch.tensor([t in (0, 7) for t in range(STEPS)])


def columns():
    rng = generator(0, "trial")
    z = torch.from_numpy(rng.uniform(-1, 1, (STEPS, OBS)))
    code = torch.from_numpy(rng.choice([-1.0, 1.0], (STEPS, 1)))
    return z, LIMIT, code, torch.arange(1.0, STEPS + 1).double()


def parts(x):
    """The named parts of an input (..., I) for two observations and one number an action."""
    sizes = {"level": 2, "change": 2, "actions": 3, "plant": 10, "reward": 1, "flags": 2}
    assert sum(sizes.values()) == x.shape[-1] == trial_input_dim(OBS, 1)
    return dict(zip(sizes, x.split(tuple(sizes.values()), dim=-1), strict=True))


def test_each_step_is_told_what_came_before_it_in_its_episode():
    z, _, code, reward = columns()
    seen = parts(trial_inputs(z, LIMIT, code, reward, STARTS, TRIALS))
    u = code[:, 0]
    expected = [
        [0, 0, 0], [u[0], 0, 0], [u[1], u[0], 0],  # the first episode
        [0, 0, 0], [u[3], 0, 0], [u[4], u[3], 0], [u[5], u[4], u[3]],  # the second
        [0, 0, 0], [u[7], 0, 0],
    ]  # fmt: skip
    assert torch.equal(seen["actions"], torch.tensor(expected))
    torch.testing.assert_close(seen["level"], squash(z.clamp(-LIMIT, LIMIT), LEVEL))
    assert (z.abs() > LIMIT).any()
    change = squash(z[1:] - z[:-1], CHANGE) * ~STARTS[1:, None]
    torch.testing.assert_close(seen["change"], torch.cat([torch.zeros(1, OBS), change]))


def test_rewards_cross_an_episodes_end_and_not_a_trials():
    seen = parts(trial_inputs(*columns(), STARTS, TRIALS))
    told = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 0, 8]).double()
    torch.testing.assert_close(seen["reward"][:, 0], torch.asinh(told))
    assert seen["flags"][:, 0].tolist() == TRIALS.tolist()
    assert seen["flags"][:, 1].tolist() == (STARTS & ~TRIALS).tolist()


def test_the_plant_is_what_least_squares_finds_with_the_actions_that_are_told():
    z, _, code, reward = columns()
    seen = parts(trial_inputs(z, LIMIT, code, reward, STARTS, TRIALS))
    before = torch.cat([z[:1], z[:-1]])
    rows = (x[:, None] for x in (z, before, seen["actions"], STARTS, TRIALS))
    found = Identification(1, OBS, ACTIONS_SEEN).update(*rows)[:, 0]
    torch.testing.assert_close(seen["plant"], squash(found, PLANT))
    assert seen["plant"][0].abs().max() == seen["plant"][7].abs().max() == 0


def test_step_by_step_is_the_same_as_all_at_once():
    z, _, code, reward = columns()
    whole = trial_inputs(z, LIMIT, code, reward, STARTS, TRIALS)
    before, actions, last = z[0], torch.zeros(ACTIONS_SEEN), torch.tensor(0.0)
    plants = Identification(1, OBS, ACTIONS_SEEN)
    for t in range(STEPS):
        if STARTS[t]:
            before, actions = z[t], torch.zeros(ACTIONS_SEEN)
        last = torch.tensor(0.0) if TRIALS[t] else last
        row = (x[None, None] for x in (z[t], before, actions, STARTS[t], TRIALS[t]))
        plant = plants.update(*row)[0, 0]
        x = step_input(z[t], LIMIT, before, actions, plant, last, TRIALS[t], STARTS[t] & ~TRIALS[t])
        torch.testing.assert_close(x, whole[t])
        before, actions, last = z[t], torch.cat([code[t], actions[:-1]]), reward[t]


def test_nothing_of_the_present_step_is_told_in_advance():
    z, _, code, reward = columns()
    other_code, other_reward = code.clone(), reward.clone()
    other_code[5:], other_reward[5:] = -other_code[5:], 0.0
    one = trial_inputs(z, LIMIT, code, reward, STARTS, TRIALS)
    other = trial_inputs(z, LIMIT, other_code, other_reward, STARTS, TRIALS)
    assert torch.equal(one[:6], other[:6])
    assert not torch.equal(one[6], other[6])


def test_squash_keeps_the_ends_and_opens_the_middle():
    ends = torch.tensor([-1.0, 0.0, 1.0]).double()
    torch.testing.assert_close(squash(ends, 25.0), ends)
    slope = squash(torch.tensor(1e-4).double(), 25.0) / 1e-4
    assert slope.item() == pytest.approx(25 / math.asinh(25), rel=1e-3)


@pytest.mark.parametrize(
    ("episodes", "expected"), [(None, {0}), (1, {0, 3, 7}), (2, {0, 7}), (3, {0})]
)
def test_trials_start_after_so_many_episodes(episodes, expected):
    assert set(trial_starts(STARTS, episodes).nonzero()[:, 0].tolist()) == expected


def test_environments_are_counted_apart():
    starts = torch.stack([STARTS, torch.tensor([t == 0 for t in range(STEPS)])], dim=1)
    assert trial_starts(starts, 2).nonzero().tolist() == [[0, 0], [0, 1], [7, 0]]
