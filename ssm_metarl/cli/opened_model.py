"""Open a model by name: its weights, its family, and how it was meta-trained.

Place in the flow: what `adapt`, `evaluate` and `verify` begin with, and `train` ends with.
Whatever is wrong with a file, the error is a ValueError or OSError that names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_metarl.config import EvaluationConfig

if TYPE_CHECKING:
    from ssm_metarl.checkpoint import Checkpoint
    from ssm_metarl.cli.console import Reporter
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.evaluation.episodes import MetaTrained
    from ssm_metarl.experience.experience_buffer import ExperienceBuffer
    from ssm_metarl.tasks.task_family import TaskFamily


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model, ready to run."""

    name: str
    """As the user called it."""
    checkpoint: Checkpoint
    policy: Policy
    family: TaskFamily
    trained: MetaTrained
    buffer: ExperienceBuffer | None
    """The experience that came with it."""

    def evaluate(self, config: EvaluationConfig, reporter: Reporter) -> dict[str, Any]:
        """Evaluate it, showing progress; the result is JSON-ready."""
        from ssm_metarl.evaluation.meta_evaluator import MAX_ARMS, evaluate

        done = 0

        def on_arm(arm: str) -> None:
            nonlocal done
            reporter.update(done / MAX_ARMS, arm)
            done += 1

        result = evaluate(
            self.policy,
            self.family,
            config,
            model=self.name,
            trained=self.trained,
            buffer=self.buffer,
            on_arm=on_arm,
        )
        reporter.update(1.0, "done")
        return result


def open_model(name: str, family: str | None = None) -> OpenedModel:
    """Open a shipped name, a run's folder, a checkpoint or a ``.pth`` file.

    Args:
        name: Which model.
        family: Name of a family, or a Gymnasium id; None for the one it was trained on.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It cannot be read, or does not fit the family.
    """
    from ssm_metarl.checkpoint import load_model
    from ssm_metarl.evaluation.episodes import MetaTrained, check_family
    from ssm_metarl.tasks.registry import family_of_env

    with readable(name):
        checkpoint = load_model(name)
        policy, buffer = checkpoint.policy(), checkpoint.experience()
        trained = MetaTrained.from_training(checkpoint.training)
        trained.adaptation()  # refuses what no training writes
        known = family_of_env(family or checkpoint.training.get("family", "cartpole"))
    check_family(policy, known)
    return OpenedModel(
        name=name,
        checkpoint=checkpoint,
        policy=policy,
        family=known,
        trained=trained,
        buffer=buffer,
    )


@contextlib.contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Name the file where its content has the right format and the wrong shape.

    Raises:
        ValueError: In place of what a missing or mistyped entry raises, at whatever depth.
    """
    try:
        yield
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{name}: expected a checkpoint of this package, received one that it cannot read "
            f"({reason})"
        ) from error
