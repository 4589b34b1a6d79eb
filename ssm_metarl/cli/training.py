"""What every ``ssm-metarl train`` of a task family does around the training itself.

Place in the flow: under the commands `train` and `train_in_context`, which add their settings; the
work is `meta_rl.training_run`. Open a run, train until it is done or stopped, evaluate it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssm_metarl.cli.console import Reporter, interval, note, print_evaluation, print_json
from ssm_metarl.command_line import changed, flag
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.reproducibility import is_reproducible

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.meta_rl.training_run import Metrics, Trainer, TrainingRun

Mode = Literal["meta_rl", "in_context", "both", "policy_gradient"]
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130
FINAL_TASKS = 100
BESIDE_RESUME = (
    "resume", "num_epochs", "max_env_steps", "device", "reproducible", "json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingCommand(ABC):
    """A base of commands whose other fields are a training's settings."""

    if TYPE_CHECKING:
        family: str
        seed: int
        num_epochs: int | None
        max_env_steps: int | None
        out: Path | None
        resume: Path | None
        json: bool

    @abstractmethod
    def settings(self) -> MetaTrainingConfig | InContextConfig:
        """What is to be trained."""

    def run(self) -> int:
        """Train, evaluate on held-out tasks, record the verification."""
        import torch  # noqa: F401  (what the training's memory is measured above)

        memory_before = peak_memory()
        from ssm_metarl.meta_rl.meta_maml import TrainingDiverged

        with contextlib.ExitStack() as held:
            with Reporter("meta-training") as reporter:
                run = self._open(reporter)
                held.enter_context(run.alone())
                try:
                    with stop_on_signal(run):
                        note(f"{'training' if self.resume is None else 'resuming'} in {run.out}")
                        run.train()
                except TrainingDiverged as error:
                    note(f"ssm-metarl: training stopped: {error}; the last good checkpoint stays: "
                         f"{run.out}")  # fmt: skip
                    return EXIT_DIVERGED
                except KeyboardInterrupt:
                    note(f"ssm-metarl: stopped at once; the last checkpoint stays, continue with: "
                         f"ssm-metarl train --resume {run.out}")  # fmt: skip
                    return EXIT_INTERRUPTED
            if run.stopped:
                note(f"ssm-metarl: stopped at epoch {run.trainer.epoch}, saved; continue with: "
                     f"ssm-metarl train --resume {run.out}")  # fmt: skip
                return EXIT_INTERRUPTED
            try:
                result = finish(run, memory_before, resumed_further=self._resumed_further)
            except KeyboardInterrupt:
                note(f"ssm-metarl: interrupted after the training; to evaluate it: "
                     f"ssm-metarl train --resume {run.out}")  # fmt: skip
                return EXIT_INTERRUPTED
        if self.json:
            print_json(result)
        else:
            print_result(result, run.out)
        return 0

    @property
    def _resumed_further(self) -> bool:
        return self.resume is not None and (self.num_epochs, self.max_env_steps) != (None, None)

    def _open(self, reporter: Reporter) -> TrainingRun:
        """The training, new or resumed, which reports its progress."""
        from ssm_metarl.cli.outputs import free_folder, new_folder
        from ssm_metarl.evaluation.opened_model import readable
        from ssm_metarl.meta_rl.trainer import usable_device
        from ssm_metarl.meta_rl.training_log import LOG_NAME
        from ssm_metarl.meta_rl.training_run import TrainingRun
        from ssm_metarl.tasks.registry import family_of_env

        def on_epoch(metrics: Metrics, line: dict[str, Any]) -> None:
            message = f"{metrics.env_steps:,} steps, return {metrics.recent_return:.0f}"
            reporter.update(run.trainer.progress, message)

        def on_eval(policy: Policy) -> dict[str, float]:
            return curve_point(policy, run.trainer)

        callbacks: dict[str, Any] = {"on_epoch": on_epoch, "on_eval": on_eval}
        if self.resume is not None:
            self._check_beside_resume()
            with readable(self.resume):
                check_arithmetic(self.resume)
                run = TrainingRun.resume(
                    self.resume,
                    num_epochs=self.num_epochs,
                    max_env_steps=self.max_env_steps,
                    device=getattr(self, "device", None),
                    **callbacks,
                )
            if run.damaged_lines:
                note(f"ssm-metarl: {run.damaged_lines} line(s) of {run.out / LOG_NAME} could not "
                     f"be read, and were dropped")  # fmt: skip
            if run.fallen_back_from is not None:
                note(f"ssm-metarl: there is no device {run.fallen_back_from!r} here, where this "
                     f"training computed before: going on with 'cpu'")  # fmt: skip
        else:
            family = family_of_env(self.family).name
            config = replace(self.settings(), family=family)
            if isinstance(config, MetaTrainingConfig):
                usable_device(config.device)  # before a folder is made
            out = self.out or free_folder(Path("runs"), f"{family}-seed{self.seed}")
            run = TrainingRun.start(config, new_folder(out), **callbacks)
        return run

    def _check_beside_resume(self) -> None:
        """Refuse flags that a resumed training would ignore: its own settings are in its file."""
        ignored = [flag(name) for name in changed(self) if name not in BESIDE_RESUME]
        if ignored:
            raise ValueError(
                f"resume: expected no flags beside it but --num-epochs, --max-env-steps, "
                f"--device, --reproducible and --json, received {', '.join(ignored)}"
            )


