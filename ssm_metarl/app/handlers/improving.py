"""Tab 3: a visitor's own run of recursive self-improvement, and its audit.

Place in the flow: stage 10. A run is the command ``ssm-metarl rsi run`` as a process of its own, an
audit is ``ssm-metarl rsi audit``; the page reads the ledger that they write (`lineages`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssm_metarl.app import forms
from ssm_metarl.app.forms import Between, OneOf
from ssm_metarl.app.handlers.lineages import LineageView, read_lineage
from ssm_metarl.app.handlers.models import OWN_RUN, own_run
from ssm_metarl.app.handlers.training import SEEDS, submit
from ssm_metarl.app.jobs import JobQueue
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.command_line import flags_of
from ssm_metarl.recursive_self_improvement.config import RSIRun
from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME

KIND, AUDIT = "improvement", "audit"
LIMIT_SECONDS = 3600.0
AUDIT_TASKS = 100
EFFORTS: dict[str, dict[str, Any]] = {
    "a quick look": {
        "num_candidates": 1, "train_steps": 3_000, "screen_pairs": (2, 4), "confirm_pairs": 32,
        "attribution_pairs": 32, "canary_pairs": 32, "batch_pairs": 16,
    },
    "a small run": {
        "num_candidates": 3, "train_steps": 50_000, "screen_pairs": (16, 32),
        "confirm_pairs": 300, "attribution_pairs": 128, "canary_pairs": 300,
    },
    "as the daemon does it": {},
}  # fmt: skip
"""What a cycle may spend; the last is `RSIConfig`'s own defaults."""
CYCLES = Between(1, 10, whole=True)
FORM: dict[str, Between | OneOf] = {
    "cycles": CYCLES,
    "effort": OneOf(tuple(EFFORTS)),
    "seed": SEEDS,
}


@dataclass(frozen=True)
class ImprovementView:
    """A visitor's run."""

    message: str = ""
    active: bool = False
    auditable: bool = False
    lineage: LineageView | None = None


def run_of(entered: Mapping[str, object], model: str) -> RSIRun:
    """The settings of a run."""
    given = forms.read(FORM, entered)
    return RSIRun(model=model, workers=1, **EFFORTS[given.pop("effort")], **given)


def start(visitor: Visitor, jobs: JobQueue, entered: Mapping[str, object]) -> None:
    """Put a run into the queue, from the visitor's model."""
    model = str(own_run(visitor)) if visitor.model == OWN_RUN else visitor.model
    flags = flags_of(run_of(entered, model))
    words = ["rsi", "run", *flags, "--lineage", "lineage", "--json"]
    submit(visitor, jobs, KIND, words, limit_seconds=LIMIT_SECONDS)


def start_audit(visitor: Visitor, jobs: JobQueue) -> None:
    """Put an audit of the visitor's lineage into the queue."""
    job = visitor.jobs.get(KIND)
    if job is None or not (job.folder / "lineage" / FILE_NAME).is_file():
        raise ValueError("audit: expected a lineage, of which there is none yet")
    words = [
        "rsi", "audit", "--lineage", "lineage", "--num-tasks", str(AUDIT_TASKS),
        "--no-plain-training", "--workers", "1", "--json",
    ]  # fmt: skip
    submit(visitor, jobs, AUDIT, words, limit_seconds=LIMIT_SECONDS, folder=job.folder)


def view(visitor: Visitor, jobs: JobQueue) -> ImprovementView:
    """How the visitor's run stands."""
    job, audit = visitor.jobs.get(KIND), visitor.jobs.get(AUDIT)
    if job is None:
        return ImprovementView()
    lineage = read_lineage(job.folder / "lineage")
    audited = audit is not None and audit.folder == job.folder
    message = f"Audit: {jobs.describe(audit)}" if audit and audited else jobs.describe(job)
    active = job.active or bool(audit and audited and audit.active)
    return ImprovementView(message, active, lineage is not None and not active, lineage)
