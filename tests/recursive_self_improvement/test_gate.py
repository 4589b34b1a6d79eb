"""The gate: wealth by hand, alpha that is never spent twice, and what each verdict takes."""

import math

import numpy as np
import pytest

from ssm_metarl import seeding
from ssm_metarl.recursive_self_improvement import gate
from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.gate import (
    BETS,
    GUARDRAILS,
    PRIMARY,
    Confirmation,
    EProcess,
    Verdict,
    confirm_cap,
    pairs_needed,
    spent_alpha,
)

CONFIG = RSIConfig()
ALL = (PRIMARY, *GUARDRAILS)


def draws(mean, count, spread=0.25, seed=0):
    noise = spread * seeding.generator(seed, "gate-tests").standard_normal(count)
    return np.clip(mean + noise, -1, 1)


@pytest.mark.parametrize("margin", [0.0, 0.05, -0.05])
def test_the_wealth_of_two_pairs_by_hand(margin):
    test = EProcess(margin, 0.05)
    bets = [b / (1 + margin) for b in BETS]
    first = [1 + b * (0.3 - margin) for b in bets]
    second = [w * (1 + b * (-0.1 - margin)) for w, b in zip(first, bets, strict=True)]
    expected = [sum(first) / len(bets), sum(second) / len(bets)]
    assert test.update([0.3, -0.1]).tolist() == pytest.approx(expected, rel=1e-12)
    assert test.wealth == pytest.approx(expected[1], rel=1e-12)
    assert test.num_pairs == 2 and test.crossed_at is None


def test_at_the_margin_the_bets_are_fair_and_none_can_go_bankrupt():
    for margin in (-0.5, 0.0, 0.5):
        least = 1 + BETS / (1 + margin) * (-1 - margin)
        assert (least > 0).all(), "1 + lambda (D - m) must stay above 0 at D = -1"
        fair = EProcess(margin, 0.05)
        assert fair.update([margin]).tolist() == [1.0]


def test_the_wealth_is_crossed_for_ever_at_the_first_pair():
    test = EProcess(0.0, 0.05)
    wealth = test.update([1.0] * 10 + [-1.0] * 30)
    first = int(np.flatnonzero(wealth >= 20)[0]) + 1
    assert test.crossed_at == first and 1 < first <= 10
    assert test.wealth < 20, "and it stays crossed although the wealth is gone"
    assert wealth[first - 2] < 20 <= wealth[first - 1]


def test_pieces_and_blocks_change_nothing():
    d = draws(0.05, 3 * gate.BLOCK + 7)
    whole, pieces = EProcess(0.0, 1e-4), EProcess(0.0, 1e-4)
    all_at_once = whole.update(d)
    sizes = [1, 2, 61, 200, 64, gate.BLOCK, 64]
    cuts = np.split(d, np.cumsum(sizes))
    one_by_one = np.concatenate([pieces.update(part) for part in cuts])
    np.testing.assert_allclose(one_by_one, all_at_once, rtol=1e-9)
    np.testing.assert_allclose(np.exp(np.log1p(np.outer(d, BETS)).cumsum(0)).mean(1), all_at_once,
                               rtol=1e-9)  # fmt: skip
    assert pieces.crossed_at == whole.crossed_at is not None
    assert pieces.num_pairs == whole.num_pairs == len(d)
    assert len(whole.update([])) == 0 and whole.num_pairs == len(d)


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_extremes_neither_overflow_nor_crash(value):
    test = EProcess(0.0, 0.05)
    wealth = test.update([value] * 5000)
    assert np.isfinite(wealth).all() and math.isfinite(test.wealth)
    assert (test.crossed_at is not None) == (value > 0)


@pytest.mark.parametrize("bad", [[1.01], [-1.01], [math.nan], [math.inf], [[0.1]], 0.5])
def test_what_is_out_of_bounds_is_refused_and_nothing_is_bet(bad):
    test = EProcess(0.0, 0.05)
    with pytest.raises(ValueError, match="expected shape"):
        test.update(bad)
    assert test.num_pairs == 0 and test.wealth == 1


def crossings(make, *, trials, pairs=400):
    """Trials in which a test of symmetric differences ever crosses 1 / 0.1."""
    count = 0
    for trial in range(trials):
        rng = seeding.generator(trial, "ville")
        count += make(rng.choice([-0.4, 0.4], size=pairs))
    return count


def test_ville_holds_under_the_null_and_fails_for_who_looks_at_a_p_value():
    def honest(d):
        test = EProcess(0.0, 0.1)
        test.update(d)
        return test.crossed_at is not None

    def peeking(d):  # a z-test at the level 0.1, looked at after every pair
        n = np.arange(1, len(d) + 1)
        return bool((d.cumsum() / (0.4 * np.sqrt(n)) > 1.2816)[9:].any())

    assert crossings(honest, trials=300) <= 45  # 30 expected at most; P(more) < 1 %
    assert crossings(peeking, trials=300) > 100


