"""Two arms, or all scores at once, over several runs: what a single number hides.

Place in the flow: under `comparison`, for scores of R training seeds on K tasks. Both are
those of Agarwal et al. 2021 (arXiv 2108.13264, section 4.3), with their stratified bootstrap: runs
are resampled within each task, tasks are not resampled.

- *Probability of improvement*: on a task drawn at random, how likely a run of one arm is to beat a
  run of the other; a draw counts half (the Mann-Whitney statistic).
- *Performance profile*: for every threshold the share of all scores above it.

The trap: probability of improvement says how often, not by how much. An arm that is better by a
hair everywhere has 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssm_metarl.evaluation.statistics import Interval
from ssm_metarl.seeding import generator

Scores = NDArray[np.float64]


def probability_of_improvement(scores: ArrayLike, reference: ArrayLike) -> float:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2, over all pairs of runs.

    Args:
        scores: Of one arm, shape (R, K).
        reference: Of the other, shape (R', K), on the same tasks.

    Raises:
        ValueError: Other shapes, or a score that is not finite.
    """
    x, y = _tables(scores, reference)
    return float(_improvement(x[None], y[None])[0])


def improvement_interval(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    seed: int,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of `probability_of_improvement`; both arms' runs are resampled.

    Args:
        scores: Shape (R, K).
        reference: Shape (R', K).
        seed: Names the resamples.
        num_resamples: Resamples to draw.
        confidence: Share of the resamples' values inside.
    """
    x, y = _tables(scores, reference)
    draw = generator(seed, "bootstrap-improvement")
    values = np.empty(num_resamples)
    for i in range(num_resamples):
        values[i] = _improvement(_resample(x, draw)[None], _resample(y, draw)[None])[0]
    return _percentiles(values, confidence)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Scores:
    """Share of all runs and tasks whose score is above each threshold.

    Args:
        scores: Shape (R, K).
        thresholds: Shape (M,).

    Returns:
        Shape (M,), falling from 1 to 0.
    """
    (table,) = _tables(scores)
    return _profile(table, np.asarray(thresholds, dtype=np.float64))


def _tables(*scores: ArrayLike) -> tuple[Scores, ...]:
    """As (R, K) float64 of one K, refusing scores that are not finite."""
    tables = tuple(np.asarray(s, dtype=np.float64) for s in scores)
    for table in tables:
        if table.ndim != 2 or table.size == 0 or table.shape[1] != tables[0].shape[1]:
            raise ValueError(
                f"scores: expected shape (R, K) with the same K tasks, received "
                f"{[t.shape for t in tables]}"
            )
        if not np.isfinite(table).all():
            raise ValueError("scores: expected finite numbers, received NaN or infinity")
    return tables


def _resample(table: Scores, draw: np.random.Generator) -> Scores:
    """Runs with replacement, within each task."""
    runs, tasks = table.shape
    resampled: Scores = table[draw.integers(runs, size=table.shape), np.arange(tasks)]
    return resampled


def _improvement(x: Scores, y: Scores) -> Scores:
    """Probability of improvement of (B, R, K) over (B, R', K), shape (B,)."""
    difference = x[:, :, None] - y[:, None, :]
    better: Scores = ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(1, 2, 3))
    return better


def _profile(table: Scores, thresholds: Scores) -> Scores:
    above = np.searchsorted(np.sort(table, axis=None), thresholds, side="right")
    profile: Scores = 1 - above / table.size
    return profile


def _percentiles(values: Scores, confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a share in (0, 1), received {confidence}")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
