"""Advantages: known answers for each kind of end, over episodes and trials, and wrong variants."""

import pytest
import torch

from planted import planted
from ssm_metarl.objectives import gae
from ssm_metarl.objectives.gae import episode_advantage, trial_advantage
from ssm_metarl.types import Rollout

GAMMA, STEPS = 0.9, 7


def rollout(terminated=(), truncated=(), reward=1.0):
    """One environment; the steps at which episodes end, one way or the other."""

    def at(steps):
        return torch.tensor([t in steps for t in range(STEPS)])[:, None, None]

    ended = at((*terminated, *truncated))
    return Rollout(
        obs=torch.zeros(STEPS, 1, 1, 1),
        action=torch.zeros(STEPS, 1, 1, dtype=torch.int64),
        reward=torch.full((STEPS, 1, 1), reward, dtype=torch.float64),
        next_obs=torch.zeros(STEPS, 1, 1, 1),
        terminated=at(terminated),
        truncated=at(truncated),
        reset=torch.cat([torch.ones(1, 1, 1, dtype=torch.bool), ended[:-1]]),
        mask=torch.ones(STEPS, 1, 1, dtype=torch.bool),
        log_prob=torch.zeros(STEPS, 1, 1),
    )


def advantage(data, value, trial_steps=(0,), *, episode_gamma=1.0, gae_lambda=1.0):
    starts = torch.tensor([t in trial_steps for t in range(STEPS)])[:, None, None]
    result = trial_advantage(
        data, value, starts, gamma=GAMMA, episode_gamma=episode_gamma, gae_lambda=gae_lambda
    )
    return result[:, 0, 0].tolist()


def returns(value_after, factors):
    """Discounted rewards of 1, backwards from a value, one factor a step."""
    result = []
    for factor in reversed(factors):
        value_after = 1 + factor * value_after
        result.append(value_after)
    return result[::-1]


VALUE = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]).double()[:, None, None]


def expected(to_go):
    return pytest.approx([g - v for g, v in zip(to_go, VALUE.flatten().tolist(), strict=False)])


def test_without_an_end_it_is_generalized_advantage_estimation():
    data = rollout()
    following = torch.cat([VALUE[1:], torch.zeros_like(VALUE[:1])])
    usual = episode_advantage(data, VALUE, following, gamma=GAMMA, gae_lambda=1.0)
    # Both bootstrap from the value at the last step.
    usual = usual[:-1] - (usual[-1] * GAMMA ** torch.arange(6, 0, -1)[:, None, None])
    assert advantage(data, VALUE) == pytest.approx(usual.flatten().tolist())


def test_an_episodes_end_inside_a_trial_is_a_step_like_any_other():
    assert advantage(rollout(terminated=(2,)), VALUE) == expected(returns(2.0, [GAMMA] * 6))


def test_episode_gamma_discounts_what_comes_after_an_episode():
    factors = [GAMMA, GAMMA, GAMMA * 0.5, GAMMA, GAMMA, GAMMA]
    got = advantage(rollout(terminated=(2,)), VALUE, episode_gamma=0.5)
    assert got == expected(returns(2.0, factors))


def test_a_trials_end_cuts():
    factors = [GAMMA, GAMMA, 0.0, GAMMA, GAMMA, GAMMA]
    assert advantage(rollout(terminated=(2,)), VALUE, (0, 3)) == expected(returns(2.0, factors))


@pytest.mark.parametrize("trial_steps", [(0,), (0, 3)])
def test_a_truncated_episode_would_have_gone_on(trial_steps):
    got = advantage(rollout(truncated=(2,)), VALUE, trial_steps)
    value = VALUE.flatten().tolist()
    first = returns(value[2], [GAMMA] * 3)
    assert got == expected(first + returns(2.0, [GAMMA] * 3))


def test_lambda_zero_is_one_step():
    got = advantage(rollout(terminated=(2,)), VALUE, episode_gamma=0.5, gae_lambda=0.0)
    value = VALUE.flatten().tolist()
    factors = [GAMMA, GAMMA, GAMMA * 0.5, GAMMA, GAMMA, GAMMA]
    assert got == pytest.approx([1 + factors[t] * value[t + 1] - value[t] for t in range(6)])


def test_right_values_leave_no_advantage():
    # A trial of two episodes of three steps, then another trial: three rewards are left, and so on.
    def left(n):
        return sum(GAMMA**i for i in range(n))

    value = torch.tensor([left(n) for n in (6, 5, 4, 3, 2, 1, 6)], dtype=torch.float64)
    value = value[:, None, None]
    data = rollout(terminated=(2, 5))
    assert advantage(data, value, (0, 6)) == pytest.approx([0.0] * 6)
    assert max(advantage(data, value, (0,))) > 1  # with the trial's end missed, it is not so


# By hand, with a fault in each line.

HALF = 0.5  # gamma and lambda
REWARD = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()[:, None, None]
WORTH = torch.tensor([1.0, 3.0, 5.0, 7.0]).double()[:, None, None]
LED_TO = torch.tensor([3.0, 11.0, 7.0, 13.0]).double()[:, None, None]


def flags(*steps):
    return torch.tensor([t in steps for t in range(4)])[:, None, None]


