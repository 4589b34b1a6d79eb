"""The whole comparison: train, score, compare, write. Resumable at any moment.

Place in the flow: what ``ssm-metarl bench adaptation`` calls. Models and score files stay in the
work folder; only what is missing there is computed, in worker processes of one thread each. A job
that fails is reported in the result, with all that depends on it, and never left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.adaptation.arms import BUDGETS, GOAL, TO_GOAL, Protocol
from benchmarks.adaptation.comparison import (
    MARGIN,
    THRESHOLDS,
    cell_row,
    curves,
    differences,
    not_worse,
    profiles,
    steps_to_goal,
    tables,
)
from benchmarks.adaptation.plot import draw
from benchmarks.adaptation.recipes import PAIRS, RECIPES, Size
from benchmarks.adaptation.scoring import Scoring
from benchmarks.adaptation.tables import as_markdown
from benchmarks.adaptation.training import Training
from benchmarks.machine import machine
from ssm_metarl.recursive_self_improvement.executor import LocalExecutor
from ssm_metarl.recursive_self_improvement.worker import Outcome
from ssm_metarl.settings import require
from ssm_metarl.tasks.task_family import Split
from ssm_metarl.version import __version__

LONGEST_JOB_SECONDS, MEMORY_LIMIT_MB = 7200.0, 8000.0
SPLITS: tuple[Split, ...] = ("id", "ood")
SPLIT_WORDS = {"id": "in distribution", "ood": "out of distribution"}

DEFINITIONS = {
    "after": "data of a task that an arm had before it was scored: a short episode of 20 steps, or "
    "so many whole episodes; arms that remember play them themselves, for gradient arms the "
    "support policy does (uniform actions, or the unadapted policy sampled)",
    "iqm": "interquartile mean of the returns of all seeds and tasks, one greedy full-length "
    "episode each, with the 95 % interval of a bootstrap stratified by task (over tasks, where "
    "there are no seeds)",
    "lowest_seed": "mean return of the training seed with the lowest one",
    "worst10": "mean of the worst tenth of all returns",
    "difference": "mean over all pairs of seed and task; 95 % interval over both, by Student's t "
    "and a bootstrap's standard error",
    "improvement": "probability that the first arm is better on a task, a draw counting half; "
    "95 % interval over seeds",
    "not_worse": f"hybrid loses less than {MARGIN:g} against standard: one-sided p values, Holm-"
    "corrected over all rows; the interval is corrected for their number too",
    "median_env_steps": f"environment steps of data until a task's return is {GOAL:g}, median over "
    "seeds and tasks; empty where less than half get there. Gradient arms are looked at after 20 "
    "steps, 1, 3 and 10 episodes; fine-tuning after every episode, up to 200",
    "standard": "gradient steps on the task's data",
    "hybrid": "gradient steps on the task's data and on replayed experience, weighed by propensity",
    "hybrid_uniform": "the same, replayed data not weighed",
    "in_context": "no gradient step; hidden state carried through all episodes",
    "both": "a gradient step on the short episode, then hidden state carried through all episodes",
    "without_step": "the same model without that step",
    "frozen": "no gradient step, hidden state cleared every episode",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared."""

    families: tuple[str, ...]
    seeds: int
    """Training seeds 0, 1, 2, ... of every model."""
    protocol: Protocol
    size: Size = "whole"

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "seeds", "at least 1", self.seeds)
        for name in self.families:
            require(name in RECIPES, "families", f"among {', '.join(RECIPES)}", name)

    def trainings(self, work: Path) -> list[Training]:
        """All of them, those that another one starts from first."""
        jobs = [
            Training(family, model, seed, self.size, work)
            for family in self.families
            for model, recipe in RECIPES[family].items()
            for seed in range(min(self.seeds, recipe.seeds))
        ]
        return sorted(jobs, key=lambda job: job.needs is not None)

    def scorings(self, work: Path) -> list[Scoring]:
        """One for each model and split, and for the yardsticks."""
        of_models = [
            Scoring(job.family, split, self.protocol, work, job)
            for job in self.trainings(work)
            for split in SPLITS
        ]
        yardsticks = [
            Scoring(family, split, self.protocol, work)
            for family in self.families
            for split in SPLITS
        ]
        return of_models + yardsticks


