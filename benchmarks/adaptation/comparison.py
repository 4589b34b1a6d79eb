"""All scores in a few numbers: a cell for each arm, a difference for each pair of arms.

Place in the flow: after `scoring`; `tables` and `plot` draw what comes out here. An arm's scores
are one table (R training seeds, K tasks); two are compared on the seeds and tasks that both met.

- A *cell* has the IQM with its stratified bootstrap interval (`evaluation.statistics`).
- A *difference* has the mean of all R x K pairs, with an interval over runs and tasks
  (`crossed_interval`), and the probability of improvement, whose interval is over runs.
- Whether hybrid is *not worse* than standard by more than a margin, or better, is tested in every
  cell, by a t statistic with the same standard error and R - 1 degrees of freedom, and corrected
  for the number of cells by Holm's method (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.adaptation.arms import BUDGETS, NOTHING, SHORT, TO_GOAL
from benchmarks.adaptation.profiles import (
    improvement_interval,
    performance_profile,
    probability_of_improvement,
)
from benchmarks.adaptation.recipes import Pair, title
from benchmarks.adaptation.scoring import Scoring
from ssm_metarl.evaluation.statistics import (
    bootstrap_interval,
    crossed_error,
    crossed_interval,
    iqm,
    worst_tenth,
)

MARGIN = 10.0
"""Hybrid is not worse than standard if it loses less than this, of returns up to 500."""
THRESHOLDS = tuple(range(0, 501, 10))


@dataclass(frozen=True, order=True)
class Cell:
    """What a table of scores is of."""

    family: str
    split: str
    model: str
    arm: str
    after: str


@dataclass(frozen=True)
class Table:
    """One arm's scores after one amount of data."""

    returns: np.ndarray
    """Shape (R, K)."""
    seeds: tuple[int, ...] = ()
    """Training seed of each row; none of a yardstick, which has one row."""

    def matched(self, other: Table) -> tuple[np.ndarray, np.ndarray]:
        """The returns of both on the seeds and tasks that both met, each (R', K').

        A yardstick meets every seed; some arms were tried on the first tasks alone.
        """
        common = [s for s in self.seeds if not other.seeds or s in other.seeds]
        num_tasks = min(self.returns.shape[1], other.returns.shape[1])
        ours = self.returns[[self.seeds.index(s) for s in common], :num_tasks]
        rows = [other.seeds.index(s) if other.seeds else 0 for s in common]
        return ours, other.returns[rows, :num_tasks]


def tables(scorings: Sequence[Scoring]) -> tuple[dict[Cell, Table], list[str]]:
    """Every arm's scores of all seeds, and the names of the scorings that there are none of."""
    rows: dict[Cell, list[np.ndarray]] = {}
    seeds: dict[Cell, list[int]] = {}
    missing = []
    for scoring in scorings:
        scores = scoring.read()
        if scores is None:
            missing.append(scoring.name)
            continue
        for (arm, after), returns in scores.items():
            cell = Cell(scoring.family, scoring.split, scoring.model, arm, after)
            rows.setdefault(cell, []).append(returns)
            if scoring.training is not None:
                seeds.setdefault(cell, []).append(scoring.training.seed)
    found = {cell: Table(np.stack(of), tuple(seeds.get(cell, ()))) for cell, of in rows.items()}
    return found, missing


def cell_row(cell: Cell, table: Table, seed: int) -> dict[str, Any]:
    """One arm in numbers."""
    returns = table.returns
    low, high = bootstrap_interval(returns, seed=seed)
    of_seed = returns.mean(axis=1)
    return {
        "arm": title(cell.model, cell.arm),
        "after": cell.after,
        "iqm": {
            "mean": iqm(returns),
            "ci95_low": max(low, float(returns.min())),  # the stretched ends know no bounds
            "ci95_high": min(high, float(returns.max())),
        },
        "mean": float(returns.mean()),
        "lowest_seed": float(of_seed.min()),
        "highest_seed": float(of_seed.max()),
        "worst10": worst_tenth(returns),
        "seeds": len(returns),
    }


def difference_row(
    cell: Cell, pair: Pair, ours: np.ndarray, theirs: np.ndarray, seed: int
) -> dict[str, Any]:
    """Two arms in numbers, in the words of the first one's cell."""
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
    """All pairs, wherever both arms have been scored on the same two seeds or more."""
    rows = []
    for pair in pairs:
        for cell, table in found.items():
            if (cell.model, cell.arm) != (pair.model, pair.arm) or cell.after not in BUDGETS:
                continue
            after = pair.reference_after or cell.after
            reference = found.get(
                Cell(cell.family, cell.split, pair.reference_model, pair.reference_arm, after)
            )
            if reference is not None:
                ours, theirs = table.matched(reference)
                if len(ours) > 1:
                    rows.append(difference_row(cell, pair, ours, theirs, seed))
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
    for cell, table in found.items():
        other = found.get(Cell(cell.family, cell.split, cell.model, reference, cell.after))
        if cell.arm != arm or cell.after not in BUDGETS or other is None:
            continue
        ours, theirs = table.matched(other)
        if len(ours) < 2:
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
                "error": crossed_error(difference, seed=seed),
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
        returns = found[cell].returns
        lines["after"].append(cell.after)
        lines["mean"].append(round(float(returns.mean()), 1))
        lines["iqm"].append(round(iqm(returns), 1))
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
    adapting = {replace(cell, after="") for cell in found if cell.after != NOTHING}
    result: dict[str, dict[str, list[float]]] = {}
    for cell, table in found.items():
        without_data = cell.after == NOTHING and replace(cell, after="") not in adapting
        if cell.after == SHORT or without_data:
            arms = result.setdefault(f"{cell.family}, {cell.split}", {})
            share = performance_profile(table.returns, THRESHOLDS)
            arms[title(cell.model, cell.arm)] = [round(float(x), 4) for x in share]
    return result


def steps_to_goal(found: Mapping[Cell, Table]) -> list[dict[str, Any]]:
    """How much data it takes to reach the goal, by arm.

    Returns:
        A row for each family, split and arm: the median over seeds and tasks, None where less than
        half of them get there, and the share that does.
    """
    rows = []
    for cell, table in sorted(found.items(), key=lambda item: item[0]):
        if cell.after != TO_GOAL:
            continue
        steps = table.returns
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
