"""What a way to adapt says of itself: name, label, definition, colour, cost, and what it does.

Place in the flow: stage 7, between `adaptation` and `evaluation`. Every other file here is one
method or a few alike; `registry` lists them, `evaluation.score` runs any of them. Labels, legends,
definitions, pairs and costs are read from a method and stand nowhere else.

The trap: a method is given the tasks, because an expert is told their parameters. One whose cost
does not say ``told`` must not look at them; `tests/methods` hands each another task's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.core.policy import Policy
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Actor, Rollout

# Okabe & Ito (2008): told apart with every common kind of colour blindness.
BLUE, VERMILION, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#56B4E9"
ORANGE, YARDSTICK = "#E69F00", "#616E7C"


@dataclass(frozen=True)
class Model:
    """What is adapted."""

    policy: Policy
    trained: MetaTrained = field(default_factory=MetaTrained)
    """How it was meta-trained."""
    buffer: ExperienceBuffer | None = None
    """Experience to replay; None for none."""


@dataclass(frozen=True)
class Data:
    """What a method has to adapt from, and where its actor will act."""

    support: Rollout | None
    """Steps taken in each of K tasks, (T, K, N'); None where no method at hand needs any."""
    num_envs: int = 1
    """N, environments of each task that the actor will act in."""
    seed: int = 0
    """Names a method's own draws."""

    def rollout(self) -> Rollout:
        """The support data.

        Raises:
            ValueError: There are none.
        """
        if self.support is None:
            raise ValueError("support data: expected steps of each task, received none")
        return self.support


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method takes from a task before it is scored."""

    support: bool = False
    """The support data: so many environment steps."""
    told: bool = False
    """The task's parameters, which no data tell."""


class Prepared(NamedTuple):
    """A method, ready to act in K tasks."""

    actor: Actor
    reports: Sequence[AdaptationReport] = ()
    """What adapting did, a report a task; empty for a method that does nothing beforehand."""


class Method(ABC):
    """A way to adapt: a frozen dataclass; class attributes answer what is asked here."""

    color: ClassVar[str] = YARDSTICK
    """Of its curve."""
    cost: ClassVar[Cost] = Cost()
    """What it takes from a task."""
    trial: ClassVar[bool] = False
    """Whether a task's episodes follow each other in one trial, which it remembers."""
    pairs: ClassVar[tuple[str, ...]] = ()
    """Methods to which its difference, task by task, is told."""
    adapts: ClassVar[bool] = False
    """Whether it is a way in which a model adapts, and no yardstick."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Key in results."""

    @property
    def label(self) -> str:
        """For readers: legends and tables."""
        return self.name

    @property
    @abstractmethod
    def definition(self) -> str:
        """What it does, in one line."""

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """None where it can run, else why not, as the end of a sentence."""
        return None

    @abstractmethod
    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """Adapt to K tasks.

        Args:
            model: Stays untouched.
            tasks: K tasks.
            data: What there is to adapt from.
        """


def env_steps(method: Method, data: Data, k: int) -> np.ndarray:
    """Environment steps that preparing a method took of each of ``k`` tasks, shape (K,), int64."""
    if not method.cost.support:
        return np.zeros(k, dtype=np.int64)
    steps: np.ndarray = data.rollout().steps_taken().numpy()
    return steps
