"""Tab 3: a visitor's own run of recursive self-improvement, and what any lineage looks like.

Place in the flow: stage 10. A run is the command ``ssm-metarl rsi run`` as a process of its own, an
audit is ``ssm-metarl rsi audit``; the page reads the ledger that they write, and the daemon's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssm_metarl.app.handlers.models import OWN_RUN, own_run
from ssm_metarl.app.handlers.plants import FieldError, number
from ssm_metarl.app.handlers.training import COMMAND, SEEDS, check_idle, describe
from ssm_metarl.app.jobs import JobQueue
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.command_line import flags_of
from ssm_metarl.recursive_self_improvement.config import RSIRun
from ssm_metarl.recursive_self_improvement.gate import GUARDRAILS, PRIMARY
from ssm_metarl.recursive_self_improvement.generation import Candidate, Record
from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME, Ledger, LedgerDamaged
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.summary import summarize_lineage

KIND, AUDIT = "improvement", "audit"
LIMIT_SECONDS = 3600.0
CYCLES = (1, 10)
AUDIT_TASKS = 100
METRICS = {
    PRIMARY: "return on plants out of range",
    "average_reward": "return on plants in range",
    "adaptation_speed": "return over length of data",
    "meta_learning_efficiency": "return from the shortest data",
    "stability": "how bad the worst plants are",
}
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


@dataclass(frozen=True, kw_only=True)
class ImprovementForm:
    """What the page asks for; any value may have come over the network."""

    cycles: Any = 1
    effort: Any = "a quick look"
    seed: Any = 0

    def run(self, model: str) -> RSIRun:
        """The run's settings.

        Raises:
            FieldError: A field holds what it may not.
        """
        if self.effort not in EFFORTS:
            raise FieldError("effort", f"expected {' or '.join(EFFORTS)}")
        return RSIRun(
            model=model,
            cycles=int(number("cycles", self.cycles, *CYCLES)),
            seed=int(number("seed", self.seed, *SEEDS)),
            workers=1,
            **EFFORTS[str(self.effort)],
        )

    def problems(self) -> dict[str, str]:
        """What is wrong, by field; empty where nothing is."""
        found: dict[str, str] = {}
        for name in self.__dataclass_fields__:
            try:
                ImprovementForm(**{name: getattr(self, name)}).run("any")
            except FieldError as error:
                found[name] = error.message
        return found


@dataclass(frozen=True)
class LineageView:
    """A lineage as the page shows it."""

    summary: dict[str, Any]
    """See `summarize_lineage`."""
    candidates: list[Candidate]
    wealth: list[float]
    """Of the running or else the last confirmation, after every pair."""
    threshold: float | None
    """The wealth that accepts it."""
    metrics: list[tuple[str, str, float | None, str]]
    """Name, meaning, generation 0's value where it was measured, and how its test stands."""
    records: list[Record]
    bounds: tuple[float, float]
    audit: dict[str, Any] | None


@dataclass(frozen=True)
class ImprovementView:
    """A visitor's run."""

    message: str
    active: bool
    auditable: bool
    """Whether an audit can be asked for."""
    lineage: LineageView | None


def start(visitor: Visitor, jobs: JobQueue, form: ImprovementForm) -> None:
    """Put a run into the queue, from the visitor's model.

    Raises:
        FieldError: A field holds what it may not.
        Busy: The visitor has one already, or too many wait.
    """
    with visitor.lock:
        model = str(own_run(visitor)) if visitor.model == OWN_RUN else visitor.model
        run = form.run(model)
        check_idle(visitor)
        folder = visitor.new_folder(KIND)
        arguments = [COMMAND, "rsi", "run", *flags_of(run), "--lineage", "lineage", "--json"]
        visitor.jobs[KIND] = jobs.submit(
            KIND, arguments, folder,
            limit_seconds=LIMIT_SECONDS, last_seen=lambda: visitor.seen,
        )  # fmt: skip


