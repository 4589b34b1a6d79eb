"""The jobs that score the models on held-out tasks, each into a file of its own.

Place in the flow: after `arms`; `comparison` reads the files. A file names what it was made from:
the protocol, the scorer's settings and the model's digest. One that was made from something else,
or that cannot be read, is made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from benchmarks.adaptation.arms import (
    BUDGETS,
    BY_PREDICTION,
    FINE_TUNING,
    GOAL,
    SHORT_STEPS,
    Protocol,
    Scores,
    both_scores,
    frozen_scores,
    gradient_scores,
    in_context_scores,
    multi_task_scores,
    trial_scores,
    yardstick_scores,
)
from benchmarks.adaptation.training import Training, digest, load_gru
from ssm_metarl.evaluation.opened_model import OpenedModel, open_model
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import Split, Tasks
from ssm_metarl.version import __version__

SCORERS: dict[str, Callable[[OpenedModel, Tasks, Protocol], Scores]] = {
    "gradient": gradient_scores,
    "gradient_weighed": partial(gradient_scores, ablation=False),
    "in_context": in_context_scores,
    "both": both_scores,
    "multi_task": multi_task_scores,
    "frozen": frozen_scores,
}
SCORER_VERSION = 2
"""Raised whenever `arms` comes to score something in another way: older files are made again."""


@dataclass(frozen=True)
class Scoring:
    """Score one model, or what needs none, on the held-out tasks of a split."""

    family: str
    split: Split
    protocol: Protocol
    work: Path
    """The comparison's folder."""
    training: Training | None = None
    """Of the model; None for the yardsticks."""

    @property
    def needs(self) -> Training | None:
        """The training whose model is scored."""
        return self.training

    @property
    def model(self) -> str:
        """Whose scores they are."""
        return "yardsticks" if self.training is None else self.training.model

    @property
    def name(self) -> str:
        """What it is called in messages."""
        whose = f"{self.family} {self.model}" if self.training is None else self.training.name
        return f"{whose}, {self.split}"

    @property
    def path(self) -> Path:
        """Of the scores."""
        seed = "" if self.training is None else f"seed{self.training.seed}-"
        folder = self.work / "scores" / self.family / self.model
        return folder / f"{seed}{self.split}.safetensors"

    def __call__(self) -> None:
        """Score it and write the file, unless it is there."""
        if self.read() is not None:
            return
        self._write(self._scores())

    def _scores(self) -> Scores:
        if self.training is not None and not self.training.recipe.gru:
            opened = open_model(str(self.training.checkpoint))
            tasks = self.protocol.tasks(opened.family, self.split)
            return SCORERS[self.training.recipe.arms](opened, tasks, self.protocol)
        family = family_of_env(self.family)
        tasks = self.protocol.tasks(family, self.split)
        if self.training is None:
            return yardstick_scores(family, tasks, self.protocol)
        policy = load_gru(self.training.config(), self.training.checkpoint)
        return trial_scores(
            "in_context",
            lambda: policy.actor(policy.meta_params(), len(tasks), 1),
            tasks,
            self.protocol,
        )

    def read(self) -> Scores | None:
        """The scores, or None where there are none that were made from the same."""
        try:
            with safe_open(self.path, framework="np") as file:
                if (file.metadata() or {}).get("made_from") != self._made_from():
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        return {_split_name(name): values for name, values in tensors.items()}

    def _write(self, scores: Scores) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"{arm}/{after}": np.ascontiguousarray(v) for (arm, after), v in scores.items()}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(save(tensors, metadata={"made_from": self._made_from()}))
        os.replace(temporary, self.path)

    def _made_from(self) -> str:
        model = self.training and digest(self.training.checkpoint)
        made_from = {
            "version": __version__,
            "scorer": SCORER_VERSION,
            "arms": None if self.training is None else self.training.recipe.arms,
            "settings": [GOAL, SHORT_STEPS, BUDGETS, FINE_TUNING, asdict(BY_PREDICTION)],
            "model": model,
            **asdict(self.protocol),
        }
        return json.dumps(made_from, sort_keys=True)


def _split_name(name: str) -> tuple[str, str]:
    arm, after = name.split("/")
    return arm, after
