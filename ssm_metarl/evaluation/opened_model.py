"""A model, ready to run: its weights, its family, how it was meta-trained, what it can do.

Place in the flow: stage 7. The commands and the app begin here with a name that somebody typed or
chose, and adapt and evaluate what they get. Whatever is wrong with a file, the error is a
ValueError or OSError that names it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ssm_metarl.adaptation.adapter import AdaptedPolicy
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter, check_experience
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import Checkpoint, find_model, load_model
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import (
    AdaptationMode,
    EvaluationConfig,
    MetaTrainingConfig,
    StandardAdaptationConfig,
)
from ssm_metarl.env_runner.worlds import fingerprint
from ssm_metarl.evaluation.episodes import check_family
from ssm_metarl.experience.experience_buffer import ExperienceBuffer, is_saved_buffer
from ssm_metarl.methods.fixed_policy import FixedPolicy
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.methods.method import Model
from ssm_metarl.methods.registry import WAYS, methods_for
from ssm_metarl.tasks.registry import family_of_env, named_family
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.types import Rollout

HAND_OVER = "hand it over: open_model(name, family=...), or --family my_plant.py:FAMILY"

Mode = AdaptationMode | Literal["in_context", "both"]
"""A gradient step, a memory that runs through several episodes, or the one and then the other."""
ADAPTATION_MODES: tuple[AdaptationMode, ...] = ("standard", "hybrid")
MODES: tuple[Mode, ...] = (*ADAPTATION_MODES, "in_context", "both")


@dataclass(frozen=True, kw_only=True)
class OpenedModel(Model):
    """A model, ready to run."""

    name: str
    """As the user called it."""
    checkpoint: Checkpoint
    family: TaskFamily

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The ways in which it can adapt, gradient steps first."""
        every = methods_for(self.family, self.trained, EvaluationConfig())
        ways = [method for method in every if isinstance(method, WAYS)]
        names = [way.name for way in ways if way.applies(self, self.family) is None]
        return tuple(mode for mode in MODES if mode in names)

    @property
    def gradient_modes(self) -> tuple[AdaptationMode, ...]:
        """The ways in which a gradient step alone can adapt it."""
        return tuple(mode for mode in ADAPTATION_MODES if mode in self.modes)

    def check_gradient(self, what: str) -> None:
        """Raise ValueError about ``what`` unless it was meta-trained for a gradient step."""
        if self.policy.adapted:
            original = self.checkpoint.adapted_from
            raise ValueError(
                f"{what}: expected a meta-trained model, received {self.name!r}, which is adapted "
                f"already" + (f" (from {original!r}: give that one)" if original else "")
            )
        if not self.trained.gradient:
            instead = "adapts in context" if self.policy.in_context else "was trained without any"
            raise ValueError(
                f"{what}: expected a model that was meta-trained for a gradient step, received "
                f"{self.name!r}, which {instead}"
            )

    @property
    def training_log(self) -> Path | None:
        """The log beside it, where there is one with at least a line."""
        from ssm_metarl.meta_rl.training_log import LOG_NAME

        model = find_model(self.name)
        logs = (model.parent / LOG_NAME, model.with_suffix(".training.jsonl"))
        return next((log for log in logs if log.is_file() and log.stat().st_size > 0), None)

    @usual_modes()
    def adapt(
        self,
        support: Rollout,
        mode: AdaptationMode,
        config: StandardAdaptationConfig,
        *,
        seed: int = 0,
    ) -> AdaptedPolicy:
        """Adapt to one task; the model itself stays as it is.

        Args:
            support: Steps taken in the task, (T, 1, N).
            mode: One of `gradient_modes`.
            config: The inner step, as `MetaTrained.adaptation` gives it.
            seed: Names the replayed experience (hybrid).

        Raises:
            ValueError: The model has no such mode, or its steps have overflown.
        """
        if mode == "standard":
            adapted = StandardAdapter(config).adapt(self.policy, support)
        else:
            hybrid = self.trained.hybrid(config, seed=seed)
            adapted = HybridAdapter(hybrid).adapt(self.policy, support, self.experience(config))
        # Without rollback. The loss counts as well: long steps overflow it before the weights.
        told = torch.tensor([adapted.report.loss_after, adapted.report.kl])
        if not all(bool(v.isfinite().all()) for v in (told, *adapted.state_dict().values())):
            raise ValueError(
                f"adapt_lr: expected a rate with which {config.num_adapt_steps} step(s) stay "
                f"finite, received {config.adapt_lr}; nothing was saved"
            )
        return adapted

    def experience(self, config: StandardAdaptationConfig) -> ExperienceBuffer:
        """The experience, where an adaptation can replay it.

        Raises:
            ValueError: There is none, or it is of another family or of other actions.
        """
        if self.buffer is None:
            raise ValueError(
                "mode: expected 'standard' for a model without experience, received 'hybrid'"
            )
        if self.buffer.family not in (None, self.family.name):
            raise ValueError(
                f"experience: expected that of {self.family.name}, received that of "
                f"{self.buffer.family}"
            )
        check_experience(self.policy, self.buffer, config.objective)
        return self.buffer

    def evaluate(
        self,
        config: EvaluationConfig,
        on_progress: Callable[[float, str], None],
        *,
        fixed: FixedPolicy | None = None,
    ) -> dict[str, Any]:
        """Evaluate it, telling how far it is (0 to 1) and which arm runs; JSON-ready."""
        from ssm_metarl.evaluation.meta_evaluator import evaluate

        most = len(methods_for(self.family, self.trained, config, fixed=fixed))
        done = itertools.count()
        result = evaluate(
            self.policy,
            self.family,
            config,
            model=self.name,
            trained=self.trained,
            buffer=self.buffer,
            fixed=fixed,
            on_arm=lambda arm: on_progress(next(done) / most, arm),
        )
        on_progress(1.0, "done")
        return result


