"""All scores in a few numbers: a cell for each arm, a difference for each pair of arms.

Place in the flow: after `scoring`; `tables` and `plot` draw what comes out here. An arm's scores
are one table (R training seeds, K tasks); two arms of a pair met the same seeds and tasks.

- A *cell* has the IQM with its stratified bootstrap interval (`evaluation.statistics`).
- A *difference* has the mean of all R x K pairs, with an interval in which runs and tasks are
  resampled whole, and the probability of improvement.
- Whether hybrid is *not worse* than standard by more than a margin, or better, is tested in every
  cell, by a t statistic with the bootstrap's standard error and R - 1 degrees of freedom, and
  corrected for the number of cells by Holm's method (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from ssm_metarl.benchmarks.adaptation.arms import BUDGETS, NOTHING, SHORT, TO_GOAL
from ssm_metarl.benchmarks.adaptation.recipes import Pair, title
from ssm_metarl.benchmarks.adaptation.scoring import Scoring
from ssm_metarl.evaluation.profiles import (
    improvement_interval,
    performance_profile,
    probability_of_improvement,
)
from ssm_metarl.evaluation.statistics import (
    bootstrap_interval,
    crossed_interval,
    crossed_means,
    iqm,
    worst_tenth,
)

MARGIN = 10.0
"""Hybrid is not worse than standard if it loses less than this, of returns up to 500."""
THRESHOLDS = tuple(range(0, 501, 10))

Table = np.ndarray
"""Returns (R, K) of one arm after one amount of data."""


@dataclass(frozen=True, order=True)
class Cell:
    """What a table of scores is of."""

    family: str
    split: str
    model: str
    arm: str
    after: str


def tables(scorings: Sequence[Scoring]) -> tuple[dict[Cell, Table], list[str]]:
    """Every arm's scores of all seeds, and the names of the scorings that there are none of.

    A cell has one row a seed that was scored; yardsticks, which have no seeds, have one row.
    """
    rows: dict[Cell, list[np.ndarray]] = {}
    missing = []
    for scoring in scorings:
        scores = scoring.read()
        if scores is None:
            missing.append(scoring.name)
            continue
        for (arm, after), returns in scores.items():
            cell = Cell(scoring.family, scoring.split, scoring.model, arm, after)
            rows.setdefault(cell, []).append(returns)
    return {cell: np.stack(of) for cell, of in rows.items()}, missing


def cell_row(cell: Cell, table: Table, seed: int) -> dict[str, Any]:
    """One arm in numbers."""
    low, high = bootstrap_interval(table, seed=seed)
    of_seed = table.mean(axis=1)
    return {
        "arm": title(cell.model, cell.arm),
        "after": cell.after,
        "iqm": {"mean": iqm(table), "ci95_low": low, "ci95_high": high},
        "mean": float(table.mean()),
        "lowest_seed": float(of_seed.min()),
        "highest_seed": float(of_seed.max()),
        "worst10": worst_tenth(table),
        "seeds": len(table),
    }


def difference_row(cell: Cell, pair: Pair, ours: Table, theirs: Table, seed: int) -> dict[str, Any]:
    """Two arms in numbers, in the words of the first one's cell."""
    theirs = np.broadcast_to(theirs, ours.shape)  # a yardstick meets every seed
    low, high = crossed_interval(ours - theirs, seed=seed)
    better = improvement_interval(ours, theirs, seed=seed, num_resamples=500)
    return {
        "family": cell.family,
        "split": cell.split,
        "pair": pair.name,
        "after": cell.after,
        "difference": {"mean": float((ours - theirs).mean()), "ci95_low": low, "ci95_high": high},
        "improvement": {
            "mean": probability_of_improvement(ours, theirs),
            "ci95_low": better[0],
            "ci95_high": better[1],
        },
        "pairs": ours.size,
    }


def differences(
    found: Mapping[Cell, Table], pairs: Sequence[Pair], seed: int
) -> list[dict[str, Any]]:
    """All pairs, wherever both arms have been scored on the same seeds."""
    rows = []
    for pair in pairs:
        for cell, ours in found.items():
            if (cell.model, cell.arm) != (pair.model, pair.arm) or cell.after not in BUDGETS:
                continue
            after = pair.reference_after or cell.after
            reference = Cell(
                cell.family, cell.split, pair.reference_model, pair.reference_arm, after
            )
            theirs = found.get(reference)
            if theirs is not None:
                seeds = len(ours) if len(theirs) == 1 else min(len(ours), len(theirs))
                first = slice(seeds), slice(theirs.shape[1])  # some arms had fewer tasks or seeds
                rows.append(difference_row(cell, pair, ours[first], theirs[:seeds], seed))
    return rows


