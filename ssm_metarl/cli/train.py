"""``ssm-metarl train``: meta-training, or plain policy-gradient training of one task.

Place in the flow: a command; the work is `meta_rl.training_run` and `meta_rl.single_task`.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ssm_metarl.cli.console import Reporter, note, print_evaluation, print_json
from ssm_metarl.config import MetaTrainingConfig, SingleTaskConfig

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.meta_rl.trainer import EpochMetrics
    from ssm_metarl.meta_rl.training_run import TrainingRun

EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130
FINAL_TASKS = 100


@dataclass(frozen=True, kw_only=True)
class Train(MetaTrainingConfig):
    """Meta-train a policy over a task family (--mode policy_gradient trains one task).

    Ctrl-C finishes the epoch, saves, and says how to resume. The last checkpoint counts.
    """

    family: Annotated[str, tyro.conf.arg(aliases=("--env-name",))] = "cartpole"
    """Task family, or the Gymnasium id that names it."""
    out: Path | None = None
    """Folder of the run; None for runs/FAMILY-SEED. A training in it is never overwritten."""
    resume: Path | None = None
    """Continue the training in this folder; of the other flags only the limits count."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Train, evaluate on held-out tasks, record the verification."""
        from ssm_metarl.evaluation.meta_evaluator import learning_curve_point
        from ssm_metarl.meta_rl.meta_maml import TrainingDiverged
        from ssm_metarl.meta_rl.training_run import TrainingRun

        with Reporter("meta-training") as reporter:

            def on_epoch(metrics: EpochMetrics, line: dict[str, Any]) -> None:
                message = f"{metrics.env_steps:,} steps, return {metrics.recent_return:.0f}"
                reporter.update(run.trainer.progress, message)

            def on_eval(policy: Policy) -> dict[str, float]:
                return learning_curve_point(policy, run.trainer.family, run.trainer.config)

            callbacks = {"on_epoch": on_epoch, "on_eval": on_eval}
            if self.resume is not None:
                run = TrainingRun.resume(
                    self.resume,
                    num_epochs=self.num_epochs,
                    max_env_steps=self.max_env_steps,
                    **callbacks,
                )
            else:
                out = self.out or free_folder(Path("runs"), f"{self.family}-seed{self.seed}")
                run = TrainingRun.start(self._config(), out, **callbacks)
            try:
                with stop_on_signal(run):
                    run.train()
            except TrainingDiverged as error:
                note(f"ssm-metarl: training stopped: {error}; the last good checkpoint is "
                     f"{run.out}")  # fmt: skip
                return EXIT_DIVERGED
        if run.stopped:
            note(f"stopped at epoch {run.trainer.epoch}, saved; continue with: "
                 f"ssm-metarl train --resume {run.out}")  # fmt: skip
            return EXIT_INTERRUPTED
        self._finish(run)
        return 0

    def _config(self) -> MetaTrainingConfig:
        names = [field.name for field in fields(MetaTrainingConfig)]
        return MetaTrainingConfig(**{name: getattr(self, name) for name in names})

    def _finish(self, run: TrainingRun) -> None:
        """Evaluate the last checkpoint, record its verification, say what came of it."""
        from ssm_metarl.cli.evaluate import evaluate_model
        from ssm_metarl.config import EvaluationConfig
        from ssm_metarl.evaluation.meta_evaluator import MetaTrained, verify

        trainer = run.trainer
        trained = MetaTrained.from_training(asdict(trainer.config))
        card = {
            "command": command_line(),
            "verification": verify(trainer.policy, trainer.family, trained),
        }
        run.save(card)
        export_pth(trainer.policy, run.out)
        result = evaluate_model(str(run.out), EvaluationConfig(num_tasks=FINAL_TASKS))
        result["epochs"], result["env_steps"] = trainer.epoch, trainer.env_steps
        if self.json:
            print_json(result)
            return
        print_evaluation(result)
        difference = result["paired"]["standard-frozen"]
        print(
            f"adapted {result['arms']['standard']['mean']:.1f}, "
            f"frozen {result['arms']['frozen']['mean']:.1f}, difference "
            f"{difference['mean']:+.1f} (95 % interval {difference['ci95'][0]:+.1f} to "
            f"{difference['ci95'][1]:+.1f}) after {trainer.env_steps:,} environment steps"
        )
        print(f"model: {run.out}")


def export_pth(policy: Policy, out: Path) -> None:
    """Write the documented ``.pth`` beside the checkpoint of a `StateSpaceModel` policy."""
    from ssm_metarl.core.ssm import StateSpaceModel

    if isinstance(policy.core, StateSpaceModel):
        policy.core.save(out / "model.pth")


def free_folder(parent: Path, name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... that does not exist."""
    folder, count = parent / name, 1
    while folder.exists():
        count += 1
        folder = parent / f"{name}-{count}"
    return folder


def command_line() -> str:
    """The command as one would type it again."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@contextlib.contextmanager
def stop_on_signal(run: TrainingRun) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a stop after the epoch; a second one is immediate."""

    def request(number: int, frame: object) -> None:
        signal.signal(number, signal.default_int_handler)
        note("stopping after this epoch (once more to stop at once) ...")
        run.request_stop()

    previous = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class TrainPolicyGradient(SingleTaskConfig):
    """Train a policy on one environment with plain policy gradients (--mode policy_gradient)."""

    out: Path | None = None
    """Folder for the trained policy; None writes none."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Train, then run 50 greedy episodes."""
        from ssm_metarl.meta_rl.meta_maml import TrainingDiverged
        from ssm_metarl.meta_rl.single_task import (
            UpdateMetrics,
            run_episodes,
            save_single_task,
            train_single_task,
        )
        from ssm_metarl.tasks.task_family import TaskFamily

        names = [field.name for field in fields(SingleTaskConfig)]
        config = SingleTaskConfig(**{name: getattr(self, name) for name in names})
        family = TaskFamily.from_gymnasium(self.env_name, parameters={})
        metrics = None
        with Reporter("policy gradient") as reporter:

            def on_update(update: UpdateMetrics) -> None:
                nonlocal metrics
                metrics = update
                reporter.update(
                    update.episodes / self.num_episodes,
                    f"{update.episodes} episodes, return {update.average_return:.0f}",
                )

            try:
                policy = train_single_task(config, family, on_update)
            except TrainingDiverged as error:
                note(f"ssm-metarl: training stopped: {error}")
                return EXIT_DIVERGED
        greedy = run_episodes(
            policy, family, 50, seed=self.seed, purpose="single-task-evaluation", greedy=True
        ).episode_returns()
        assert metrics is not None
        result = {
            "env_name": self.env_name,
            "seed": self.seed,
            "episodes": metrics.episodes,
            "env_steps": metrics.env_steps,
            "greedy_episodes": greedy.numel(),
            "mean": float(greedy.mean()),
            "std": float(greedy.std(correction=0)),
            "min": float(greedy.min()),
            "max": float(greedy.max()),
        }
        if self.out is not None:
            save_single_task(self.out, policy, config, result, command_line())
            result["model"] = str(self.out)
        if self.json:
            print_json(result)
        else:
            print(
                f"{self.env_name}: {metrics.episodes} finished episodes, "
                f"{metrics.env_steps:,} environment steps; 50 greedy episodes: mean "
                f"{result['mean']:.1f} ± {result['std']:.1f}, minimum {result['min']:g}, maximum "
                f"{result['max']:g}"
            )
        return 0
