"""Advantages: ends that terminate, ends that truncate, and steps that were never taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssm_metarl.objectives import returns
from ssm_metarl.objectives.gae import episode_advantage
from ssm_metarl.objectives.returns import (
    DUAL_FROM,
    MOST_PAIRED,
    RIDGE,
    advantages,
    baseline_features,
    fit_linear_baseline,
    normalized,
)
from ssm_metarl.types import Rollout

MakeRollout = Callable[..., Rollout]
GAMMA = 0.9


def cut_every(steps: int, length: int) -> tuple[Tensor, Tensor]:
    """Ends and starts (steps, 1, 1) of episodes of ``length`` steps that follow one another."""
    t = torch.arange(steps)[:, None, None]
    return t % length == length - 1, t % length == 0


def reward_of_one(make_rollout: MakeRollout, end: str) -> Rollout:
    """Reward 1 in the only state there is, in episodes of 25 steps."""
    ended, started = cut_every(100, 25)
    state = torch.full((100, 1, 1, 2), 0.5)
    return make_rollout(
        100, obs=state, next_obs=state, reward=torch.ones(100, 1, 1), reset=started, **{end: ended}
    )


def naive_advantage(
    rollout: Rollout, value: Tensor, next_value: Tensor, gamma: float, lam: float
) -> Tensor:
    """The sum of (gamma lambda)^l delta_{t+l} to the end of each piece of an episode."""
    out = torch.zeros_like(value)
    steps, tasks, envs = value.shape
    for k in range(tasks):
        for n in range(envs):
            for t in range(steps):
                if not rollout.mask[t, k, n]:
                    continue
                factor = 1.0
                for s in range(t, steps):
                    if not rollout.mask[s, k, n] or (s > t and rollout.reset[s, k, n]):
                        break
                    after = 0.0 if rollout.terminated[s, k, n] else gamma * next_value[s, k, n]
                    delta = rollout.reward[s, k, n] + after - value[s, k, n]
                    out[t, k, n] += factor * delta
                    factor *= gamma * lam
                    if rollout.terminated[s, k, n] or rollout.truncated[s, k, n]:
                        break
    return out


@pytest.mark.parametrize("end", ["truncated", "terminated"])
def test_endless_reward_is_worth_one_over_one_minus_gamma_only_if_truncation_bootstraps(
    make_rollout: MakeRollout, end: str
) -> None:
    rollout = reward_of_one(make_rollout, end)
    value, next_value = fit_linear_baseline(rollout, GAMMA)
    torch.testing.assert_close(value, next_value)
    endless = 1 / (1 - GAMMA)
    # Were the limit taken for the world's end, a state would be worth the mean over an episode:
    # 10 (1 - mean of gamma^m for m = 1 ... 25) = 6.7.
    t = torch.arange(1.0, 26.0)
    finite = endless * (1 - (GAMMA**t).mean().item())
    assert finite < 0.7 * endless
    expected = endless if end == "truncated" else finite
    assert value.mean().item() == pytest.approx(expected, rel=0.01)


def test_where_collection_stops_in_mid_episode_the_value_is_bootstrapped(
    make_rollout: MakeRollout,
) -> None:
    rollout = reward_of_one(make_rollout, "truncated")
    no = torch.zeros_like(rollout.truncated)
    value, _ = fit_linear_baseline(replace(rollout, truncated=no), GAMMA)
    assert value.mean().item() == pytest.approx(10.0, rel=0.01)


def test_baseline_tells_states_apart_and_tasks_apart(make_rollout: MakeRollout) -> None:
    """Reward s in state s = -1 or 1, for ever: V = s / (1 - gamma); the second task's is double."""
    state = torch.tensor([-1.0, 1.0]).double().expand(50, 2, 2)
    scale = torch.tensor([[1.0], [2.0]])
    ended, started = cut_every(50, 10)
    rollout = make_rollout(
        50,
        2,
        2,
        obs=state[..., None],
        next_obs=state[..., None],
        reward=state * scale,
        truncated=ended.expand(50, 2, 2),
        reset=started.expand(50, 2, 2),
    )
    value, _ = fit_linear_baseline(rollout, GAMMA)
    torch.testing.assert_close(value, state * scale / (1 - GAMMA), rtol=0.02, atol=0)


