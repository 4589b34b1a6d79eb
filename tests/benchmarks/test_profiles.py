"""Probability of improvement and performance profiles: the published formulae, on fixed numbers."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from benchmarks.adaptation.profiles import (
    improvement_interval,
    performance_profile,
    probability_of_improvement,
)
from ssm_metarl.seeding import generator

# Three runs on four tasks, and two runs of another arm.
X = np.array([[0.9, 0.2, 0.5, 0.7], [0.8, 0.4, 0.5, 0.1], [0.7, 0.6, 0.5, 0.4]])
Y = np.array([[0.5, 0.3, 0.5, 0.6], [0.6, 0.5, 0.5, 0.2]])


def test_probability_of_improvement_by_hand():
    # Wins of 6 pairs a task: 6; .2<.3,.2<.5,.4>.3,.4<.5,.6>.3,.6>.5 = 3; six draws = 3;
    # .7>.6,.7>.2,.1<.6,.1<.2,.4<.6,.4>.2 = 3.
    assert probability_of_improvement(X, Y) == pytest.approx((6 + 3 + 3 + 3) / 24)


def test_probability_of_improvement_is_mann_whitneys_statistic_averaged_over_tasks():
    rng = generator(0, "scores")
    x, y = rng.integers(6, size=(10, 30)), rng.integers(5, size=(7, 30))  # with many draws
    tasks = [mannwhitneyu(x[:, k], y[:, k]).statistic / 70 for k in range(30)]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(tasks))
    assert probability_of_improvement(y, x) == pytest.approx(1 - np.mean(tasks))


def test_probability_of_improvement_and_its_interval_are_those_of_rliable():
    # rliable 1.2.0, probability_of_improvement and get_interval_estimates with 2,000 resamples
    assert probability_of_improvement(X, Y) == pytest.approx(0.625)
    x = np.random.default_rng(5).beta(2, 3, size=(10, 100))
    y = np.random.default_rng(6).beta(2, 3.2, size=(10, 100))
    assert probability_of_improvement(x, y) == pytest.approx(0.5327)
    assert improvement_interval(x, y, seed=0) == pytest.approx((0.50839, 0.5581), abs=3e-3)


def test_profile_is_the_share_strictly_above():
    shares = performance_profile(X, [0.0, 0.4, 0.5, 0.9])
    assert shares.tolist() == pytest.approx([1, 8 / 12, 5 / 12, 0])


def _coverage(shift: float, confidence: float, repetitions: int = 200) -> float:
    """Share of intervals that hold P(X > Y) of N(shift, 1) against N(0, 1)."""
    truth = 0.5 if shift == 0 else 0.7602499389065233  # normal distribution function at 1 / sqrt 2
    hits = 0
    for i in range(repetitions):
        rng = generator(1, "coverage", i)
        x, y = rng.normal(shift, 1, size=(10, 20)), rng.normal(size=(10, 20))
        low, high = improvement_interval(x, y, seed=i, num_resamples=200, confidence=confidence)
        hits += low <= truth <= high
    return hits / repetitions


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_improvement_interval_covers_as_often_as_it_claims(shift):
    assert 0.90 <= _coverage(shift, 0.95) <= 0.99


def test_a_half_interval_would_fail_that_test():
    assert 0.38 <= _coverage(0.0, 0.5) <= 0.62


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:, :3], "same K tasks"),
        (X[0], Y[0], r"\(R, K\)"),
        (X, np.full_like(Y, np.nan), "finite"),
    ],
)
def test_scores_that_do_not_fit_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        probability_of_improvement(x, y)


def test_confidence_is_a_share():
    with pytest.raises(ValueError, match="confidence"):
        improvement_interval(X, Y, seed=0, confidence=95)
