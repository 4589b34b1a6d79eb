"""``ssm-metarl train``: meta-training over a task family.

Place in the flow: a command; the work is `meta_rl.training_run`. Its sibling, training without
meta-learning, is `policy_gradient`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ssm_metarl.cli.console import Reporter, interval, note, print_evaluation, print_json
from ssm_metarl.command_line import changed, command_line, flag, part_of
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.meta_rl.trainer import EpochMetrics
    from ssm_metarl.meta_rl.training_run import TrainingRun

Mode = Literal["meta_rl", "policy_gradient"]
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130
FINAL_TASKS = 100
BESIDE_RESUME = ("resume", "num_epochs", "max_env_steps", "json")


@dataclass(frozen=True, kw_only=True)
class Train(MetaTrainingConfig):
    """Meta-train a policy over a task family (--mode policy_gradient: train one environment).

    Ctrl-C finishes the epoch, saves, and says how to resume. The last checkpoint counts.
    """

    family: Annotated[str, tyro.conf.arg(aliases=("--env-name",))] = "cartpole"
    """Task family, or the Gymnasium id that names it."""
    norm_dim: Annotated[int | None, tyro.conf.Suppress] = None  # growing a model sets it
    mode: Mode = "meta_rl"
    """policy_gradient has other flags: see ssm-metarl train --mode policy_gradient --help."""
    out: Path | None = None
    """Folder of the run, new or empty; None for the first free runs/FAMILY-seedN."""
    resume: Path | None = None
    """Continue the training in this folder, up to its old limits or to those given beside."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Train, evaluate on held-out tasks, record the verification."""
        import torch  # noqa: F401  (what the training's memory is measured above)

        memory_before = peak_memory()
        from ssm_metarl.meta_rl.meta_maml import TrainingDiverged

        with Reporter("meta-training") as reporter:
            run = self._open(reporter)
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
            self._finish(run, memory_before)
        except KeyboardInterrupt:
            note(f"ssm-metarl: interrupted after the training; to evaluate it: "
                 f"ssm-metarl train --resume {run.out}")  # fmt: skip
            return EXIT_INTERRUPTED
        return 0

    def _open(self, reporter: Reporter) -> TrainingRun:
        """The training, new or resumed, which reports its progress."""
        from ssm_metarl.cli.outputs import free_folder, new_folder
        from ssm_metarl.evaluation.meta_evaluator import learning_curve_point
        from ssm_metarl.evaluation.opened_model import readable
        from ssm_metarl.meta_rl.trainer import usable_device
        from ssm_metarl.meta_rl.training_run import TrainingRun
        from ssm_metarl.tasks.registry import family_of_env

        def on_epoch(metrics: EpochMetrics, line: dict[str, Any]) -> None:
            message = f"{metrics.env_steps:,} steps, return {metrics.recent_return:.0f}"
            reporter.update(run.trainer.progress, message)

        def on_eval(policy: Policy) -> dict[str, float]:
            return learning_curve_point(policy, run.trainer.family, run.trainer.config)

        callbacks: dict[str, Any] = {"on_epoch": on_epoch, "on_eval": on_eval}
        if self.resume is not None:
            self._check_beside_resume()
            with readable(self.resume):
                run = TrainingRun.resume(
                    self.resume,
                    num_epochs=self.num_epochs,
                    max_env_steps=self.max_env_steps,
                    **callbacks,
                )
        else:
            family = family_of_env(self.family).name
            config = replace(part_of(self, MetaTrainingConfig), family=family)
            usable_device(config.device)  # before a folder is made
            out = self.out or free_folder(Path("runs"), f"{family}-seed{self.seed}")
            run = TrainingRun.start(config, new_folder(out), **callbacks)
        return run

    def _check_beside_resume(self) -> None:
        """Refuse flags that a resumed training would ignore: its own settings are in its file."""
        ignored = [flag(name) for name in changed(self) if name not in BESIDE_RESUME]
        if ignored:
            raise ValueError(
                f"resume: expected no flags beside it but --num-epochs, --max-env-steps and "
                f"--json, received {', '.join(ignored)}"
            )

    def _finish(self, run: TrainingRun, memory_before: int) -> None:
        """Evaluate the last checkpoint, record its verification, say what came of it."""
        from ssm_metarl.evaluation.calibration import calibrate
        from ssm_metarl.evaluation.episodes import MetaTrained
        from ssm_metarl.evaluation.meta_evaluator import verify
        from ssm_metarl.evaluation.opened_model import open_model

        trainer = run.trainer
        trainer.policy = policy = trainer.policy_on_cpu()
        trained = MetaTrained.from_training(asdict(trainer.config))
        command = command_line("train", trainer.config)
        if self.resume is not None and (self.num_epochs, self.max_env_steps) != (None, None):
            # The learning rate decays towards the limit, so no one command does the same.
            command += "  # its limits were changed on resuming"
        num_tasks = trainer.config.calibration_tasks
        if num_tasks > 0:
            note(f"setting the limits of adaptation on {num_tasks:,} meta-training tasks")
            policy.calibration = calibrate(
                policy,
                trainer.family,
                trained,
                seed=trainer.config.seed,
                num_tasks=num_tasks,
            )
        card = {
            "command": command,
            "verification": verify(policy, trainer.family, trained),
        }
        run.save(card)
        export_pth(run.out)
        with Reporter("evaluating") as reporter:
            config = EvaluationConfig(num_tasks=FINAL_TASKS)
            result = open_model(str(run.out)).evaluate(config, reporter.update)
        result |= {"epochs": trainer.epoch, "env_steps": trainer.env_steps}
        result["peak_memory_mb"] = (peak_memory() - memory_before) / 1e6
        if self.json:
            print_json(result)
            return
        print_evaluation(result)
        difference = result["paired"]["standard-frozen"]
        print(
            f"adapted {result['arms']['standard']['mean']:.1f}, "
            f"frozen {result['arms']['frozen']['mean']:.1f}, difference "
            f"{difference['mean']:+.1f} (95 % interval {interval(difference['ci95'], '+')}) "
            f"after {trainer.env_steps:,} environment steps; peak memory "
            f"{result['peak_memory_mb']:.0f} MB above import torch"
        )
        print(f"model: {run.out}")


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
