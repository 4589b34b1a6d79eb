"""What a generation is made of: stages, candidates and their roles, the record that stays.

Place in the flow: stage 8, under `lineage`, which fills these in from events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np


class Stage(StrEnum):
    """What the lineage does next."""

    INIT = "INIT"
    BASELINE = "BASELINE"
    PROPOSE = "PROPOSE"
    TRAIN = "TRAIN"
    SCREEN = "SCREEN"
    CONFIRM = "CONFIRM"
    ATTRIBUTE = "ATTRIBUTE"
    COMMIT = "COMMIT"
    CANARY = "CANARY"
    ROLLED_BACK = "ROLLED_BACK"
    DECIDED = "DECIDED"
    FAILED = "FAILED"
    HALTED = "HALTED"


class Outcome(StrEnum):
    """How a generation ended."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    ROLLED_BACK = "rolled back"
    FAILED = "failed"


class Role(StrEnum):
    """What a candidate is there for."""

    CANDIDATE = "candidate"
    CONTROL = "control"
    """The champion, trained on without a change; it may win."""
    PLACEBO = "placebo"
    """Another control with another seed, never promoted: what luck looks like."""


@dataclass
class Candidate:
    """One candidate of the running generation."""

    role: Role
    proposal: dict[str, float]
    changes: dict[str, Any]
    weights: str = ""
    """Name of its weights once it is trained."""
    parameters: int = 0
    failure: str | None = None
    """Why there are none."""
    screened: list[float] = field(default_factory=list)
    """Primary differences to the champion in screening."""
    dropped: bool = False
    """Whether screening dropped it."""

    @property
    def mean(self) -> float:
        """Mean difference in screening; the worst there is before any."""
        return float(np.mean(self.screened)) if self.screened else -1.0


@dataclass(frozen=True)
class Record:
    """A generation that has ended."""

    generation: int
    outcome: Outcome
    reason: str
    changes: dict[str, Any] | None
    """Those of the candidate that was confirmed or tried; None where none came so far."""
    label: str
    """What an accepted one was improved by: the change, or the training alone."""
    gain: float | None
    """Its mean primary difference in confirmation."""
    wealth: tuple[float, ...]
    """Of the confirmation, after every pair."""
    threshold: float
    """The wealth that would have accepted it."""
    champion_return: float
    """Mean return of the champion before it, in screening."""
    champion: str
    """The champion afterwards."""
    env_steps: int
    """Of the lineage, by then."""
    candidates: tuple[tuple[str, float], ...]
    """Role of each candidate and its mean difference in screening."""


class DecisionMismatch(ValueError):
    """An event does not follow from those before it."""
