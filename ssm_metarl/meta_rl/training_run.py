"""A training that lives in a folder: log, checkpoints, a clean stop, an exact resume.

Place in the flow: stage 5, around a trainer (the loop: `trainer` or `in_context`) and `checkpoint`
(the file). The command line runs this. The folder holds

    checkpoint.safetensors   the last good state, replaced atomically
    training_log.jsonl       one JSON object an epoch
    training.lock            while it trains: a second process is refused
    tensorboard/             the same as TensorBoard events, where tensorboard is installed

A resumed training cuts the log back to the checkpoint's epoch, then continues bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ssm_metarl.checkpoint import (
    FILE_NAME,
    FINGERPRINT,
    Checkpoint,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
)
from ssm_metarl.command_line import command_line
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.daemon.only_writer import only_writer
from ssm_metarl.env_runner.kept_environments import kept_environments
from ssm_metarl.env_runner.worlds import fingerprint
from ssm_metarl.meta_rl.epochs import EpochMetrics
from ssm_metarl.meta_rl.in_context import InContextTrainer
from ssm_metarl.meta_rl.trainer import MetaTrainer, usable_device
from ssm_metarl.meta_rl.training_log import LOG_NAME, read_log
from ssm_metarl.reproducibility import is_reproducible
from ssm_metarl.settings import plain, rebuild
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import TaskFamily

LOCK_NAME = "training.lock"
CHECKPOINT_EVERY = 10  # epochs
NUM_EVALUATIONS = 20  # over a training, evenly spaced in its progress

Config = MetaTrainingConfig | InContextConfig
Trainer = MetaTrainer | InContextTrainer
OnEval = Callable[[Policy], dict[str, float]]
"""Evaluates the policy; the numbers join the log's line."""


