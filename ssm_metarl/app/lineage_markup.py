"""HTML of tab 3: a lineage in tiles and tables, and how the daemon is.

Place in the flow: stage 10, from `lineages` to the browser, made of `markup`'s parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ssm_metarl.app.handlers.lineages import LineageView
from ssm_metarl.app.markup import cell, notice, render
from ssm_metarl.recursive_self_improvement.gate import PRIMARY
from ssm_metarl.recursive_self_improvement.generation import Candidate, Record
from ssm_metarl.recursive_self_improvement.lineage import Lineage

METRICS = {
    PRIMARY: "return on plants out of range",
    "average_reward": "return on plants in range",
    "adaptation_speed": "return over length of data",
    "meta_learning_efficiency": "return from the shortest data",
    "stability": "how bad the worst plants are",
}


def lineage(view: LineageView) -> str:
    """Stage, counts, champion, candidates, metrics, generations and audit."""
    state = view.lineage
    return render(
        "lineage", s=view.summary,
        candidates=[_candidate(candidate) for candidate in state.candidates],
        metrics=[_metric(state, name, meaning) for name, meaning in METRICS.items()],
        generations=[_generation(record) for record in reversed(state.records)],
        audit=list(_audit(view.audit)) if view.audit else None,
    )  # fmt: skip


def _candidate(candidate: Candidate) -> dict[str, Any]:
    changes = ", ".join(f"{k} {cell(v)}" for k, v in candidate.changes.items())
    return {
        "role": str(candidate.role),
        "change": changes or "none",
        "parameters": candidate.parameters or None,
        "points in screening": 100 * candidate.mean if candidate.screened else None,
        "state": (candidate.failure or ("dropped" if candidate.dropped else ""))[:60],
    }


def _metric(lineage: Lineage, name: str, meaning: str) -> dict[str, Any]:
    standing, gate = "no test is running", lineage.confirmation
    if gate is not None:
        test = gate.tests[name]
        standing = f"passed after {test.crossed_at} pairs"
        if test.crossed_at is None:
            needed = f"{test.threshold:.0f} after {test.num_pairs} pairs"
            standing = f"open: wealth {test.wealth:.3g} of {needed}"
    return {
        "metric": name.replace("_", " "),
        "what it is": meaning,
        "generation 0": lineage.baseline.get(name),
        "its test now": standing,
    }


def _generation(record: Record) -> dict[str, Any]:
    if record.changes is None:
        change = "nothing came to confirmation"
    elif record.changes:
        change = json.dumps(record.changes)
    else:
        change = "training on, without a change"
    return {
        "generation": record.generation,
        "outcome": str(record.outcome),
        "why": record.reason,
        "change": change,
    }


def _audit(audit: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Its arms and differences."""
    for arm, splits in audit["arms"].items():
        yield arm, ", ".join(f"{split.upper()} {s['mean']:.1f}" for split, s in splits.items())
    for name, splits in audit["differences"].items():
        parts = (
            f"{split.upper()} {d['mean']:+.1f} ({d['ci95'][0]:+.1f} to {d['ci95'][1]:+.1f})"
            for split, d in splits.items()
        )
        yield name, ", ".join(parts)


def daemon(status: dict[str, Any]) -> str:
    """How the daemon is, in a line."""
    state = status["state"] + (", paused" if status["paused"] else "")
    age = status["heartbeat_age"]
    beat = f"; last heartbeat {age:.1f} s ago" if age is not None else ""
    kind = "good" if status["state"] == "running" else "info"
    return notice(f"The daemon is {state}{beat}.", kind)
