"""Statistics: known answers, what is resampled, and that the intervals cover what they claim."""

import numpy as np
import pytest
from scipy.stats import beta, trim_mean

from ssm_metarl.evaluation.statistics import (
    bootstrap_interval,
    crossed_interval,
    iqm,
    paired_interval,
    ratio_interval,
    share_interval,
    summarize,
    worst_tenth,
)
from ssm_metarl.seeding import generator


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (5,), (100,), (10, 7)])
def test_iqm_is_scipys_trimmed_mean(shape):
    scores = generator(0, "scores").exponential(size=shape)
    assert iqm(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None), abs=1e-12)


def test_iqm_of_eight_scores_drops_two_at_each_end():
    assert iqm([900, 1, 2, 3, 4, 5, 6, -900]) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_worst_tenth():
    assert worst_tenth(np.arange(100)[::-1]) == pytest.approx(4.5)
    assert worst_tenth([7.0, 3.0, 5.0]) == 3.0  # at least one task
    assert worst_tenth(np.arange(29)) == pytest.approx(0.5)  # floor(2.9) tasks


@pytest.mark.parametrize("statistic", [iqm, worst_tenth])
@pytest.mark.parametrize("scores", [[], [1.0, 2.0, np.nan], [np.inf, 1.0, 2.0, 3.0, 4.0]])
def test_scores_that_trimming_would_hide_are_refused(statistic, scores):
    with pytest.raises(ValueError, match="finite"):
        statistic(scores)


def test_order_of_tasks_changes_neither_statistic():
    scores = generator(1, "scores").normal(size=40)
    shuffled = generator(1, "order").permutation(scores)
    assert iqm(shuffled) == pytest.approx(iqm(scores))
    assert worst_tenth(shuffled) == pytest.approx(worst_tenth(scores))


def test_the_interval_of_a_share_takes_the_same_tasks_on_both_sides():
    whole = generator(3, "whole").normal(100, 20, size=80)
    assert ratio_interval(0.4 * whole, whole, seed=0) == pytest.approx((0.4, 0.4))
    noise = generator(3, "noise").normal(0, 10, size=80)
    low, high = ratio_interval(0.4 * whole + noise, whole, seed=0)
    assert low < 0.4 + noise.mean() / whole.mean() < high
    # the noise of a mean of 80, in units of the whole
    assert high - low == pytest.approx(2 * 1.96 * 10 / 80**0.5 / 100, rel=0.25)
    assert (low, high) == ratio_interval(0.4 * whole + noise, whole, seed=0)


def test_a_share_of_other_tasks_is_refused():
    for part, whole in ((np.ones(3), np.ones(4)), (np.ones((3, 2)), np.ones((3, 2)))):
        with pytest.raises(ValueError, match="expected two vectors of one length"):
            ratio_interval(part, whole, seed=0)
    with pytest.raises(ValueError, match="finite"):
        ratio_interval([1.0, np.nan], [1.0, 2.0], seed=0)


def _coverage(confidence: float, repetitions: int = 300) -> float:
    """Share of intervals of 100 skewed scores' IQM that hold the population's IQM."""
    # Mean of a standard exponential between its quartiles: twice the integral of -log(v) over
    # v in [1/4, 3/4].
    truth = 2 * sum(side * (v - v * np.log(v)) for side, v in ((1, 0.75), (-1, 0.25)))
    hits = 0
    for repetition in range(repetitions):
        scores = generator(2, "coverage", repetition).exponential(size=100)
        low, high = bootstrap_interval(
            scores, seed=repetition, num_resamples=300, confidence=confidence
        )
        hits += low <= truth <= high
    return hits / repetitions


def test_interval_covers_as_often_as_it_claims():
    # Three standard errors of 300 repetitions are 0.04; percentile intervals fall a little short.
    assert 0.90 <= _coverage(0.95) <= 0.98


def test_a_half_interval_would_fail_that_test():
    assert 0.40 <= _coverage(0.50) <= 0.60