def start_audit(visitor: Visitor, jobs: JobQueue) -> None:
    """Put an audit of the visitor's lineage into the queue.

    Raises:
        ValueError: There is no lineage.
        Busy: The visitor has a job already, or too many wait.
    """
    with visitor.lock:
        check_idle(visitor)
        folder = lineage_of(visitor)
        if folder is None or not (folder / FILE_NAME).is_file():
            raise ValueError("audit: expected a lineage, of which there is none yet")
        arguments = [
            COMMAND, "rsi", "audit", "--lineage", "lineage", "--num-tasks", str(AUDIT_TASKS),
            "--no-plain-training", "--workers", "1", "--json",
        ]  # fmt: skip
        visitor.jobs[AUDIT] = jobs.submit(
            AUDIT, arguments, folder.parent,
            limit_seconds=LIMIT_SECONDS, last_seen=lambda: visitor.seen,
        )  # fmt: skip


def view(visitor: Visitor, jobs: JobQueue) -> ImprovementView:
    """How the visitor's run stands."""
    job, audit = visitor.jobs.get(KIND), visitor.jobs.get(AUDIT)
    if job is None:
        return ImprovementView("", False, False, None)
    lineage = read_lineage(job.folder / "lineage")
    shown = audit if audit is not None and audit.folder == job.folder else job
    active = job.active or shown.active
    message = describe(shown, jobs)
    if shown is audit:
        message = f"Audit: {message}"
    return ImprovementView(message, active, lineage is not None and not active, lineage)


def lineage_of(visitor: Visitor) -> Path | None:
    """The folder of the visitor's lineage."""
    job = visitor.jobs.get(KIND)
    return None if job is None else job.folder / "lineage"


def read_lineage(folder: Path) -> LineageView | None:
    """A lineage as it stands on disk, whoever works at it; None where there is none yet.

    Raises:
        LedgerDamaged: It was changed.
    """
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        ledger = Ledger(folder, read_only=True)
    except (LedgerDamaged, FileNotFoundError):
        return None  # it is being made just now
    try:
        lineage, audit = Lineage(ledger.events()), ledger.last_audit()
    finally:
        ledger.close()
    gate, records = lineage.confirmation, lineage.records
    last = next((r for r in reversed(records) if r.wealth), None)
    wealth, threshold = [], None
    if gate is not None:
        wealth, threshold = list(gate.wealth), gate.primary.threshold
    elif last is not None:
        wealth, threshold = list(last.wealth), last.threshold
    return LineageView(
        summary=summarize_lineage(lineage, folder),
        candidates=list(lineage.candidates),
        wealth=wealth,
        threshold=threshold,
        metrics=[
            (name, METRICS[name], lineage.baseline.get(name), _standing(lineage, name))
            for name in (PRIMARY, *GUARDRAILS)
        ],
        records=list(records),
        bounds=lineage.bounds,
        audit=audit,
    )


def _standing(lineage: Lineage, name: str) -> str:
    gate = lineage.confirmation
    if gate is None:
        return "no test is running"
    test = gate.tests[name]
    if test.crossed_at is not None:
        return f"passed after {test.crossed_at} pairs"
    return f"open: wealth {test.wealth:.3g} of {test.threshold:.0f} after {test.num_pairs} pairs"


def audit_rows(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """An audit's arms and differences as rows of text."""
    rows = [
        (arm, ", ".join(f"{split.upper()} {s['mean']:.1f}" for split, s in splits.items()))
        for arm, splits in audit["arms"].items()
    ]
    for name, splits in audit["differences"].items():
        parts = (
            f"{split.upper()} {d['mean']:+.1f} ({d['ci95'][0]:+.1f} to {d['ci95'][1]:+.1f})"
            for split, d in splits.items()
        )
        rows.append((name, ", ".join(parts)))
    return rows


def as_text(record: Record) -> str:
    """What a generation changed, in words."""
    if record.changes is None:
        return "nothing came to confirmation"
    return json.dumps(record.changes) if record.changes else "training on, without a change"
