"""The jobs that train the compared models, each in a folder of its own.

Place in the flow: after `recipes`; `run` hands the jobs to worker processes. A job resumes what it
finds and trains to the end, so a run that was killed loses some epochs at most, and a model that is
there is not trained again.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save

from benchmarks.adaptation.recipes import RECIPES, Recipe, Size
from benchmarks.gru import gru_trainer
from ssm_metarl.checkpoint import FILE_NAME
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.meta_rl.training_run import TrainingRun, training_command

BEGAN_FROM = "began_from.sha256"
"""Beside a model that began from another one: the digest of that one's file."""


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
    def needs(self) -> Training | None:
        """The training whose model this one starts from."""
        start = self.recipe.start
        if start is None:
            return None
        return Training(self.family, start, self.seed, self.size, self.work)

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return RECIPES[self.family][self.model]

    def config(self) -> MetaTrainingConfig | InContextConfig:
        """The settings of this training."""
        start = None if self.needs is None else self.needs.checkpoint
        return self.recipe.at(self.seed, self.size, start)

    def __call__(self) -> dict[str, Any]:
        """Train, or go on training.

        Returns:
            The command that trains this model, its size and its environment steps.

        Raises:
            ValueError: The folder holds a training by another recipe.
        """
        config = self.config()
        if self.recipe.gru:
            parameters, env_steps = train_gru(config, self.checkpoint)
        else:
            parameters, env_steps = self._train(config)
        return {
            "family": self.family,
            "model": self.model,
            "seed": self.seed,
            "parameters": parameters,
            "env_steps": env_steps,
            "command": training_command(config)
            + (", with a GRU in place of the state space model" if self.recipe.gru else ""),
        }

    def _train(self, config: MetaTrainingConfig | InContextConfig) -> tuple[int, int]:
        if self.checkpoint.exists():
            run = TrainingRun.resume(self.folder)
            refuse_other(self.folder, config, training_command(run.trainer.config))
            if self.needs is not None and not self._began_from(digest(self.needs.checkpoint)):
                raise ValueError(
                    f"{self.folder}: expected a training that began from the model that is now in "
                    f"{self.needs.folder}, received one that began from another; remove it"
                )
        else:
            if self.needs is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / BEGAN_FROM).write_text(digest(self.needs.checkpoint))
            run = TrainingRun.start(config, self.folder)
        if run.trainer.progress < 1:
            run.train()
        return run.trainer.policy.num_parameters(), run.trainer.env_steps

    def _began_from(self, model: str) -> bool:
        path = self.folder / BEGAN_FROM
        return path.exists() and path.read_text() == model


def train_gru(config: MetaTrainingConfig | InContextConfig, path: Path) -> tuple[int, int]:
    """Train a GRU in place of the state space model, from the start, unless the file is there.

    Returns:
        Parameters and environment steps.
    """
    assert isinstance(config, InContextConfig)
    trainer = gru_trainer(config)
    command = training_command(config)
    if path.exists():
        with safe_open(path, framework="pt") as file:
            refuse_other(path.parent, config, (file.metadata() or {}).get("command", "another"))
    else:
        trainer.train()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        weights = dict(trainer.policy.meta_params())
        temporary.write_bytes(save(weights, metadata={"command": command}))
        os.replace(temporary, path)
    return trainer.policy.num_parameters(), config.env_step_limit or 0


def refuse_other(folder: Path, config: MetaTrainingConfig | InContextConfig, received: str) -> None:
    """Raise a ValueError where a folder's training is not by the command of a configuration."""
    expected = training_command(config)
    if received != expected:
        raise ValueError(
            f"{folder}: expected a training by `{expected}`, received one by `{received}`; remove "
            f"it, or choose another --work"
        )


def digest(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_gru(config: MetaTrainingConfig | InContextConfig, path: Path) -> Policy:
    """What :func:`train_gru` wrote."""
    assert isinstance(config, InContextConfig)
    policy = gru_trainer(config).policy
    policy.load_state_dict(load_file(path), strict=False)  # but for the step sizes
    return policy