def not_worse(
    found: Mapping[Cell, Table], arm: str, reference: str, seed: int
) -> list[dict[str, Any]]:
    """Whether an arm is not worse than another by `MARGIN`, or better, in every cell of a model.

    Args:
        found: All tables.
        arm: Such as ``hybrid``.
        reference: Such as ``standard``.
        seed: Names the resamples.

    Returns:
        A row a cell; its p values are corrected for all of them.
    """
    rows: list[dict[str, Any]] = []
    for cell, ours in found.items():
        theirs = found.get(Cell(cell.family, cell.split, cell.model, reference, cell.after))
        if cell.arm != arm or cell.after not in BUDGETS or theirs is None or len(ours) < 2:
            continue
        difference = ours - theirs
        rows.append(
            {
                "family": cell.family,
                "split": cell.split,
                "model": cell.model,
                "after": cell.after,
                "pairs": difference.size,
                "mean": float(difference.mean()),
                "error": float(crossed_means(difference, seed=seed).std(ddof=1)),
                "freedom": len(difference) - 1,
            }
        )
    worse = holm([_p_above(row["mean"] + MARGIN, row) for row in rows])
    better = holm([_p_above(row["mean"], row) for row in rows])
    result = []
    for row, p_worse, p_better in zip(rows, worse, better, strict=True):
        error, freedom = row.pop("error"), row.pop("freedom")
        wide = error * float(stats.t.isf(0.025 / len(rows), freedom))
        mean = row.pop("mean")
        row["difference"] = {"mean": mean, "ci95_low": mean - wide, "ci95_high": mean + wide}
        row["p_not_worse"], row["p_better"] = p_worse, p_better
        row["verdict"] = "better" if p_better < 0.05 else "not worse" if p_worse < 0.05 else "open"
        result.append(row)
    return result


def _p_above(excess: float, row: Mapping[str, Any]) -> float:
    """One-sided p value of the hypothesis that a mean is not above zero."""
    if row["error"] == 0:  # the two arms did the same everywhere
        return 0.0 if excess > 0 else 1.0
    return float(stats.t.sf(excess / row["error"], row["freedom"]))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979), in the order given."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def curves(found: Mapping[Cell, Table]) -> dict[str, dict[str, Any]]:
    """Mean and IQM of every arm after each amount of data that it was scored after.

    Returns:
        By family and split, then by arm.
    """
    result: dict[str, dict[str, Any]] = {}
    for cell in sorted(found, key=lambda cell: _amount(cell.after)):
        arms = result.setdefault(f"{cell.family}, {cell.split}", {})
        lines = arms.setdefault(title(cell.model, cell.arm), {"after": [], "mean": [], "iqm": []})
        table = found[cell]
        lines["after"].append(cell.after)
        lines["mean"].append(round(float(table.mean()), 1))
        lines["iqm"].append(round(iqm(table), 1))
    return result


def _amount(after: str) -> float:
    """Amounts of data in order: the short episode comes before the first whole one."""
    special = {NOTHING: 0.0, SHORT: 0.5}
    return special[after] if after in special else float(after.split()[0])


def profiles(found: Mapping[Cell, Table]) -> dict[str, dict[str, list[float]]]:
    """Performance profiles after the short episode, or after nothing where an arm uses no data.

    Returns:
        By family and split, then by arm: the share of runs and tasks above each of `THRESHOLDS`.
    """
    result: dict[str, dict[str, list[float]]] = {}
    for cell, table in found.items():
        least = cell.after == NOTHING and replace(cell, after=SHORT) not in found
        if cell.after == SHORT or least:
            arms = result.setdefault(f"{cell.family}, {cell.split}", {})
            share = performance_profile(table, THRESHOLDS)
            arms[title(cell.model, cell.arm)] = [round(float(x), 4) for x in share]
    return result


def steps_to_goal(found: Mapping[Cell, Table]) -> list[dict[str, Any]]:
    """How much data it takes to reach the goal, by arm.

    Returns:
        A row for each family, split and arm: the median over seeds and tasks, None where less than
        half of them get there, and the share that does.
    """
    rows = []
    for cell, steps in sorted(found.items(), key=lambda item: item[0]):
        if cell.after != TO_GOAL:
            continue
        median = float(np.median(steps))
        rows.append(
            {
                "family": cell.family,
                "split": cell.split,
                "arm": title(cell.model, cell.arm),
                "median_env_steps": median if np.isfinite(median) else None,
                "reached": float(np.isfinite(steps).mean()),
                "runs": steps.size,
            }
        )
    return rows