def test_truncation_costs_no_advantage_and_termination_does(make_rollout: MakeRollout) -> None:
    value = torch.full((100, 1, 1), 10.0)
    last = slice(24, None, 25)
    for end, expected in (("truncated", 0.0), ("terminated", -9.0)):
        rollout = reward_of_one(make_rollout, end)
        advantage = episode_advantage(rollout, value, value, gamma=GAMMA, gae_lambda=0.95)
        torch.testing.assert_close(advantage[last], torch.full_like(advantage[last], expected))
        if end == "truncated":
            torch.testing.assert_close(advantage, torch.zeros_like(advantage))


def test_what_is_told_is_left_out_of_the_baseline(make_rollout: MakeRollout) -> None:
    rollout = make_rollout(40)
    settings = {"gamma": GAMMA, "gae_lambda": 0.9}

    def with_told(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full((*x.shape[:-1], 3), 0.7)], dim=-1)

    more = replace(rollout, obs=with_told(rollout.obs), next_obs=with_told(rollout.next_obs))
    expected = advantages(rollout, **settings)
    assert torch.equal(advantages(more, **settings, told_dims=3), expected)
    assert not torch.equal(advantages(more, **settings), expected)


def test_features_are_constant_linear_and_quadratic_in_the_observation() -> None:
    features = baseline_features(torch.tensor([2.0, 3.0]))
    assert sorted(features.tolist()) == [1.0, 2.0, 3.0, 4.0, 6.0, 9.0]
    assert baseline_features(torch.tensor([1e6])).tolist() == [10.0, 100.0, 1.0]


def test_wide_observations_have_squares_and_no_pairs() -> None:
    assert baseline_features(torch.zeros(MOST_PAIRED)).shape == (32 + 33 * 16 + 1,)
    wide = baseline_features(torch.arange(3.0, 36.0).clamp(max=9))
    assert wide.shape == (2 * 33 + 1,)
    assert wide[[0, 1, 33, 34, 66]].tolist() == [3.0, 4.0, 9.0, 16.0, 1.0]


def test_fewer_rows_than_features_give_the_same_weights_by_the_smaller_system() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 30, n, generator=g, dtype=torch.float64) for n in (DUAL_FROM, 1))
    x[1, 20:], y[1, 20:] = 0, 0  # steps that were never taken
    count = torch.tensor([30.0, 20.0], dtype=torch.float64)[:, None, None]
    gram = x.transpose(1, 2) @ x / count + RIDGE * torch.eye(DUAL_FROM, dtype=torch.float64)
    expected = torch.linalg.solve(gram, x.transpose(1, 2) @ y / count)
    torch.testing.assert_close(returns._ridge(x, y, count), expected, rtol=1e-8, atol=1e-10)