def run(
    plan: Plan, work: Path, *, workers: int, report: Callable[[float, str], None]
) -> dict[str, Any]:
    """Compute what is missing, and compare.

    Args:
        plan: What is compared.
        work: Folder of models and scores.
        workers: Processes.
        report: Called with the share of jobs done and the job that ended.

    Returns:
        A JSON-ready object; ``failed`` names what could not be computed, and why.
    """
    trainings, scorings = plan.trainings(work), plan.scorings(work)
    waves: tuple[list[Training] | list[Scoring], ...] = (
        [job for job in trainings if job.needs is None],
        [job for job in trainings if job.needs is not None],
        scorings,
    )
    done = 0
    failed: dict[str, str] = {}
    trained: list[dict[str, Any]] = []

    def record(job: Training | Scoring, failure: str | None, value: Any = None) -> None:
        nonlocal done
        done += 1
        report(done / (len(trainings) + len(scorings)), job.name)
        if failure is not None:
            failed[job.name] = failure
        elif value is not None:
            trained.append(value)

    def ended(jobs: Sequence[Training | Scoring], index: int, outcome: Outcome) -> None:
        record(jobs[index], outcome.failure, outcome.value)

    with LocalExecutor(
        num_workers=workers,
        timeout_seconds=LONGEST_JOB_SECONDS,
        memory_limit_mb=MEMORY_LIMIT_MB,
    ) as executor:
        for wave in waves:
            ready: list[Training | Scoring] = []
            for job in wave:  # nothing comes of a model that was not trained to the end
                if job.needs is not None and job.needs.name in failed:
                    record(job, f"{job.needs.name} failed")
                else:
                    ready.append(job)
            executor.run(ready, on_done=partial(ended, ready))
    return compare(plan, [job for job in scorings if job.name not in failed]) | {
        "trainings": sorted(trained, key=lambda t: (t["family"], t["model"], t["seed"])),
        "failed": [{"what": name, "why": why} for name, why in failed.items()],
    }


def compare(plan: Plan, scorings: Sequence[Scoring]) -> dict[str, Any]:
    """The result, from the score files that there are."""
    found, missing = tables(scorings)
    seed = plan.protocol.seed
    scored = {cell: table for cell, table in found.items() if cell.after != TO_GOAL}
    rows = []
    for family in plan.families:
        for split in SPLITS:
            cells = sorted(c for c in scored if (c.family, c.split) == (family, split))
            row = {
                "name": f"{family}, {SPLIT_WORDS[split]}",
                "what": f"{plan.protocol.num_tasks} unseen tasks, {plan.seeds} training seeds",
                "measurements": [
                    cell_row(cell, scored[cell], seed)
                    for after in BUDGETS
                    for cell in cells
                    if cell.after == after
                ],
            }
            if row["measurements"]:
                rows.append(row)
    return {
        "version": __version__,
        **asdict(plan.protocol),
        "seeds": plan.seeds,
        "families": list(plan.families),
        "size": plan.size,
        "machine": machine(),
        "definitions": DEFINITIONS,
        "not_scored": missing,
        "rows": rows,
        "differences": differences(scored, PAIRS, seed),
        "hybrid_not_worse": not_worse(scored, "hybrid", "standard", seed),
        "uniform_replay": not_worse(scored, "hybrid_uniform", "standard", seed),
        "env_steps_to_goal": steps_to_goal(found),
        "curves": curves(scored),
        "thresholds": THRESHOLDS,
        "profiles": profiles(scored),
    }


def write(result: dict[str, Any], out: Path) -> None:
    """Write figures, tables and pictures into a folder.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    for folder in (out / "plots", out / "tables"):
        folder.mkdir(parents=True, exist_ok=True)
    (out / "adaptation.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    (out / "tables" / "adaptation.md").write_text(as_markdown(result))
    draw(result, out / "plots")