@dataclass
class TrainingRun:
    """A meta-training with a folder."""

    trainer: Trainer
    """The training, fresh or restored."""
    out: Path
    """The folder."""
    on_epoch: Callable[[EpochMetrics, dict[str, Any]], None] | None = None
    """Called after each epoch with its metrics and the line of the log."""
    on_eval: OnEval | None = None
    """Called now and then; the numbers that it returns join the log."""
    stopped: bool = field(default=False, init=False)
    """Whether it was asked to stop before its limit, and did."""
    damaged_lines: int = field(default=0, init=False)
    """Lines of the log that could not be read on resuming, and were dropped."""
    fallen_back_from: str | None = field(default=None, init=False)
    """The recorded device, where there is no such device here."""
    _stop_requested: bool = field(default=False, init=False)
    _holds_lock: bool = field(default=False, init=False)
    _seen: tuple[int, ...] | None = field(default=None, init=False)
    """The checkpoint that it stands at."""

    @classmethod
    def start(
        cls, config: Config, out: Path, *, family: TaskFamily | None = None, **callbacks: Any
    ) -> TrainingRun:
        """A new training in a folder that holds none yet.

        Args:
            config: The settings.
            out: The folder.
            family: What it trains on; None for the one that the settings name.
            callbacks: ``on_epoch`` and ``on_eval``.

        Raises:
            ValueError: The folder holds a training already; nothing is overwritten. Or the model
                to start from is of another architecture.
            FileNotFoundError: There is no model to start from.
        """
        _refuse_training_in(out)
        trainer = _trainer(config, family)
        if isinstance(trainer, MetaTrainer) and trainer.config.start is not None:
            trainer.start_from(load_pretrained(trainer.config.start))
        out.mkdir(parents=True, exist_ok=True)
        run = cls(trainer, out, **callbacks)
        with run.alone():
            _refuse_training_in(out)  # somebody may have begun one meanwhile
            (out / LOG_NAME).write_text("")
            run.save()
        return run

    @classmethod
    def resume(
        cls,
        out: Path,
        *,
        family: TaskFamily | None = None,
        num_epochs: int | None = None,
        max_env_steps: int | None = None,
        device: str | None = None,
        **callbacks: Any,
    ) -> TrainingRun:
        """Continue a training from its last checkpoint.

        Args:
            out: Its folder.
            family: What it trains on, where that is no family that comes with the package.
            num_epochs: A new limit. With any new limit given, the old ones no longer count.
            max_env_steps: A new limit.
            device: Where to compute from now on; None for where it computed before, or for the
                processor where there is no such device here.
            callbacks: ``on_epoch`` and ``on_eval``.

        Raises:
            FileNotFoundError: There is no checkpoint.
            ValueError: It is damaged, or not that of a training, or another process trains there,
                or it is of another family than the one that is handed over or that the package
                knows by its name.
        """
        seen = _identity(out / FILE_NAME)
        checkpoint = load_checkpoint(out)
        if not checkpoint.training or not checkpoint.counters:
            raise ValueError(f"{out}: expected a training's checkpoint, received a model's")
        config = recorded_config(checkpoint.training, f"{out}: training")
        if num_epochs is not None or max_env_steps is not None:
            config = replace(config, num_epochs=num_epochs, max_env_steps=max_env_steps)
        config, fallen_back_from = _on_device(config, device)
        known = _family_of(config, family, checkpoint, out)
        if known.dynamics is None:  # older files record what did nothing there
            config = replace(config, push_probability=0.0, spread_starts=0.0)
        saved = PolicyConfig.from_dict(checkpoint.policy_config)
        trainer = _trainer(config, known, like=saved)
        built = trainer.policy.config
        if built != saved:
            raise ValueError(
                f"{out}: expected a training of this version's policies, {built}, received one of "
                f"{saved}; it can be evaluated, not continued"
            )
        trainer.restore(checkpoint.tensors, checkpoint.counters)
        run = cls(trainer, out, **callbacks)
        run.fallen_back_from, run._seen = fallen_back_from, seen
        with run.alone():
            run._cut_log()
        return run

    def request_stop(self) -> None:
        """Ask the training to stop after the epoch that is running; it saves first."""
        self._stop_requested = True

    def train(self) -> Policy:
        """Train to the limit, or until a stop is requested (then ``stopped`` is True).

        Raises:
            TrainingDiverged: A number is not finite; the last good checkpoint stays.
            ValueError: Another process trains in the folder, or has since this run was opened.
        """
        trainer = self.trainer
        self.out.mkdir(parents=True, exist_ok=True)
        with self.alone(), kept_environments(), contextlib.ExitStack() as files:
            events = _event_writer(self.out, trainer.epoch)
            log = files.enter_context(open(self.out / LOG_NAME, "a"))
            if events is not None:
                files.callback(events.close)
            while trainer.progress < 1 and not self._stop_requested:
                metrics, line = self._epoch()
                log.write(json.dumps(line) + "\n")
                log.flush()
                if events is not None:
                    for name, value in line.items():
                        events.add_scalar(name, value, trainer.epoch)
                if trainer.epoch % CHECKPOINT_EVERY == 0:
                    self.save()
                if self.on_epoch is not None:
                    self.on_epoch(metrics, line)
            self.stopped = trainer.progress < 1
            self.save()
        return trainer.policy

    def _epoch(self) -> tuple[EpochMetrics, dict[str, Any]]:
        """An epoch's metrics, and its line of the log: with an evaluation, where one is due."""
        trainer = self.trainer
        due = int(trainer.progress * NUM_EVALUATIONS)
        metrics = trainer.run_epoch()
        line = asdict(metrics)
        passed = int(trainer.progress * NUM_EVALUATIONS) > due
        if self.on_eval is not None and (passed or trainer.epoch == 1):
            found = self.on_eval(trainer.policy_on_cpu())
            line |= {f"eval_{name}": plain(value) for name, value in found.items()}
        return metrics, line

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training in the folder; `train` does so by itself.

        Raises:
            ValueError: One does, or has since this run was opened.
        """
        if self._holds_lock:
            yield
            return
        expected = f"{self.out}: expected a training that no other process works on"
        with only_writer(self.out / LOCK_NAME, expected):
            if self._seen is not None and self._seen != _identity(self.out / FILE_NAME):
                raise ValueError(
                    f"{self.out}: expected the checkpoint that this training stands at, received "
                    f"another one, which was written since"
                )
            self._holds_lock = True
            try:
                yield
            finally:
                self._holds_lock = False

    def _cut_log(self) -> None:
        """Leave in the log what belongs to the checkpoint: no later epochs, no damaged lines."""
        path = self.out / LOG_NAME
        if not path.exists():
            return
        log = read_log(path)
        self.damaged_lines = log.damaged + sum("epoch" not in row for row in log.rows)
        kept = [row for row in log.rows if row.get("epoch", math.inf) <= self.trainer.epoch]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, path)

    def save(self, card: dict[str, Any] | None = None) -> None:
        """Write the checkpoint."""
        trainer = self.trainer
        assert trainer.policy.trained_on is not None
        calibration = trainer.policy.calibration
        save_checkpoint(
            self.out / FILE_NAME,
            Checkpoint(
                policy_config=asdict(trainer.policy_config),
                tensors=trainer.tensors(),
                training={
                    **training_record(trainer.config),
                    FINGERPRINT: trainer.policy.trained_on[1],
                },
                counters=trainer.counters(),
                card=card or {},
                calibration={} if calibration is None else asdict(calibration),
            ),
        )
        self._seen = _identity(self.out / FILE_NAME)


def _refuse_training_in(out: Path) -> None:
    if (out / FILE_NAME).exists():
        raise ValueError(
            f"out: expected a folder without a training, received {out}, which holds one; "
            f"continue it with --resume {out}, or choose another --out"
        )


def _family_of(
    config: Config, family: TaskFamily | None, checkpoint: Checkpoint, out: Path
) -> TaskFamily:
    """What a recorded training goes on with, which must be declared as it was there."""
    advice = "hand it over: TrainingRun.resume(out, family=...), or --family my_plant.py:FAMILY"
    known = family or family_of_env(config.family, advice)
    if checkpoint.trained_on not in (None, (known.name, fingerprint(known))):
        raise ValueError(
            f"task family: expected {config.family!r} as it was declared for {out}, received "
            f"{known.name!r} of another name, other parameters, ranges, sizes or physics; "
            f"{advice}"
        )
    return known


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that replaces it; None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _on_device(config: Config, device: str | None) -> tuple[Config, str | None]:
    """A recorded configuration for this machine, and the device that it lacks.

    A checkpoint's tensors are the same wherever they were computed, so a training may move.
    """
    if not isinstance(config, MetaTrainingConfig):
        if device not in (None, "cpu"):
            raise ValueError(f"device: expected 'cpu' for a training in context, received {device}")
        return config, None
    if device is not None:
        return replace(config, device=device), None
    try:
        usable_device(config.device)
    except ValueError:
        return replace(config, device="cpu"), config.device
    return config, None


def _trainer(
    config: Config, family: TaskFamily | None, *, like: PolicyConfig | None = None
) -> Trainer:
    if isinstance(config, InContextConfig):
        return InContextTrainer(config, family, like=like)
    return MetaTrainer(config, family, like=like)


def training_record(config: Config) -> dict[str, Any]:
    """A configuration as a checkpoint keeps it; ``mode`` names any but gradient meta-training."""
    mode = {"mode": "in_context"} if isinstance(config, InContextConfig) else {}
    return {**asdict(config), **mode}


def recorded_config(record: dict[str, Any], what: str) -> Config:
    """The configuration that :func:`training_record` wrote; a family's fingerprint is left out.

    Raises:
        ValueError: Unknown or missing fields, or values of another type.
    """
    kind: type[InContextConfig] | type[MetaTrainingConfig] = MetaTrainingConfig
    beside = {FINGERPRINT}
    if record.get("mode") == "in_context":
        kind, beside = InContextConfig, {FINGERPRINT, "mode"}
    return rebuild(kind, {n: v for n, v in record.items() if n not in beside}, what)


def training_command(config: Config) -> str:
    """The shell command that does this training."""
    command = "train"
    if isinstance(config, InContextConfig):
        command = "train --mode in_context"
    elif config.in_context:  # which is what --mode both means
        command, config = "train --mode both", replace(config, in_context=False)
    return command_line(command, config) + (" --reproducible" if is_reproducible() else "")


def _event_writer(out: Path, epoch: int) -> Any | None:
    """A TensorBoard writer, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=epoch + 1)
