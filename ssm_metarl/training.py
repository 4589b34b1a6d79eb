"""A whole training: train -> calibrate -> verify -> save -> evaluate, for any family and mode.

Place in the flow: above `evaluation`, whose figures and limits a trained model gets, and under the
command line. The kind of configuration says the mode: `MetaTrainingConfig` (a gradient step; with
``in_context`` on top of a context), `InContextConfig` (a memory), `SingleTaskConfig` (one
environment, no adaptation)::

    trained = train(MetaTrainingConfig(num_epochs=50), "runs/mine", family=MY_FAMILY)

A training that was stopped goes on by `TrainingRun.resume`, its `train`, and :func:`finish`. The
trap: the last checkpoint is written twice, at last with its limits and verification. Whoever is
interrupted between has a model that can be finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssm_metarl.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, save_checkpoint
from ssm_metarl.command_line import command_line
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig, SingleTaskConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.env_runner.worlds import fingerprint
from ssm_metarl.evaluation.calibration import calibrate
from ssm_metarl.evaluation.meta_evaluator import (
    in_context_curve_point,
    learning_curve_point,
    verify,
)
from ssm_metarl.evaluation.opened_model import open_model
from ssm_metarl.meta_rl.single_task import (
    UpdateMetrics,
    greedy_figures,
    train_single_task,
)
from ssm_metarl.meta_rl.training_run import (
    Trainer,
    TrainingRun,
    training_command,
    training_record,
)
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.reproducibility import is_reproducible
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import TaskFamily

FINAL_TASKS = 100
"""Held-out tasks that a trained model is evaluated on."""

OnProgress = Callable[[float, str], None]
"""Told the share that is done, and how it goes in a few words."""


@dataclass(frozen=True)
class TrainedModel:
    """What came of a training."""

    policy: Policy
    out: Path
    """Its folder, for `open_model` and every command."""
    result: dict[str, Any]
    """Its evaluation on held-out tasks, as the command prints it with ``--json``."""


def train(
    config: MetaTrainingConfig | InContextConfig | SingleTaskConfig,
    out: Path | str,
    *,
    family: TaskFamily | None = None,
    on_progress: OnProgress = lambda share, message: None,
) -> TrainedModel:
    """Train, set the limits of adaptation, verify, save and evaluate.

    Args:
        config: The settings; their kind is the mode.
        out: A folder without a training.
        family: What is trained on; None for the one that the settings name.
        on_progress: Told how the training goes.

    Raises:
        ValueError: The folder holds a training, or a setting does not fit the family.
        TrainingDiverged: A number is not finite; the last good checkpoint stays.
    """
    out = Path(out)
    if isinstance(config, SingleTaskConfig):
        policy, result = train_one_task(config, family=family, on_progress=on_progress, out=out)
        return TrainedModel(policy, out, result)
    run = TrainingRun.start(config, out, family=family)
    with run.alone():
        report(run, on_progress)
        run.train()
        return finish(run, on_progress=on_progress)


def report(run: TrainingRun, on_progress: OnProgress) -> None:
    """Have a run tell how it goes, and look at its policy now and then for the log."""
    run.on_eval = lambda policy: _curve_point(policy, run.trainer)
    run.on_epoch = lambda metrics, line: on_progress(
        run.trainer.progress, f"{metrics.env_steps:,} steps, return {metrics.recent_return:.0f}"
    )


def _curve_point(policy: Policy, trainer: Trainer) -> dict[str, float]:
    """A look at a policy on the way: what its kind of training is for."""
    if isinstance(trainer.config, MetaTrainingConfig):
        return learning_curve_point(policy, trainer.family, trainer.config)
    return in_context_curve_point(policy, trainer.family)


def finish(
    run: TrainingRun,
    *,
    resumed_further: bool = False,
    on_calibration: Callable[[int], None] = lambda num_tasks: None,
    on_progress: OnProgress = lambda share, message: None,
) -> TrainedModel:
    """What comes after the last epoch: limits, verification, and an evaluation.

    The command that repeats the training is recorded, too.

    Args:
        run: The training, at its end.
        resumed_further: Whether it went on to other limits than it was started with.
        on_calibration: Told the number of tasks before the limits are set on them.
        on_progress: Told how the evaluation on held-out tasks goes.
    """
    trainer = run.trainer
    config, trained = trainer.config, MetaTrained.from_training(training_record(trainer.config))
    trainer.policy = policy = trainer.policy_on_cpu()
    num_tasks = config.calibration_tasks if isinstance(config, MetaTrainingConfig) else 0
    if num_tasks > 0 and trained.gradient:
        on_calibration(num_tasks)
        policy.calibration = calibrate(
            policy, trainer.family, trained, seed=config.seed, num_tasks=num_tasks
        )
    card: dict[str, Any] = {"reproducible": True} if is_reproducible() else {}
    card |= {
        "command": training_command(config) + _remark(trainer.family, resumed_further),
        "verification": verify(policy, trainer.family, trained),
    }
    run.save(card)
    export_pth(run.out)
    opened = open_model(str(run.out), trainer.family)
    result = opened.evaluate(EvaluationConfig(num_tasks=FINAL_TASKS), on_progress)
    result |= {"epochs": trainer.epoch, "env_steps": trainer.env_steps}
    return TrainedModel(opened.policy, run.out, result)


def _remark(family: TaskFamily, resumed_further: bool) -> str:
    """What the recorded command does not say."""
    # The learning rate decays towards the limit, so no one command does the same.
    remarks = ["its limits were changed on resuming"] if resumed_further else []
    try:
        known = fingerprint(family_of_env(family.name)) == fingerprint(family)
    except ValueError:
        known = False
    remarks += [] if known else ["its family was handed over"]
    return f"  # {', '.join(remarks)}" if remarks else ""


def export_pth(out: Path) -> None:
    """Write the documented ``model.pth`` of a `StateSpaceModel`, for anyone to load.

    It has no room for the learned step sizes: `load_model` finds them in the file beside it,
    which is a copy, so that the two stay a pair while the training goes on.
    """
    checkpoint = load_checkpoint(out)
    core = checkpoint.policy().core
    if isinstance(core, StateSpaceModel):
        model = {n: v for n, v in checkpoint.tensors.items() if not n.startswith("optimizer.")}
        save_checkpoint(out / "model.safetensors", replace(checkpoint, tensors=model, counters={}))
        core.save(out / "model.pth")


def train_one_task(
    config: SingleTaskConfig,
    *,
    family: TaskFamily | None = None,
    on_progress: OnProgress = lambda share, message: None,
    out: Path | None = None,
) -> tuple[Policy, dict[str, Any]]:
    """Train on one environment, run greedy episodes, and save, if there is a folder.

    Args:
        config: The settings.
        family: Whose default task is trained on; None for the environment that they name.
        on_progress: Told how the training goes.
        out: A folder without a checkpoint; None saves nothing.

    Returns:
        The policy, and its figures.

    Raises:
        ValueError: The folder holds a checkpoint.
        TrainingDiverged: A number is not finite; nothing is saved.
    """
    if out is not None and (out / FILE_NAME).exists():
        raise ValueError(f"out: expected a folder without a checkpoint, received {out}")
    if family is None:
        family = TaskFamily.from_gymnasium(config.env_name, parameters={})
    else:
        config = replace(config, env_name=family.gymnasium_id or family.name)

    updates: list[UpdateMetrics] = []

    def on_update(update: UpdateMetrics) -> None:
        updates.append(update)
        message = f"{update.episodes} episodes, return {update.average_return:.0f}"
        on_progress(update.episodes / config.num_episodes, message)

    policy = train_single_task(config, family, on_update)
    last = updates[-1]
    result = {
        "env_name": config.env_name,
        "seed": config.seed,
        "episodes": last.episodes,
        "env_steps": last.env_steps,
        **greedy_figures(policy, family, seed=config.seed),
    }
    if out is not None:
        card = {
            "command": command_line("train --mode policy_gradient", config),
            "single_task": asdict(config),
            "result": dict(result),
        }
        save_checkpoint(out / FILE_NAME, Checkpoint.of(policy, card=card))
        result["model"] = str(out)
    return policy, result
