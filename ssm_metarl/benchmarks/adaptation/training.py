"""The jobs that train the compared models, each in a folder of its own.

Place in the flow: after `recipes`; `run` hands the jobs to worker processes. A job resumes what it
finds and trains to the end, so a run that was killed loses some epochs at most, and a model that is
there is not trained again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssm_metarl.benchmarks.adaptation.recipes import RECIPES, Size
from ssm_metarl.checkpoint import FILE_NAME
from ssm_metarl.meta_rl.training_run import TrainingRun, training_command


@dataclass(frozen=True)
class Training:
    """Train one model of the comparison."""

    family: str
    model: str
    seed: int
    size: Size
    work: Path
    """The comparison's folder."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.family} {self.model}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Of the training."""
        return self.work / "models" / self.family / self.model / f"seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The model, once it is trained."""
        return self.folder / FILE_NAME

    @property
    def start(self) -> Training | None:
        """The training whose model this one starts from."""
        start = RECIPES[self.family][self.model].start
        if start is None:
            return None
        return Training(self.family, start, self.seed, self.size, self.work)

    def __call__(self) -> dict[str, Any]:
        """Train, or go on training.

        Returns:
            The command that trains this model, its size and its environment steps.

        Raises:
            ValueError: The folder holds a training by another recipe.
        """
        start = self.start
        config = RECIPES[self.family][self.model].at(
            self.seed, self.size, None if start is None else start.checkpoint
        )
        if self.checkpoint.exists():
            run = TrainingRun.resume(self.folder)
            if run.trainer.config != config:
                raise ValueError(
                    f"{self.folder}: expected a training by `{training_command(config)}`, received "
                    f"one by `{training_command(run.trainer.config)}`; remove it, or choose "
                    f"another --work"
                )
        else:
            run = TrainingRun.start(config, self.folder)
        if run.trainer.progress < 1:
            run.train()
        return {
            "family": self.family,
            "model": self.model,
            "seed": self.seed,
            "parameters": run.trainer.policy.num_parameters(),
            "env_steps": run.trainer.env_steps,
            "command": training_command(config),
        }
