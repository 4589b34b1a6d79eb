"""Advantages over trials: known answers for each kind of end, and that the wrong one differs."""

import pytest
import torch

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