def open_model(name: str, family: str | TaskFamily | None = None) -> OpenedModel:
    """Open a shipped name, a run's folder, a checkpoint or a ``.pth`` file.

    Args:
        name: Which model.
        family: Name of a family, a Gymnasium id, ``my_plant.py:FAMILY``, or a family of one's own;
            None for the one it was trained on, where that is known by its name.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It cannot be read, or does not fit the family.
    """
    with readable(name):
        checkpoint = load_model(name)
        policy, buffer = checkpoint.policy(), _experience(checkpoint)
        trained = MetaTrained.from_training(checkpoint.training)
        trained.adaptation()  # refuses what no training writes
        if policy.adapted:
            trained = replace(trained, gradient=False)
        if family is None:
            family = _family_of(checkpoint, name)
        elif isinstance(family, str):
            family = named_family(family)
    check_family(policy, family)
    return OpenedModel(
        name=name,
        checkpoint=checkpoint,
        policy=policy,
        family=family,
        trained=trained,
        buffer=buffer,
    )


def open_experience(name: str | Path) -> ExperienceBuffer:
    """Experience from a file of its own (`ExperienceBuffer.save`), or that of a model.

    Raises:
        FileNotFoundError: There is no such file or model.
        ValueError: It cannot be read, or has no experience.
    """
    path = find_model(name)
    if is_saved_buffer(path):
        return ExperienceBuffer.load(path)
    with readable(name):
        buffer = _experience(load_model(name))
    if buffer is None:
        raise ValueError(
            f"experience: expected a saved buffer or a model with experience, received {name} "
            f"without"
        )
    return buffer


def _family_of(checkpoint: Checkpoint, name: str) -> TaskFamily:
    """The family that a model was trained on, where it is known by its name."""
    recorded = checkpoint.training.get("family", MetaTrainingConfig.family)
    known = family_of_env(recorded, HAND_OVER)
    if checkpoint.trained_on not in (None, (recorded, fingerprint(known))):
        raise ValueError(
            f"task family: expected {recorded!r} as {name} was trained on it, received "
            f"the package's {known.name!r}, which declares something else; {HAND_OVER}"
        )
    return known


def _experience(checkpoint: Checkpoint) -> ExperienceBuffer | None:
    """A model's experience; that of older files may call its family by a Gymnasium id."""
    buffer = checkpoint.experience()
    if buffer is not None and buffer.family and checkpoint.trained_on is None:
        with contextlib.suppress(ValueError):
            buffer.family = family_of_env(buffer.family).name
    return buffer


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