def check_ends(module):
    """Step 1 terminates, or is cut with something worth 11 to come; then two steps more."""
    last = 8 + HALF * 13 - 7  # 7.5
    third = 4 + HALF * 7 - 5 + HALF * HALF * last  # 2.5 + 1.875
    options = {"gamma": HALF, "gae_lambda": HALF}
    for terminated, second in ((flags(1), 2 - 3), (flags(), 2 + HALF * 11 - 3)):
        first = 1 + HALF * 3 - 1 + HALF * HALF * second
        ends = {"terminated": terminated, "ended": flags(1, 3)}
        received = module.gae(REWARD, WORTH, LED_TO, **ends, **options)
        assert received.flatten().tolist() == pytest.approx([first, second, third, last])


def check_mask(module):
    """What stands where there was no step, NaN, reaches no other step."""
    taken = flags(0, 1)
    spoiled = torch.where(taken, REWARD, torch.nan)
    received = module.gae(
        spoiled, WORTH, LED_TO, terminated=flags(), ended=flags(), gamma=HALF, gae_lambda=HALF,
        taken=taken,
    )  # fmt: skip
    second = 2 + HALF * 11 - 3
    first = 1 + HALF * 3 - 1 + HALF * HALF * second
    assert received.flatten().tolist() == pytest.approx([first, second, 0.0, 0.0])


def check_episode(module):
    """Two episodes in a row: the first terminates, the second is cut by the recording's end."""
    data = rollout(terminated=(2,), reward=2.0)
    following = torch.cat([VALUE[1:], VALUE[:1]])
    received = module.episode_advantage(data, VALUE, following, gamma=GAMMA, gae_lambda=1.0)
    value, to_go = VALUE.flatten().tolist(), []
    after = {6: value[0], 2: 0.0}  # of what follows each episode's last step
    for t in reversed(range(STEPS)):
        to_go.append(2 + GAMMA * after.get(t, to_go[-1] if to_go else 0.0))
    expected_all = [g - v for g, v in zip(reversed(to_go), value, strict=True)]
    assert received.flatten().tolist() == pytest.approx(expected_all)


def check_trial(module):
    """A trial of a terminated and a truncated episode, then another trial."""
    data = rollout(terminated=(1,), truncated=(3,))
    starts = torch.tensor([t in (0, 5) for t in range(STEPS)])[:, None, None]
    received = module.trial_advantage(
        data, VALUE, starts, gamma=GAMMA, episode_gamma=HALF, gae_lambda=1.0
    )
    value = VALUE.flatten().tolist()
    fourth = 1 + GAMMA * value[3]  # would have gone on
    second = 1 + GAMMA * HALF * (1 + GAMMA * fourth)
    to_go = [1 + GAMMA * second, second, 1 + GAMMA * fourth, fourth, 1.0, 1 + GAMMA * value[6]]
    assert received.flatten().tolist() == expected(to_go)


CHECKS = {"ends": check_ends, "mask": check_mask, "episode": check_episode, "trial": check_trial}
FAULTS = {
    "value subtracted": ("ends", "alive * following - value", "alive * following + value"),
    "sign flipped": ("ends", "delta = reward + gamma", "delta = reward - gamma"),
    "wrong value": ("ends", "gamma * alive * following", "gamma * alive * value"),
    "termination bootstraps": (
        "ends",
        "alive, goes_on = (~terminated)",
        "alive, goes_on = (~ended)",
    ),
    "no end of the sum": ("ends", "(~ended).to(", "torch.ones_like(ended).to("),
    "lambda left out": ("ends", "gamma * gae_lambda * goes_on", "gamma * goes_on"),
    "gamma left out": ("ends", "gamma * gae_lambda * goes_on", "gae_lambda * goes_on"),
    "mask ignored": ("mask", "if taken is not None:", "if False:"),
    "mask inverted": ("mask", "delta = torch.where(taken", "delta = torch.where(~taken"),
    "episodes run on": ("episode", "ended=~continues(rollout)", "ended=rollout.truncated"),
    "a cut terminates": (
        "episode",
        "terminated=rollout.terminated",
        "terminated=~continues(rollout)",
    ),
    "an episode's end is a step": ("trial", "gamma * episode_gamma), gamma", "gamma), gamma"),
    "an episode's end cuts": (
        "trial",
        "ended=last | truncated",
        "ended=last | rollout.terminated[:-1]",
    ),
    "trials run on": ("trial", "ended=last | truncated", "ended=truncated"),
    "a truncation ends all": (
        "trial",
        "terminated=last & ~truncated",
        "terminated=last | truncated",
    ),
    "a truncation runs on": ("trial", "ended=last | truncated", "ended=last"),
    "the next episode follows a cut": (
        "trial",
        "torch.where(truncated, value[:-1],",
        "torch.where(truncated, value[1:],",
    ),
}


@pytest.mark.parametrize("check", CHECKS)
def test_known_answers(check):
    CHECKS[check](gae)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(fault, monkeypatch):
    check, right, wrong = FAULTS[fault]
    with pytest.raises(AssertionError):
        CHECKS[check](planted(monkeypatch, gae, right, wrong))
