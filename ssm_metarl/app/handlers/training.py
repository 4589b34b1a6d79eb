"""Tab 1: meta-train a model, watch it, stop it, use it.

Place in the flow: stage 10. A training is the command ``ssm-metarl train``, as a process of its own
(`jobs`): it saves when it is asked to stop, and what it writes (a log line an epoch) is what the
page draws.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ssm_metarl.app import forms
from ssm_metarl.app.forms import Between, OneOf
from ssm_metarl.app.handlers.models import OWN_RUN, Models, log_rows, own_run
from ssm_metarl.app.jobs import Busy, Job, JobQueue, JobState
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.command_line import PROGRAM, flags_of
from ssm_metarl.config import AdaptationMode, Core, MetaTrainingConfig, Objective
from ssm_metarl.meta_rl.training_log import LOG_NAME
from ssm_metarl.tasks.registry import family_of_env

KIND = "training"
COMMAND = "ssm_metarl.cli"
LIMIT_SECONDS = 1800.0
SEEDS = Between(0, 9_999, whole=True)
ENV_STEPS = 300_000
"""What a training takes where nothing else is entered."""


def training_form(families: Iterable[str]) -> dict[str, Between | OneOf]:
    """What may be entered; the names are fields of `MetaTrainingConfig`."""
    rates = Between(1e-5, 1.0)
    return {
        "family": OneOf(tuple(families)),
        "core": OneOf(get_args(Core)),
        "objective": OneOf(get_args(Objective)),
        "adaptation_mode": OneOf(get_args(AdaptationMode)),
        "max_env_steps": Between(2_000, 3_000_000, whole=True),
        "tasks_per_epoch": Between(2, 64, whole=True),
        "inner_lr": rates,
        "outer_lr": rates,
        "seed": SEEDS,
    }


@dataclass(frozen=True, kw_only=True)
class TrainingView:
    """How far a training is."""

    state: JobState | None = None  # before the first
    message: str = ""
    progress: float = 0.0  # from 0 to 1
    seconds_left: float | None = None  # it cannot be told yet
    log: Sequence[dict[str, Any]] = ()
    return_bounds: tuple[float, float] | None = None
    usable: bool = False  # whether there is a checkpoint to use
    active: bool = False
    command: str = ""


def start(
    visitor: Visitor, jobs: JobQueue, families: Iterable[str], entered: Mapping[str, object]
) -> None:
    """Put a training into the queue."""
    config = MetaTrainingConfig(**forms.read(training_form(families), entered))
    words = ["train", *flags_of(config), "--out", "run", "--json"]
    submit(visitor, jobs, KIND, words, limit_seconds=LIMIT_SECONDS)


def submit(
    visitor: Visitor,
    jobs: JobQueue,
    kind: str,
    words: Sequence[str],
    *,
    limit_seconds: float,
    folder: Path | None = None,
) -> None:
    """Queue a command of ``ssm-metarl``, in a folder of its own unless one is given."""
    with visitor.lock:
        for job in visitor.jobs.values():
            if job.active:
                raise Busy(
                    f"Your {job.kind} is still {job.state}: cancel it first, or wait for it."
                )
        folder = folder or visitor.new_folder(kind)
        job = Job(kind, (COMMAND, *words), folder, limit_seconds, lambda: visitor.seen)
        visitor.jobs[kind] = jobs.submit(job)


def cancel(visitor: Visitor, jobs: JobQueue, *kinds: str) -> None:
    """Stop the visitor's jobs; a training saves its last epoch first."""
    for kind in kinds:
        job = visitor.jobs.get(kind)
        if job is not None and job.active:
            jobs.cancel(job)


def use(visitor: Visitor, models: Models) -> None:
    """Make the trained model the one in use."""
    if own_run(visitor) is None:
        raise ValueError("model: your training has left no checkpoint yet")
    models.choose(visitor, OWN_RUN)


def view(visitor: Visitor, jobs: JobQueue) -> TrainingView:
    """How far the visitor's training is."""
    job = visitor.jobs.get(KIND)
    if job is None:
        return TrainingView()
    log = log_rows(job.folder / "run" / LOG_NAME)
    given = dict(itertools.pairwise(job.arguments))
    progress = min(1.0, log[-1]["env_steps"] / int(given["--max-env-steps"])) if log else 0.0
    left = None
    if job.state == JobState.RUNNING and 0 < progress < 1:
        left = sum(line.get("seconds", 0.0) for line in log) / progress * (1 - progress)
    return TrainingView(
        state=job.state,
        message=jobs.describe(job),
        progress=1.0 if job.state == JobState.DONE else progress,
        seconds_left=left,
        log=log,
        return_bounds=family_of_env(given.get("--family", MetaTrainingConfig.family)).return_bounds,
        usable=own_run(visitor) is not None and not job.active,
        active=job.active,
        command=shlex.join([PROGRAM, *(word for word in job.arguments[1:] if word != "--json")]),
    )