SCORES = np.array(  # three runs on four tasks
    [[0.10, 0.52, 0.93, 0.35], [0.14, 0.61, 0.88, 0.07], [0.22, 0.40, 0.97, 0.66]]
)


def test_iqm_of_all_runs_and_tasks_at_once():
    # Twelve scores, three dropped at either end; not the mean of each task's own IQM.
    assert iqm(SCORES) == pytest.approx((0.22 + 0.35 + 0.40 + 0.52 + 0.61 + 0.66) / 6)
    assert iqm(SCORES) == pytest.approx(trim_mean(SCORES, 0.25, axis=None))


def test_iqm_and_interval_are_those_of_rliable():
    # rliable 1.2.0, aggregate_iqm and get_interval_estimates with 20,000 resamples
    assert iqm(SCORES) == pytest.approx(0.46)
    scores = np.random.default_rng(5).beta(2, 3, size=(10, 100))
    assert iqm(scores) == pytest.approx(0.39817865)
    stretched = np.array(bootstrap_interval(scores, seed=0, num_resamples=20_000))
    plain = 0.39817865 + (stretched - 0.39817865) / np.sqrt(10 / 9)
    assert plain == pytest.approx([0.38355355, 0.4126032], abs=4e-4)


def test_the_stratified_interval_is_the_published_one_stretched():
    # Agarwal et al.'s interval by the plainest of loops, on this package's draws of runs.
    runs, tasks = SCORES.shape
    drawn = generator(9, "bootstrap").integers(runs, size=(2000, runs, tasks))
    values = []
    for sample in drawn:
        resampled = [[SCORES[sample[r, k], k] for k in range(tasks)] for r in range(runs)]
        values.append(trim_mean(resampled, 0.25, axis=None))
    published = np.percentile(values, [2.5, 97.5])
    middle = iqm(SCORES)
    stretched = middle + (published - middle) * np.sqrt(3 / 2)
    assert bootstrap_interval(SCORES, seed=9) == pytest.approx(tuple(stretched))


def _beta_coverage(confidence: float, repetitions: int, num_resamples: int) -> float:
    """Share of intervals that hold the truth: 10 runs on 100 tasks, each with a Beta of its own."""
    rng = generator(0, "betas")
    a, b = rng.uniform(0.5, 5, 100), rng.uniform(0.5, 5, 100)
    quantiles = (np.arange(400) + 0.5) / 400
    truth = iqm(beta.ppf(quantiles[:, None], a, b))
    hits = 0
    for repetition in range(repetitions):
        scores = generator(3, "coverage", repetition).beta(a, b, size=(10, 100))
        low, high = bootstrap_interval(
            scores, seed=repetition, num_resamples=num_resamples, confidence=confidence
        )
        hits += low <= truth <= high
    return hits / repetitions


@pytest.mark.slow
def test_ten_runs_on_a_hundred_tasks_cover_as_often_as_they_claim():
    assert 0.93 <= _beta_coverage(0.95, 800, 250) <= 0.97


def test_a_narrower_interval_of_several_runs_would_fail_that_test():
    assert 0.70 <= _beta_coverage(0.80, 100, 150) <= 0.90


def covered(run: float, task: float, noise: float) -> float:
    """How often `crossed_interval` holds zero, the mean of ten runs x 100 tasks."""
    hits, count = 0, 200
    draw = generator(0, "crossed")
    for seed in range(count):
        normal = draw.standard_normal
        scores = run * normal((10, 1)) + task * normal((1, 100)) + noise * normal((10, 100))
        low, high = crossed_interval(scores, seed=seed)
        hits += low < 0 < high
    return hits / count


@pytest.mark.parametrize(("run", "task"), [(1.0, 0.1), (0.3, 1.0), (0.1, 1.0)])
def test_an_interval_over_runs_and_tasks_covers_as_often_as_it_claims(run, task):
    assert 0.925 <= covered(run, task, noise=0.3) <= 0.995


def test_an_interval_over_runs_and_tasks_needs_two_runs():
    with pytest.raises(ValueError, match=r"R of 2 or more, received \(1, 7\)"):
        crossed_interval(np.zeros((1, 7)), seed=0)


