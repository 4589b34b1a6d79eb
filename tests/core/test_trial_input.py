"""The inputs of an in-context policy: what is told when, and what must not be told."""

import math

import pytest
import torch

from ssm_metarl.config import PolicyConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.identification import Identification
from ssm_metarl.core.policy import build_policy
from ssm_metarl.core.trial_input import CHANGE, LEVEL, PLANT, TrialInput, squash, trial_starts
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.seeding import generator
from ssm_metarl.tasks.registry import FAMILIES

STEPS, OBS, ACTIONS_SEEN = 9, 2, 3
INPUT = TrialInput(OBS, 1, ACTIONS_SEEN, identifies=True)
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
    assert sum(sizes.values()) == x.shape[-1] == INPUT.size
    return dict(zip(sizes, x.split(tuple(sizes.values()), dim=-1), strict=True))


def test_each_step_is_told_what_came_before_it_in_its_episode():
    z, _, code, reward = columns()
    seen = parts(INPUT.of_sequences(z, LIMIT, code, reward, STARTS, TRIALS))
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
    seen = parts(INPUT.of_sequences(*columns(), STARTS, TRIALS))
    told = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 0, 8]).double()
    torch.testing.assert_close(seen["reward"][:, 0], torch.asinh(told))
    assert seen["flags"][:, 0].tolist() == TRIALS.tolist()
    assert seen["flags"][:, 1].tolist() == (STARTS & ~TRIALS).tolist()


def test_the_plant_is_what_least_squares_finds_with_the_actions_that_are_told():
    z, _, code, reward = columns()
    seen = parts(INPUT.of_sequences(z, LIMIT, code, reward, STARTS, TRIALS))
    before = torch.cat([z[:1], z[:-1]])
    rows = (x[:, None] for x in (z, before, seen["actions"], STARTS, TRIALS))
    found = Identification(1, OBS, ACTIONS_SEEN).update(*rows)[:, 0]
    torch.testing.assert_close(seen["plant"], squash(found, PLANT))
    assert seen["plant"][0].abs().max() == seen["plant"][7].abs().max() == 0


def test_step_by_step_is_the_same_as_all_at_once():
    z, _, code, reward = columns()
    whole = INPUT.of_sequences(z, LIMIT, code, reward, STARTS, TRIALS)
    before, actions, last = z[0], torch.zeros(ACTIONS_SEEN), torch.tensor(0.0)
    plants = Identification(1, OBS, ACTIONS_SEEN)
    for t in range(STEPS):
        if STARTS[t]:
            before, actions = z[t], torch.zeros(ACTIONS_SEEN)
        last = torch.tensor(0.0) if TRIALS[t] else last
        row = (x[None, None] for x in (z[t], before, actions, STARTS[t], TRIALS[t]))
        plant = plants.update(*row)[0, 0]
        x = INPUT.of_step(
            z[t], LIMIT, before, actions, plant, last, TRIALS[t], STARTS[t] & ~TRIALS[t]
        )
        torch.testing.assert_close(x, whole[t])
        before, actions, last = z[t], torch.cat([code[t], actions[:-1]]), reward[t]


def test_nothing_of_the_present_step_is_told_in_advance():
    z, _, code, reward = columns()
    other_code, other_reward = code.clone(), reward.clone()
    other_code[5:], other_reward[5:] = -other_code[5:], 0.0
    one = INPUT.of_sequences(z, LIMIT, code, reward, STARTS, TRIALS)
    other = INPUT.of_sequences(z, LIMIT, other_code, other_reward, STARTS, TRIALS)
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


@pytest.mark.parametrize("dead_time", [0, 1, 3])
def test_a_plant_is_known_with_an_action_more_than_its_dead_time_and_not_with_fewer(dead_time):
    """z_{t+1} = z_t + A z_t + B u_{t-d}, without noise."""
    rng, steps = generator(dead_time, "late"), 60
    a = torch.from_numpy(rng.uniform(-0.2, 0.2, (2, 2))) - 0.3 * torch.eye(2)  # stable
    b = torch.from_numpy(rng.uniform(0.1, 0.3, (1, 2)))
    code = torch.from_numpy(rng.choice([-1.0, 1.0], (steps, 1)))
    z = [torch.from_numpy(rng.normal(size=2))]
    for t in range(steps - 1):
        arrives = code[t - dead_time] if t >= dead_time else torch.zeros(1).double()
        z.append(z[-1] + z[-1] @ a + arrives @ b)
    z, start = torch.stack(z), torch.arange(steps) == 0

    def residual(actions_seen):
        """Largest error, over the last steps, of what least squares expects of the next one."""
        layout = TrialInput(2, 1, actions_seen, identifies=True)
        x = layout.of_sequences(z, LIMIT, code, torch.zeros(steps).double(), start, start)
        found = x[:, 4 + actions_seen : -3] * math.asinh(PLANT)
        found = (found.sinh() / PLANT).view(steps, 2 + actions_seen, 2)
        phi = torch.cat([z[:-1], x[1:, 4 : 4 + actions_seen]], dim=-1)
        expected = (phi[1:, None] @ found[1:-1])[:, 0]
        return (z[2:] - z[1:-1] - expected)[-20:].abs().max()

    assert residual(dead_time + 1) < 1e-4 * b.abs().max()
    if dead_time > 0:
        assert residual(dead_time) > 0.3 * b.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_least_squares_can_tell_of_every_familys_dead_time(name):
    family = FAMILIES[name]
    config = architecture(InContextConfig(), family)
    assert config.foresees and config.actions_seen >= family.dead_time + 1
    assert config.actions_seen >= 3
    policy = build_policy(config, seed=0, inner_lr=0.1)
    assert policy.trial_input.plant_rows == len(config.obs_scale) + (
        config.actions_seen * policy.action_space.code_dim
    )


def test_weights_that_go_on_see_as_many_actions_as_before():
    family = FAMILIES["cartpole_scrambled"]
    older = PolicyConfig(in_context=True, obs_scale=family.obs_scale, num_actions=2)
    assert older.actions_seen == 3 < family.dead_time + 1
    config = InContextConfig()
    assert architecture(config, family, like=older).actions_seen == 3
    assert architecture(config, family).actions_seen == 4


def test_without_the_plant_the_rest_is_the_same_and_grows_with_the_observations_alone():
    short = TrialInput(OBS, 1, ACTIONS_SEEN, identifies=False)
    whole, rest = (i.of_sequences(*columns(), STARTS, TRIALS) for i in (INPUT, short))
    assert torch.equal(rest, torch.cat([whole[:, :7], whole[:, -3:]], dim=-1))
    factors = torch.tensor([1.0, -1.0])
    assert torch.equal(
        short.reflection(factors), torch.tensor([1.0, -1, 1, -1, -1, -1, -1, 1, 1, 1])
    )
    assert TrialInput(105, 8, 3, identifies=False).size == 2 * 105 + 3 * 8 + 3
