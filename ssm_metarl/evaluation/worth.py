"""Is adaptation worth it here? What it closes of the gap between a fixed policy and a told one.

Place in the flow: stage 7, on the table of an evaluation that has the arm ``fixed``;
``ssm-metarl evaluate --worth`` prints it. For arm a, told t and fixed f, mean returns over tasks::

    share_a = (a - f) / (t - f)

All arms meet the same tasks, so differences are taken task by task, and a share's interval comes
from resampling tasks for both of its sides at once.

The traps. A better fixed policy may exist: the verdict speaks of the one that the search found. And
a gap that the unadapted policy or a probe of one bit closes as well needs no gradient step: the
verdict says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssm_metarl.evaluation.score import Score, Table
from ssm_metarl.evaluation.statistics import paired_interval, ratio_interval
from ssm_metarl.methods.fixed_policy import FixedPolicy
from ssm_metarl.methods.frozen import Frozen
from ssm_metarl.methods.random import Random
from ssm_metarl.methods.told import Probed

Scores = np.ndarray
"""One score a task, (K,)."""

DEFINITIONS = {
    "fixed": "best fixed policy that a search on training tasks found: linear in the observation "
    "and the last three actions",
    "told": "an arm that is told the task's parameters; null where the family has no such expert",
    "gap": "mean return told - fixed",
    "over_fixed": "mean return above the fixed policy's, paired by task, with its 95 % bootstrap "
    "interval over tasks",
    "share": "over_fixed / gap, with the 95 % bootstrap interval over tasks of that ratio; null "
    "without a gap",
    "best": "the adapting arm with the largest mean",
    "over_probe": "the best arm's mean return above the family's probe's, as in over_fixed",
    "worth_it": "whether there is a gap and the interval of the best arm's over_fixed is above 0",
}


def measure_worth(table: Table, *, seed: int) -> dict[str, Any]:
    """What each arm closes of the gap, and the verdict.

    Args:
        table: Of every arm; ``fixed`` and ``frozen`` among them.
        seed: Names the bootstrap's resamples.

    Returns:
        A JSON-ready object: ``gap``, ``arms``, ``best``, ``worth_it``, ``verdict`` and
        ``definitions``.
    """
    fixed = table[FixedPolicy.name].per_task
    told = next((row for row in table.scores if row.method.cost.told), None)
    probe = next((row for row in table.scores if isinstance(row.method, Probed)), None)
    gap = None if told is None else _difference(told.per_task - fixed, seed)
    arms: dict[str, Any] = {}
    for row in table.scores:
        if isinstance(row.method, (FixedPolicy, Random)) or row.method.cost.told:
            continue
        gain = row.per_task - fixed
        share = None
        if told is not None and gap is not None and gap["ci95"][0] > 0:
            whole = told.per_task - fixed
            share = {
                "mean": float(gain.mean() / whole.mean()),
                "ci95": list(ratio_interval(gain, whole, seed=seed)),
            }
        arms[row.method.name] = {"over_fixed": _difference(gain, seed), "share": share}
    adapting = [row for row in table.scores if row.method.adapts]
    best = max(adapting, key=lambda row: float(row.per_task.mean()), default=None)
    over_probe = None
    if best is not None and probe is not None:
        over_probe = _difference(best.per_task - probe.per_task, seed)
    worth_it, verdict = _verdict(best, told, probe, gap, arms, over_probe)
    return {
        "gap": gap,
        "told": None if told is None else told.method.name,
        "arms": arms,
        "best": None if best is None else best.method.name,
        "over_probe": over_probe,
        "worth_it": worth_it,
        "verdict": verdict,
        "definitions": DEFINITIONS,
    }


def _difference(per_task: Scores, seed: int) -> dict[str, Any]:
    return {"mean": float(per_task.mean()), "ci95": list(paired_interval(per_task, seed=seed))}


def _verdict(
    best: Score | None,
    told: Score | None,
    probe: Score | None,
    gap: Mapping[str, Any] | None,
    arms: Mapping[str, Any],
    over_probe: Mapping[str, Any] | None,
) -> tuple[bool, str]:
    """Whether adapting is worth it, and why, in one line."""
    if best is None:
        return False, "not worth it here: this model has no arm that adapts"
    if gap is not None and gap["ci95"][0] <= 0:
        return False, (
            f"not worth it here: being told everything gains {_points(gap)} over the best fixed "
            f"policy that was found"
        )
    name = best.method.name
    gain, share = arms[name]["over_fixed"], arms[name]["share"]
    if gain["ci95"][0] <= 0:
        word = "no more than" if gain["ci95"][1] >= 0 else "less than"
        return False, (
            f"not worth it here: {name} gets {word} the best fixed policy that was found: "
            f"{_points(gain)}"
        )
    if share is None or gap is None or told is None:
        verdict = f"worth it here: {name} gains {_points(gain)} over the best fixed policy found"
    else:
        low, high = share["ci95"]
        verdict = (
            f"worth it here: {name} closes {share['mean']:.0%} ({low:.0%} to {high:.0%}) of the "
            f"{gap['mean']:.0f} points between the best fixed policy found and "
            f"{told.method.name}, which is told everything"
        )
    frozen = arms[Frozen.name]["over_fixed"]
    if frozen["ci95"][0] > 0:
        verdict += f"; without adapting ({Frozen.name}) it gains {_points(frozen)}"
    if probe is not None and over_probe is not None and over_probe["ci95"][0] <= 0:
        word = "as much" if over_probe["ci95"][1] >= 0 else "more"
        verdict += f"; reading one bit off the same data ({probe.method.name}) gains {word}"
    return True, verdict


def _points(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    return f"{difference['mean']:+.1f} ({low:+.1f} to {high:+.1f})"