def check_arithmetic(resumed: Path) -> None:
    """Refuse to continue a training in another arithmetic: its end would be neither's."""
    from ssm_metarl.checkpoint import load_checkpoint

    began = "reproducible" in load_checkpoint(resumed).versions
    if began != is_reproducible():
        how, other = ("with", "without") if began else ("without", "with")
        raise ValueError(
            f"resume: expected {resumed} to be continued {how} --reproducible, as it was begun, "
            f"received a command {other} it"
        )


def curve_point(policy: Policy, trainer: Trainer) -> dict[str, float]:
    """A look at a policy on the way: what its kind of training is for."""
    from ssm_metarl.evaluation.meta_evaluator import in_context_curve_point, learning_curve_point

    if isinstance(trainer.config, MetaTrainingConfig):
        return learning_curve_point(policy, trainer.family, trainer.config)
    return in_context_curve_point(policy, trainer.family)


def finish(run: TrainingRun, memory_before: int, *, resumed_further: bool) -> dict[str, Any]:
    """Record the last checkpoint's limits and verification, and evaluate it.

    Args:
        run: The training, at its end.
        memory_before: Most memory that was used before it, in bytes.
        resumed_further: Whether it went on to other limits than it was started with.

    Returns:
        The evaluation, with the training's counters.
    """
    from ssm_metarl.evaluation.calibration import calibrate
    from ssm_metarl.evaluation.meta_evaluator import verify
    from ssm_metarl.evaluation.opened_model import open_model
    from ssm_metarl.meta_rl.training_run import training_command, training_record
    from ssm_metarl.methods.meta_trained import MetaTrained

    trainer = run.trainer
    config, trained = trainer.config, MetaTrained.from_training(training_record(trainer.config))
    trainer.policy = policy = trainer.policy_on_cpu()
    command = training_command(config)
    if resumed_further:
        # The learning rate decays towards the limit, so no one command does the same.
        command += "  # its limits were changed on resuming"
    num_tasks = config.calibration_tasks if isinstance(config, MetaTrainingConfig) else 0
    if num_tasks > 0 and trained.gradient:
        note(f"setting the limits of adaptation on {num_tasks:,} meta-training tasks")
        policy.calibration = calibrate(
            policy, trainer.family, trained, seed=config.seed, num_tasks=num_tasks
        )
    card: dict[str, Any] = {"reproducible": True} if is_reproducible() else {}
    card |= {"command": command, "verification": verify(policy, trainer.family, trained)}
    run.save(card)
    export_pth(run.out)
    with Reporter("evaluating") as reporter:
        evaluation = EvaluationConfig(num_tasks=FINAL_TASKS)
        result = open_model(str(run.out)).evaluate(evaluation, reporter.update)
    result |= {"epochs": trainer.epoch, "env_steps": trainer.env_steps}
    result["peak_memory_mb"] = (peak_memory() - memory_before) / 1e6
    return result


def print_result(result: dict[str, Any], out: Path) -> None:
    """What came of a training, in words."""
    print_evaluation(result)
    frozen = f"frozen {result['arms']['frozen']['mean']:.1f}"
    names = {"standard": "adapted", "in_context": "in context"}
    arm = next((arm for arm in names if arm in result["arms"]), None)
    if arm is None:  # one policy for all tasks
        came_to = frozen
    else:
        difference = result["paired"][f"{arm}-frozen"]
        came_to = (
            f"{names[arm]} {result['arms'][arm]['mean']:.1f}, {frozen}, difference "
            f"{difference['mean']:+.1f} (95 % interval {interval(difference['ci95'], '+')})"
        )
    print(
        f"{came_to} after {result['env_steps']:,} environment steps; peak memory "
        f"{result['peak_memory_mb']:.0f} MB above import torch"
    )
    print(f"model: {out}")


def peak_memory() -> int:
    """The most resident memory that this process has had so far, in bytes."""
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def export_pth(out: Path) -> None:
    """Write the documented ``model.pth`` of a `StateSpaceModel`, for anyone to load.

    It has no room for the learned step sizes: `load_model` finds them in the file beside it,
    which is a copy, so that the two stay a pair while the training goes on.
    """
    from ssm_metarl.checkpoint import load_checkpoint, save_checkpoint
    from ssm_metarl.core.ssm import StateSpaceModel

    checkpoint = load_checkpoint(out)
    core = checkpoint.policy().core
    if isinstance(core, StateSpaceModel):
        model = {n: v for n, v in checkpoint.tensors.items() if not n.startswith("optimizer.")}
        save_checkpoint(out / "model.safetensors", replace(checkpoint, tensors=model, counters={}))
        core.save(out / "model.pth")


@contextlib.contextmanager
def stop_on_signal(run: TrainingRun) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a stop after the epoch; a second one is immediate."""

    def request(number: int, frame: object) -> None:
        for each in previous:  # a SIGTERM after a Ctrl-C is a second one, too
            signal.signal(each, signal.default_int_handler)
        note("stopping after this epoch (once more to stop at once) ...")
        run.request_stop()

    previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
