"""Tab 1: meta-train a model, watch it, stop it, use it.

Place in the flow: stage 10. A training is the command ``ssm-metarl train``, as a process of its own
(`jobs`): it saves when it is asked to stop, and what it writes (a log line an epoch) is what the
page draws.
"""

from __future__ import annotations

import itertools
import shlex
from dataclasses import dataclass
from typing import Any, get_args

from ssm_metarl.app.handlers.models import OWN_RUN, Models, own_run
from ssm_metarl.app.handlers.plants import FieldError, number
from ssm_metarl.app.jobs import Job, JobQueue, JobState
from ssm_metarl.app.visitors import Busy, Visitor
from ssm_metarl.command_line import PROGRAM, flags_of
from ssm_metarl.config import AdaptationMode, Core, MetaTrainingConfig, Objective
from ssm_metarl.meta_rl.training_log import LOG_NAME, read_log
from ssm_metarl.tasks.registry import FAMILIES

KIND = "training"
COMMAND = "ssm_metarl.cli"
LIMIT_SECONDS = 1800.0
ENV_STEPS = (2_000, 3_000_000)
TASKS = (2, 64)
RATES = (1e-5, 1.0)
SEEDS = (0, 9_999)
FIRST_FAMILY = next(iter(FAMILIES))


@dataclass(frozen=True, kw_only=True)
class TrainingForm:
    """What the page asks for; any value may have come over the network."""

    family: Any = FIRST_FAMILY
    core: Any = "diagonal"
    objective: Any = "prediction"
    adaptation_mode: Any = "standard"
    max_env_steps: Any = 300_000
    tasks_per_epoch: Any = MetaTrainingConfig.tasks_per_epoch
    inner_lr: Any = MetaTrainingConfig.inner_lr
    outer_lr: Any = MetaTrainingConfig.outer_lr
    seed: Any = 0

    def config(self) -> MetaTrainingConfig:
        """The training's settings.

        Raises:
            FieldError: A field holds what it may not.
        """
        return MetaTrainingConfig(
            family=_choice("family", self.family, tuple(FAMILIES)),
            core=_choice("core", self.core, get_args(Core)),
            objective=_choice("objective", self.objective, get_args(Objective)),
            adaptation_mode=_choice(
                "adaptation_mode", self.adaptation_mode, get_args(AdaptationMode)
            ),
            max_env_steps=int(number("max_env_steps", self.max_env_steps, *ENV_STEPS)),
            tasks_per_epoch=int(number("tasks_per_epoch", self.tasks_per_epoch, *TASKS)),
            inner_lr=number("inner_lr", self.inner_lr, *RATES),
            outer_lr=number("outer_lr", self.outer_lr, *RATES),
            seed=int(number("seed", self.seed, *SEEDS)),
        )

    def problems(self) -> dict[str, str]:
        """What is wrong, by field; empty where nothing is."""
        found: dict[str, str] = {}
        sound = TrainingForm()
        for name in self.__dataclass_fields__:
            alone = TrainingForm(**{**vars(sound), name: getattr(self, name)})
            try:
                alone.config()
            except FieldError as error:
                found[name] = error.message
        return found


@dataclass(frozen=True)
class TrainingView:
    """How far a training is."""

    state: JobState | None
    """None before the first."""
    message: str
    progress: float
    """From 0 to 1."""
    seconds_left: float | None
    """None where it cannot be told yet."""
    log: list[dict[str, Any]]
    return_bounds: tuple[float, float] | None
    """Least and greatest return of its family's episodes."""
    usable: bool
    """Whether there is a checkpoint to use."""
    active: bool
    command: str


def start(visitor: Visitor, jobs: JobQueue, form: TrainingForm) -> None:
    """Put a training into the queue.

    Raises:
        FieldError: A field holds what it may not.
        Busy: The visitor has one already, or too many wait.
    """
    config = form.config()
    with visitor.lock:
        check_idle(visitor)
        folder = visitor.new_folder(KIND)
        arguments = [COMMAND, "train", *flags_of(config), "--out", "run", "--json"]
        visitor.jobs[KIND] = jobs.submit(
            KIND, arguments, folder,
            limit_seconds=LIMIT_SECONDS, last_seen=lambda: visitor.seen,
        )  # fmt: skip


def cancel(visitor: Visitor, jobs: JobQueue, kind: str = KIND) -> None:
    """Stop the visitor's job; a training saves its last epoch first."""
    job = visitor.jobs.get(kind)
    if job is not None and job.active:
        jobs.cancel(job)


def use(visitor: Visitor, models: Models) -> None:
    """Make the trained model the one in use.

    Raises:
        ValueError: It has left no checkpoint yet.
    """
    if own_run(visitor) is None:
        raise ValueError("model: your training has left no checkpoint yet")
    models.choose(visitor, OWN_RUN)


def view(visitor: Visitor, jobs: JobQueue) -> TrainingView:
    """How far the visitor's training is."""
    job = visitor.jobs.get(KIND)
    if job is None:
        return TrainingView(None, "", 0.0, None, [], None, False, False, "")
    log_path = job.folder / "run" / LOG_NAME
    log = read_log(log_path).rows if log_path.is_file() else []
    given = dict(itertools.pairwise(job.arguments))
    limit = int(given["--max-env-steps"])
    progress = min(1.0, log[-1]["env_steps"] / limit) if log else 0.0
    spent = sum(line.get("seconds", 0.0) for line in log)
    left = spent / progress * (1 - progress) if 0 < progress < 1 else None
    words = [word for word in job.arguments[1:] if word not in ("--json",)]
    return TrainingView(
        state=job.state,
        message=describe(job, jobs),
        progress=1.0 if job.state == JobState.DONE else progress,
        seconds_left=left if job.state == JobState.RUNNING else None,
        log=log,
        return_bounds=FAMILIES[given.get("--family", MetaTrainingConfig.family)].return_bounds,
        usable=own_run(visitor) is not None and not job.active,
        active=job.active,
        command=shlex.join([PROGRAM, *words]),
    )


def describe(job: Job, jobs: JobQueue) -> str:
    """A job's state in a sentence."""
    match job.state:
        case JobState.WAITING:
            ahead = jobs.ahead_of(job)
            return f"Waiting: {ahead} before it." if ahead else "About to start."
        case JobState.RUNNING:
            if job.cancelled.is_set():
                return "Stopping: it saves its last epoch first."
            return job.last_line() or "Starting."
        case JobState.DONE:
            return "Done."
        case JobState.STOPPED:
            return f"Stopped ({job.why}); what it had saved stays."
        case JobState.FAILED:
            return f"It failed: {job.why}"


def check_idle(visitor: Visitor) -> None:
    """See that the visitor has nothing in the queue.

    Raises:
        Busy: They have.
    """
    for job in visitor.jobs.values():
        if job.active:
            raise Busy(f"Your {job.kind} is still {job.state}: cancel it first, or wait for it.")


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise FieldError(name, f"expected {' or '.join(allowed)}")
    return value