def test_all_confirmations_together_spend_alpha():
    spent = sum(spent_alpha(0.05, k) for k in range(1, 100_001))
    assert spent < 0.05
    assert spent == pytest.approx(0.05, abs=1e-5)
    assert spent_alpha(0.05, 1) == pytest.approx(0.0304, abs=1e-4)
    assert spent_alpha(0.05, 2) == pytest.approx(spent_alpha(0.05, 1) / 4)


def test_caps_grow_as_the_logarithm_of_one_over_alpha():
    caps = [confirm_cap(CONFIG, k) for k in (1, 2, 5, 10, 40)]
    assert caps[0] == CONFIG.confirm_pairs and caps == sorted(set(caps))
    expected = 1000 * math.log(1600 / spent_alpha(0.05, 1)) / math.log(1 / spent_alpha(0.05, 1))
    assert caps[-1] == math.ceil(expected)


def confirmation(number=1, margin=0.0, **settings):
    return Confirmation(RSIConfig(**settings), number, margin)


def test_accepted_needs_the_primary_and_every_guardrail():
    good, bad = draws(0.3, 200), draws(-0.3, 200)
    assert confirmation().update(dict.fromkeys(ALL, good)) == Verdict.ACCEPTED
    for name in ALL:
        gate_ = confirmation()
        verdict = gate_.update(dict.fromkeys(ALL, good) | {name: bad})
        assert verdict == Verdict.WORSE, name
        assert gate_.open_tests == (name,)


def test_a_guardrail_tolerates_a_small_loss_and_the_primary_none():
    loss = draws(-0.01, 1000, spread=0.02)
    gate_ = confirmation()
    gate_.update({name: loss for name in ALL})
    assert gate_.open_tests == (PRIMARY,), "five points of tolerance for the guardrails alone"
    assert gate_.verdict == Verdict.WORSE
    smaller = confirmation(margin=-0.03)
    assert smaller.update({name: loss for name in ALL}) == Verdict.ACCEPTED
    larger = confirmation(margin=0.05)
    gain = {name: draws(0.03, 1000, spread=0.02) for name in ALL}
    assert larger.update(gain) == Verdict.WORSE, "less than what a larger model must gain"


def test_a_passed_guardrail_is_closed_and_no_longer_asked_for():
    gate_ = confirmation()
    quick = draws(0.5, 64)
    verdict = gate_.update({PRIMARY: draws(0.0, 64)} | dict.fromkeys(GUARDRAILS, quick))
    assert verdict == Verdict.OPEN and gate_.open_metrics == (PRIMARY,)
    crossed = {name: gate_.tests[name].crossed_at for name in GUARDRAILS}
    assert gate_.update({PRIMARY: [0.0], "average_reward": [-1.0]}) == Verdict.OPEN
    assert {name: gate_.tests[name].crossed_at for name in GUARDRAILS} == crossed
    assert gate_.tests["average_reward"].num_pairs == 64


def test_what_is_still_open_must_be_measured():
    gate_ = confirmation()
    with pytest.raises(ValueError, match="stability"):
        gate_.update({name: [0.1] for name in ALL[:-1]})
    assert gate_.primary.num_pairs == 0


def test_the_champion_stays_at_the_cap():
    gate_ = confirmation(confirm_pairs=100)
    nothing = dict.fromkeys(ALL, np.zeros(99))
    assert gate_.update(nothing) == Verdict.OPEN
    assert gate_.update({name: [0.0] for name in gate_.open_metrics}) == Verdict.INCONCLUSIVE
    assert gate_.cap == 100 and len(gate_.wealth) == 100


def test_the_primary_test_has_the_confirmations_own_alpha():
    for number in (1, 3):
        gate_ = confirmation(number)
        assert gate_.primary.threshold == pytest.approx(1 / spent_alpha(0.05, number))
        assert gate_.tests["stability"].threshold == pytest.approx(20)


def test_mean_and_spread_are_of_all_pairs_so_far():
    gate_ = confirmation()
    assert (gate_.mean, gate_.spread) == (0.0, 0.0)
    for part in ([0.2, 0.0], [0.1]):
        gate_.update(dict.fromkeys(ALL, part))
    assert gate_.mean == pytest.approx(0.1)
    assert gate_.spread == pytest.approx(np.std([0.2, 0.0, 0.1]))
    assert pairs_needed(0.03, 0.25, 0.03) > pairs_needed(0.06, 0.25, 0.03)
    assert pairs_needed(0.03, 0.25, 0.001) > pairs_needed(0.03, 0.25, 0.03)
    passed = []
    for trial in range(40):
        test = EProcess(0.0, 0.03)
        test.update(draws(0.06, 3 * pairs_needed(0.06, 0.25, 0.03), seed=trial))
        passed.append(test.crossed_at or 10**9)
    assert 0.4 < np.median(passed) / pairs_needed(0.06, 0.25, 0.03) < 1.5