def test_interval_is_deterministic_and_names_its_stream_by_seed():
    scores = generator(3, "scores").normal(size=30)
    first = bootstrap_interval(scores, seed=5)
    assert bootstrap_interval(scores, seed=5) == first
    assert bootstrap_interval(scores, seed=6) != first


def test_interval_shifts_and_scales_with_the_scores():
    scores = generator(4, "scores").normal(size=30)
    low, high = bootstrap_interval(scores, seed=0)
    moved = bootstrap_interval(3 * scores + 10, seed=0)
    assert moved == pytest.approx((3 * low + 10, 3 * high + 10))


def test_one_run_is_the_same_as_a_vector():
    scores = generator(5, "scores").normal(size=20)
    assert bootstrap_interval(scores[None], seed=0) == bootstrap_interval(scores, seed=0)


def test_several_runs_are_resampled_within_tasks_and_tasks_are_not():
    tasks = np.arange(20.0)
    equal_runs = np.stack([tasks, tasks, tasks])
    # Tasks differ, runs do not: no training noise, so no width...
    assert bootstrap_interval(equal_runs, seed=0) == pytest.approx((iqm(tasks), iqm(tasks)))
    # ... where resampling tasks would have shown plenty.
    low, high = bootstrap_interval(tasks, seed=0)
    assert high - low > 3


def test_runs_are_resampled_independently_in_each_task():
    # Two runs, 0 and 1 in every task. Resampled as whole runs the mean would be 0, 1/2 or 1, and
    # the interval [0, 1]; within each of 400 tasks it concentrates at 1/2.
    runs = np.stack([np.zeros(400), np.ones(400)])
    low, high = bootstrap_interval(runs, lambda scores: scores.mean(axis=-1), seed=0)
    assert 0.45 < low < 0.5 < high < 0.55


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0, 2.0], seed=0, confidence=confidence)


def test_scores_of_three_axes_are_refused():
    with pytest.raises(ValueError, match=r"\(R, K\)"):
        bootstrap_interval(np.ones((2, 3, 4)), seed=0)


def test_paired_interval_is_of_the_mean_and_antisymmetric():
    difference = generator(6, "difference").exponential(size=50)
    low, high = paired_interval(difference, seed=0)
    assert low < difference.mean() < high
    assert paired_interval(-difference, seed=0) == pytest.approx((-high, -low))


def test_paired_interval_sees_the_few_tasks_that_were_harmed():
    # A tenth of the tasks loses 400, the others gain nothing: an IQM of differences is 0.
    difference = np.repeat([0.0, -400.0], [90, 10])
    assert iqm(difference) == 0
    assert paired_interval(difference, seed=0)[1] < -10


def test_paired_interval_cancels_what_makes_tasks_hard():
    difficulty = generator(7, "difficulty").normal(scale=100, size=80)
    gain = 5 + generator(7, "gain").normal(size=80)
    low, high = paired_interval((difficulty + gain) - difficulty, seed=0)
    assert 4 < low < 5.2 and 4.8 < high < 6


def test_summary_scores_a_task_by_the_mean_of_its_episodes():
    returns = np.array([[0.0, 100.0]] * 20)
    summary = summarize(returns)
    assert summary == {"mean": 50.0, "iqm": 50.0, "ci95": [50.0, 50.0], "worst10": 50.0}


def test_summary_of_varied_tasks():
    returns = generator(8, "returns").uniform(0, 500, size=(40, 4))
    summary, scores = summarize(returns, seed=3), returns.mean(axis=1)
    assert summary["iqm"] == pytest.approx(trim_mean(scores, 0.25))
    assert summary["worst10"] == pytest.approx(np.sort(scores)[:4].mean())
    assert summary["ci95"] == list(bootstrap_interval(scores, seed=3))
    with pytest.raises(ValueError, match="episodes"):
        summarize(returns[:, 0])


def test_the_interval_of_a_share_is_wilsons():
    # Newcombe 1998 (Statistics in Medicine 17, table I), method 3
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert share_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert share_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert share_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)