def test_few_features_are_solved_as_ever_to_the_last_bit(make_rollout: MakeRollout) -> None:
    """CartPole's, whatever the number of steps and within the factors that it declares."""
    for steps in (3, 40):
        rollout = make_rollout(steps)
        plain = fit_linear_baseline(rollout, GAMMA)[0]
        scale = torch.tensor([0.2, 0.5, 5.0, 0.5])
        assert torch.equal(fit_linear_baseline(rollout, GAMMA, obs_scale=scale)[0], plain)
    x, y = torch.randn(1, 8, 15), torch.randn(1, 8, 1)
    gram = x.transpose(1, 2) @ x / 8 + RIDGE * torch.eye(15)
    primal = torch.linalg.solve(gram, x.transpose(1, 2) @ y / 8)
    assert torch.equal(returns._ridge(x, y, torch.full((1, 1, 1), 8.0)), primal)


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_a_baseline_sees_other_units_through_the_policys_factors(
    make_rollout: MakeRollout, unit: float
) -> None:
    rollout = make_rollout(40)
    plain, _ = fit_linear_baseline(rollout, GAMMA)
    other = replace(rollout, obs=rollout.obs * unit, next_obs=rollout.next_obs * unit)
    scale = torch.full((4,), 1 / unit)
    seen, _ = fit_linear_baseline(other, GAMMA, obs_scale=scale)
    torch.testing.assert_close(seen, plain, rtol=1e-2, atol=1e-3)
    blind, _ = fit_linear_baseline(other, GAMMA)
    assert (blind - plain).abs().max() > 10 * (seen - plain).abs().max()


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the factory holds no state
)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 9),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
)
def test_equals_a_naive_reference_over_episodes_that_follow_one_another(
    make_rollout: MakeRollout, seed: int, steps: int, gamma: float, lam: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    shape = (steps, 2, 3)

    def chance(p: float) -> Tensor:
        return torch.rand(shape, generator=g) < p

    terminated = chance(0.15)
    truncated = chance(0.15) & ~terminated
    reset = chance(0.1)  # a piece may be cut without an end, as in replayed sequences
    reset[0] = True
    length = torch.randint(1, steps + 1, (1, 2, 3), generator=g)
    rollout = make_rollout(
        *shape,
        reward=torch.randn(shape, generator=g, dtype=torch.float64),
        terminated=terminated,
        truncated=truncated,
        reset=reset,
        mask=torch.arange(steps)[:, None, None] < length,
    )
    value = torch.randn(shape, generator=g, dtype=torch.float64)
    next_value = torch.randn(shape, generator=g, dtype=torch.float64)
    received = episode_advantage(rollout, value, next_value, gamma=gamma, gae_lambda=lam)
    torch.testing.assert_close(received, naive_advantage(rollout, value, next_value, gamma, lam))


def test_lambda_zero_is_the_temporal_difference(make_rollout: MakeRollout) -> None:
    rollout = make_rollout(5, 2, 2)
    value, next_value = rollout.obs[..., 0], rollout.next_obs[..., 0]
    received = episode_advantage(rollout, value, next_value, gamma=GAMMA, gae_lambda=0.0)
    torch.testing.assert_close(received, rollout.reward + GAMMA * next_value - value)


def test_normalized_has_mean_zero_and_spread_one_in_every_task(ends_early: Tensor) -> None:
    advantage = 5 + 3 * torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    received = normalized(advantage, ends_early)
    for k in range(2):
        taken = received[:, k][ends_early[:, k]]
        assert taken.mean().item() == pytest.approx(0)
        assert taken.std(correction=0).item() == pytest.approx(1)
    assert torch.count_nonzero(received[~ends_early]) == 0


def test_a_shared_scale_keeps_a_quiet_task_quiet() -> None:
    advantage = torch.randn(50, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    advantage[:, 1] *= 0.01  # a solved task: nothing but noise
    mask = torch.ones(50, 2, 4, dtype=torch.bool)
    alone, shared = normalized(advantage, mask), normalized(advantage, mask, shared_scale=True)
    assert alone[:, 1].std().item() == pytest.approx(1, rel=0.01)
    assert shared[:, 1].std().item() == pytest.approx(0.01 * shared[:, 0].std().item(), rel=0.2)
    variance = shared.var(dim=(0, 2), correction=0).mean()
    assert variance.item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(shared.mean(dim=(0, 2)), torch.zeros(2).double())


def test_equal_advantages_normalise_to_zero() -> None:
    same = normalized(torch.full((4, 1, 2), 3.0), torch.ones(4, 1, 2, dtype=torch.bool))
    assert torch.equal(same, torch.zeros(4, 1, 2))


def test_steps_never_taken_contribute_nothing(
    make_rollout: MakeRollout, ends_early: Tensor, spoiled: Callable[[Rollout], Rollout]
) -> None:
    clean = make_rollout(6, 2, 2, mask=ends_early)
    dirty = spoiled(clean)
    assert dirty.reward.isnan().any()
    value = torch.where(ends_early, clean.obs[..., 0], float("nan"))
    raw = episode_advantage(dirty, value, value, gamma=GAMMA, gae_lambda=0.95)
    expected = episode_advantage(
        clean, clean.obs[..., 0], clean.obs[..., 0], gamma=GAMMA, gae_lambda=0.95
    )
    assert torch.equal(raw, expected)
    nan_outside = torch.where(ends_early, expected, float("nan"))
    assert torch.equal(normalized(nan_outside, ends_early), normalized(expected, ends_early))

    fitted, _ = fit_linear_baseline(dirty, GAMMA)
    assert torch.equal(fitted[ends_early], fit_linear_baseline(clean, GAMMA)[0][ends_early])
    received = advantages(dirty, gamma=GAMMA, gae_lambda=0.95)
    assert torch.equal(received, advantages(clean, gamma=GAMMA, gae_lambda=0.95))
    assert torch.count_nonzero(received[~ends_early]) == 0
    assert torch.count_nonzero(received[ends_early]) > 0
    assert torch.equal(dirty.episode_returns(), clean.episode_returns())


def test_a_shorter_recording_equals_a_masked_longer_one(make_rollout: MakeRollout) -> None:
    long = make_rollout(6, mask=(torch.arange(6) < 4)[:, None, None])
    short = long.map(lambda x: x[:4])
    options = {"gamma": GAMMA, "gae_lambda": 0.95}
    torch.testing.assert_close(advantages(long, **options)[:4], advantages(short, **options))
