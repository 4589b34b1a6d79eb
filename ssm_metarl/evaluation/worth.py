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

from ssm_metarl.evaluation.score import Table
from ssm_metarl.evaluation.statistics import mean_difference, ratio_interval
from ssm_metarl.methods.fixed_policy import FixedPolicy
from ssm_metarl.methods.frozen import Frozen
from ssm_metarl.methods.random import Random
from ssm_metarl.methods.told import Probed

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
    told = next((row for row in table.values() if row.method.cost.told), None)
    probe = next((row for row in table.values() if isinstance(row.method, Probed)), None)
    whole = None if told is None else told.per_task - fixed
    gap = None if whole is None else mean_difference(whole, seed=seed)
    arms: dict[str, Any] = {}
    for name, row in table.items():
        if isinstance(row.method, (FixedPolicy, Random)) or row.method.cost.told:
            continue
        gain, share = row.per_task - fixed, None
        if whole is not None and gap is not None and gap["ci95"][0] > 0:
            share = {
                "mean": float(gain.mean() / whole.mean()),
                "ci95": list(ratio_interval(gain, whole, seed=seed)),
            }
        arms[name] = {"over_fixed": mean_difference(gain, seed=seed), "share": share}
    adapting = [row for row in table.values() if row.method.adapts]
    best = max(adapting, key=lambda row: float(row.per_task.mean()), default=None)
    over_probe = None
    if best is not None and probe is not None:
        over_probe = mean_difference(best.per_task - probe.per_task, seed=seed)
    worth: dict[str, Any] = {
        "gap": gap,
        "told": None if told is None else told.method.name,
        "arms": arms,
        "best": None if best is None else best.method.name,
        "over_probe": over_probe,
    }
    worth["worth_it"], worth["verdict"] = _verdict(
        worth, "" if probe is None else probe.method.name
    )
    return worth | {"definitions": DEFINITIONS}


def _verdict(worth: Mapping[str, Any], probe: str) -> tuple[bool, str]:
    """Whether adapting is worth it, and why, in one line."""
    name, told, gap, over_probe = (worth[key] for key in ("best", "told", "gap", "over_probe"))
    if name is None:
        return False, "not worth it here: this model has no arm that adapts"
    if gap is not None and gap["ci95"][0] <= 0:
        return False, (
            f"not worth it here: being told everything gains {_points(gap)} over the best fixed "
            f"policy that was found"
        )
    gain, share = worth["arms"][name]["over_fixed"], worth["arms"][name]["share"]
    if gain["ci95"][0] <= 0:
        word = "no more than" if gain["ci95"][1] >= 0 else "less than"
        return False, (
            f"not worth it here: {name} gets {word} the best fixed policy that was found: "
            f"{_points(gain)}"
        )
    if share is None:
        verdict = f"worth it here: {name} gains {_points(gain)} over the best fixed policy found"
    else:
        low, high = share["ci95"]
        verdict = (
            f"worth it here: {name} closes {share['mean']:.0%} ({low:.0%} to {high:.0%}) of the "
            f"{gap['mean']:.0f} points between the best fixed policy found and {told}, which is "
            f"told everything"
        )
    frozen = worth["arms"][Frozen.name]["over_fixed"]
    if frozen["ci95"][0] > 0:
        verdict += f"; without adapting ({Frozen.name}) it gains {_points(frozen)}"
    if over_probe is not None and over_probe["ci95"][0] <= 0:
        word = "as much" if over_probe["ci95"][1] >= 0 else "more"
        verdict += f"; reading one bit off the same data ({probe}) gains {word}"
    return True, verdict


def _points(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    return f"{difference['mean']:+.1f} ({low:+.1f} to {high:+.1f})"
