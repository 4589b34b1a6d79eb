"""``ssm-metarl train``: meta-training over a task family, by a gradient step or in context.

Place in the flow: a command for each kind of settings; the work is `ssm_metarl.training`. Here is
what a terminal adds: flags, signals, progress, words. Its sibling without meta-learning is
`policy_gradient`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ssm_metarl.cli.console import Reporter, difference, note, print_evaluation, print_json
from ssm_metarl.command_line import changed, flag, part_of
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.reproducibility import is_reproducible
from ssm_metarl.tasks import names

if TYPE_CHECKING:
    from ssm_metarl.meta_rl.training_run import TrainingRun

Mode = Literal["meta_rl", "in_context", "both", "policy_gradient"]
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130
BESIDE_RESUME = (
    "resume", "family", "num_epochs", "max_env_steps", "device", "reproducible", "json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingCommand(ABC):
    """A base of commands whose other fields are a training's settings."""

    family: Annotated[str, tyro.conf.arg(aliases=("--env-name",))] = names.FAMILY
    """Task family: a name, a Gymnasium id that names it, or my_plant.py:FAMILY."""
    mode: Mode = "meta_rl"
    """in_context and policy_gradient have other flags: see ssm-metarl train --mode MODE --help."""
    out: Path | None = None
    """Folder of the run, new or empty; None for the first free runs/FAMILY-seedN."""
    resume: Path | None = None
    """Continue the training in this folder, up to its old limits or to those given beside."""
    reproducible: bool = False
    """Give the same bits on every x86-64 processor with AVX2."""
    json: bool = False
    """Print the result as one JSON object."""

    if TYPE_CHECKING:
        seed: int
        num_epochs: int | None
        max_env_steps: int | None

    @abstractmethod
    def settings(self) -> MetaTrainingConfig | InContextConfig:
        """What is to be trained."""

    def run(self) -> int:
        """Train, evaluate on held-out tasks, record the verification."""
        import torch  # noqa: F401  (what the training's memory is measured above)

        memory_before = peak_memory()
        from ssm_metarl.meta_rl.gradient_steps import TrainingDiverged
        from ssm_metarl.training import finish

        with contextlib.ExitStack() as held:
            with Reporter("meta-training") as reporter:
                run = self._open(reporter)
                held.enter_context(run.alone())
                again = f"ssm-metarl train --resume {run.out}"
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
                         f"{again}")  # fmt: skip
                    return EXIT_INTERRUPTED
            if run.stopped:
                note(f"ssm-metarl: stopped at epoch {run.trainer.epoch}, saved; continue with: "
                     f"{again}")  # fmt: skip
                return EXIT_INTERRUPTED
            try:
                with Reporter("evaluating") as reporter:
                    result = finish(
                        run,
                        resumed_further=(self.num_epochs, self.max_env_steps) != (None, None)
                        and self.resume is not None,
                        on_calibration=lambda n: note(
                            f"setting the limits of adaptation on {n:,} meta-training tasks"
                        ),
                        on_progress=reporter.update,
                    ).result
            except KeyboardInterrupt:
                note(f"ssm-metarl: interrupted after the training; to evaluate it: {again}")
                return EXIT_INTERRUPTED
        result["peak_memory_mb"] = (peak_memory() - memory_before) / 1e6
        if self.json:
            print_json(result)
        else:
            print_result(result, run.out)
        return 0

    def _open(self, reporter: Reporter) -> TrainingRun:
        """The training, new or resumed, which reports its progress."""
        from ssm_metarl.tasks.registry import named_family
        from ssm_metarl.training import report

        if self.resume is not None:
            run = self._resumed(self.resume)
        else:
            from ssm_metarl.cli.outputs import free_folder, new_folder
            from ssm_metarl.meta_rl.trainer import usable_device
            from ssm_metarl.meta_rl.training_run import TrainingRun

            family = named_family(self.family)
            config = replace(self.settings(), family=family.name)
            if isinstance(config, MetaTrainingConfig):
                usable_device(config.device)  # before a folder is made
            out = self.out or free_folder(
                Path("runs"), f"{family.name.replace('/', '-')}-seed{self.seed}"
            )
            run = TrainingRun.start(config, new_folder(out), family=family)
        report(run, reporter.update)
        return run

    def _resumed(self, folder: Path) -> TrainingRun:
        """The training in a folder; a flag that it would ignore is refused."""
        from ssm_metarl.evaluation.opened_model import readable
        from ssm_metarl.meta_rl.training_log import LOG_NAME
        from ssm_metarl.meta_rl.training_run import TrainingRun
        from ssm_metarl.tasks.registry import named_family

        given = changed(self)
        if ignored := [flag(name) for name in given if name not in BESIDE_RESUME]:
            raise ValueError(
                f"resume: expected no flags beside it but --family, --num-epochs, --max-env-steps, "
                f"--device, --reproducible and --json, received {', '.join(ignored)}"
            )
        with readable(folder):
            check_arithmetic(folder)
            run = TrainingRun.resume(
                folder,
                family=named_family(self.family) if "family" in given else None,
                num_epochs=self.num_epochs,
                max_env_steps=self.max_env_steps,
                device=getattr(self, "device", None),
            )
        if run.damaged_lines:
            note(f"ssm-metarl: {run.damaged_lines} line(s) of {run.out / LOG_NAME} could not "
                 f"be read, and were dropped")  # fmt: skip
        if run.fallen_back_from is not None:
            note(f"ssm-metarl: there is no device {run.fallen_back_from!r} here, where this "
                 f"training computed before: going on with 'cpu'")  # fmt: skip
        return run


@dataclass(frozen=True, kw_only=True)
class Train(TrainingCommand, MetaTrainingConfig):
    """Meta-train a policy over a task family (--mode in_context, both, policy_gradient: otherwise).

    Ctrl-C finishes the epoch, saves, and says how to resume. The last checkpoint counts.
    """

    norm_dim: Annotated[int | None, tyro.conf.Suppress] = None  # growing a model sets it
    in_context: Annotated[bool, tyro.conf.Suppress] = False  # --mode both sets it
    device: str | None = None  # type: ignore[assignment]  # None tells it from one that was given
    """Where it computes: cpu, whose kernels are compiled, or cuda, by PyTorch's own operations.
    None for cpu, and on resuming for where it computed before."""

    def settings(self) -> MetaTrainingConfig:
        """What is to be trained."""
        given = replace(self, device=self.device or "cpu", in_context=self.mode == "both")
        return part_of(given, MetaTrainingConfig)


@dataclass(frozen=True, kw_only=True)
class TrainInContext(TrainingCommand, InContextConfig):
    """Meta-train a policy that adapts within its hidden state, without a gradient step.

    Ctrl-C finishes the epoch, saves, and says how to resume. The last checkpoint counts.
    """

    mode: Mode = "in_context"
    """meta_rl and policy_gradient have other flags: see ssm-metarl train --mode MODE --help."""

    def settings(self) -> InContextConfig:
        """What is to be trained."""
        return part_of(self, InContextConfig)


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


def print_result(result: dict[str, Any], out: Path) -> None:
    """What came of a training, in words."""
    print_evaluation(result)
    came_to = f"frozen {result['arms']['frozen']['mean']:.1f}"
    adapted = {"standard": "adapted", "in_context": "in context"}
    arm = next((arm for arm in adapted if arm in result["arms"]), None)
    if arm is not None:  # not one policy for all tasks
        came_to = (
            f"{adapted[arm]} {result['arms'][arm]['mean']:.1f}, {came_to}, difference "
            f"{difference(result['paired'][f'{arm}-frozen'])}"
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
