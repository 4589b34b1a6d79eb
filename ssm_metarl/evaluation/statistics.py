"""Scores of many tasks in a few numbers, each with an interval.

Place in the flow: stage 7, after `score` has a return for every task and episode. The interquartile
mean (IQM) and the stratified bootstrap are those of Agarwal et al. 2021, "Deep reinforcement
learning at the edge of the statistical precipice" (arXiv 2108.13264).

The traps: episodes of one task are not independent scores, so they are averaged before anything
else; and the IQM is blind to the worst quarter of the tasks, so `worst_tenth` stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from ssm_metarl.seeding import generator

Scores = NDArray[np.float64]
Statistic = Callable[[Scores], Scores]
"""Reduces the last axis: (..., n) scores to (...)."""
Interval = tuple[float, float]
"""Lower and upper end."""
RESAMPLES = 2000


def _checked(scores: ArrayLike, name: str) -> Scores:
    """As float64, refusing what sorting would hide: NaN sorts last, and trimming drops it."""
    array = np.asarray(scores, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{name}: expected at least one score, all finite, received shape {array.shape} "
            f"with {int((~np.isfinite(array)).sum())} that are not finite"
        )
    return array


def _mean(scores: Scores) -> Scores:
    mean: Scores = scores.mean(axis=-1)
    return mean


def _iqm(scores: Scores) -> Scores:
    n = scores.shape[-1]
    return _mean(np.sort(scores, axis=-1)[..., n // 4 : n - n // 4])


def _percentiles(values: Scores, confidence: float) -> Scores:
    """The two values between which the share ``confidence`` lies."""
    tail = (1 - confidence) / 2
    ends: Scores = np.quantile(values, [tail, 1 - tail])
    return ends


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean of scores of any shape: ``floor(n / 4)`` are dropped at either end.

    Raises:
        ValueError: No scores, or one that is not finite.
    """
    return float(_iqm(_checked(scores, "iqm").ravel()))


def worst_tenth(scores: ArrayLike) -> float:
    """Mean of the lowest ``floor(n / 10)`` scores of any shape, of the lowest one where n < 10.

    Raises:
        ValueError: No scores, or one that is not finite.
    """
    flat = np.sort(_checked(scores, "worst_tenth").ravel())
    return float(flat[: max(1, flat.size // 10)].mean())


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Statistic = _iqm,
    *,
    seed: int,
    num_resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a statistic of (runs x tasks) scores.

    What is resampled decides what the interval speaks of:

    - **Several runs** (R > 1): the runs, with replacement, within each task independently of the
      other tasks (stratified, Agarwal et al. 2021, section 4.1): how the number would change with
      *another training*, on the same tasks. A resample of R runs varies less than R runs do, by
      ``sqrt((R - 1) / R)``; the interval is stretched by as much about the statistic (rliable's is
      not, and covers 93 to 94 % where it claims 95).
    - **One run** (a vector of K, or R = 1): the tasks: how the number would change with *another
      draw of tasks*, for this very model. One run holds no information on training noise.

    Args:
        scores: Shape (R, K), or (K,) for one run; a task's score is its mean over episodes.
        statistic: Reduces the last axis, (..., n) to (...).
        seed: Names the resamples: the same scores and seed give the same interval.
        num_resamples: Resamples to draw.
        confidence: Share of the resamples' statistics inside, in (0, 1).

    Raises:
        ValueError: Wrong shape, non-finite scores, or ``confidence`` outside (0, 1).
    """
    table = _checked(scores, "bootstrap_interval")
    if table.ndim not in (1, 2):
        raise ValueError(f"scores: expected shape (R, K) or (K,), received {table.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a share in (0, 1), received {confidence}")
    table = np.atleast_2d(table)
    num_runs, num_tasks = table.shape
    draw = generator(seed, "bootstrap")
    if num_runs == 1:
        resampled = table[0, draw.integers(num_tasks, size=(num_resamples, num_tasks))]
    else:
        run = draw.integers(num_runs, size=(num_resamples, num_runs, num_tasks))
        resampled = table[run, np.arange(num_tasks)].reshape(num_resamples, -1)  # (B, R * K)
    ends = _percentiles(statistic(resampled), confidence)
    if num_runs > 1:
        middle = statistic(table.reshape(1, -1))
        ends = middle + (ends - middle) * np.sqrt(num_runs / (num_runs - 1))
    low, high = ends
    return float(low), float(high)


def paired_interval(difference: ArrayLike, *, seed: int) -> Interval:
    """95 % bootstrap interval of the mean of per-task differences between two arms.

    Both arms meet the same tasks and initial states, so what a task's difficulty adds to both
    cancels. The mean is taken, not the IQM: the IQM of differences is not the difference of the
    arms' IQMs, and it would forget the few tasks that adaptation harms.

    Args:
        difference: Score of one arm minus score of the other, shape (K,).
        seed: Names the resamples.
    """
    vector = np.asarray(difference, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"difference: expected shape (K,), received {vector.shape}")
    return bootstrap_interval(vector, _mean, seed=seed)


def ratio_interval(part: ArrayLike, whole: ArrayLike, *, seed: int) -> Interval:
    """95 % bootstrap interval of ``mean(part) / mean(whole)``, tasks resampled for both at once.

    Args:
        part: Per-task differences, shape (K,).
        whole: Others on the same tasks, shape (K,), with a mean clearly above zero: where it is
            not, the ratio may be anything.
        seed: Names the resamples: the same as `paired_interval` draws.

    Raises:
        ValueError: The shapes differ, or a number is not finite.
    """
    top, bottom = _checked(part, "part"), _checked(whole, "whole")
    if top.ndim != 1 or top.shape != bottom.shape:
        raise ValueError(
            f"ratio: expected two vectors of one length, received {top.shape} and {bottom.shape}"
        )
    rows = generator(seed, "bootstrap").integers(len(top), size=(RESAMPLES, len(top)))
    low, high = _percentiles(_mean(top[rows]) / _mean(bottom[rows]), 0.95)
    return float(low), float(high)


def crossed_interval(scores: ArrayLike, *, seed: int) -> Interval:
    """95 % interval of the mean of (runs x tasks) scores, both of which are a sample.

    It speaks of another training *and* another draw of tasks. On either side of the mean lies
    `crossed_error` times a quantile of Student's t with R - 1 degrees of freedom, as runs are few:
    percentiles of resampled means cover some 90 % with ten.

    Args:
        scores: Shape (R, K), such as differences of two arms of the same R runs on the same tasks.
        seed: Names the resamples.
    """
    table = np.asarray(scores, dtype=np.float64)
    wide = crossed_error(table, seed=seed) * float(stdtrit(len(table) - 1, 0.975))
    middle = float(table.mean())
    return middle - wide, middle + wide


def crossed_error(scores: ArrayLike, *, seed: int) -> float:
    """Standard error of the mean of (runs x tasks) scores, both of which are a sample.

    Runs and tasks are resampled independently of each other, each as a whole (Owen 2007, "The
    pigeonhole bootstrap", doi 10.1214/07-AOAS122): a run that is bad is bad on many tasks. It is
    stretched as in `bootstrap_interval`.

    Raises:
        ValueError: Not (R, K) scores of two runs or more, or one that is not finite.
    """
    table = _checked(scores, "crossed_error")
    if table.ndim != 2 or len(table) < 2:
        raise ValueError(
            f"scores: expected shape (R, K) with R of 2 or more, received {table.shape}"
        )
    num_runs = len(table)
    draw = generator(seed, "bootstrap-crossed")
    # how often each run and each task is in a resample
    runs, tasks = (draw.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in table.shape)
    means = ((runs @ table) * tasks).sum(axis=1) / table.size
    return float(means.std(ddof=1) * math.sqrt(num_runs / (num_runs - 1)))


def share_interval(count: int, total: int) -> Interval:
    """95 % interval of a share that was counted: Wilson's score (1927, doi 10.2307/2276774).

    A bootstrap of 200 successes in 200 trials knows no failure, and claims to be certain.
    """
    from scipy.stats import binomtest  # here: it takes most of a second to load

    interval = binomtest(count, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def summarize(returns: ArrayLike, *, seed: int = 0) -> dict[str, Any]:
    """``mean``, ``iqm`` with its interval ``ci95``, and ``worst10`` of one arm.

    Args:
        returns: Undiscounted return of every episode, shape (K, episodes). A task's score is the
            mean over its episodes.
        seed: Names the bootstrap's resamples.
    """
    table = _checked(returns, "summarize")
    if table.ndim != 2:
        raise ValueError(f"returns: expected shape (K, episodes), received {table.shape}")
    scores = table.mean(axis=1)
    return {
        "mean": float(scores.mean()),
        "iqm": iqm(scores),
        "ci95": list(bootstrap_interval(scores, seed=seed)),
        "worst10": worst_tenth(scores),
    }


def mean_and_worst(per_task: Scores) -> dict[str, float]:
    """``mean`` and ``worst10`` of scores (K,)."""
    return {"mean": float(per_task.mean()), "worst10": worst_tenth(per_task)}


def mean_difference(per_task: Scores, *, seed: int) -> dict[str, Any]:
    """``mean`` and ``ci95`` of differences between two arms, task by task (K,)."""
    return {"mean": float(per_task.mean()), "ci95": list(paired_interval(per_task, seed=seed))}
