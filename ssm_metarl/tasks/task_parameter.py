"""What varies between tasks: named parameters with units, and values to draw them from.

Place in the flow: stage 1, under `task_family`, which draws tasks of them. Every parameter has
in-distribution (ID) values, from which training draws, and out-of-distribution (OOD) ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Interval = tuple[float, float]


@dataclass(frozen=True)
class Uniform:
    """A range that is drawn from uniformly by length; may be a union of intervals."""

    low: float
    high: float
    unit: str = ""
    also: tuple[Interval, ...] = ()
    """Further intervals of the union."""

    def __post_init__(self) -> None:
        for low, high in self.intervals:
            if not low < high:
                raise ValueError(f"Uniform: expected low < high, received [{low}, {high}]")

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """All intervals of the union."""
        return ((self.low, self.high), *self.also)

    def at(self, quantile: float) -> float:
        """The point that has ``quantile`` in [0, 1) of the union's length below it."""
        distance = quantile * sum(high - low for low, high in self.intervals)
        for low, high in self.intervals:
            if distance < high - low:
                return low + distance
            distance -= high - low
        return self.intervals[-1][1]


@dataclass(frozen=True)
class Choice:
    """A finite set of equally likely values, such as an actuator's sign."""

    values: tuple[float, ...]
    unit: str = ""

    def at(self, quantile: float) -> float:
        """The value whose equal share of [0, 1) holds ``quantile``."""
        return self.values[min(int(quantile * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True)
class TaskParameter:
    """One declared parameter of a family."""

    name: str
    unit: str
    default: float
    """The value of the unmodified environment."""
    id: Uniform | Choice
    ood: Uniform | Choice
    physical: Interval = (-float("inf"), float("inf"))
    """Values that make physical sense; a task outside is refused."""
    meaning: str = ""

    @property
    def is_category(self) -> bool:
        """Whether only declared values make sense of it: nothing lies between two of them."""
        return isinstance(self.id, Choice)

    def between(self, before: Tensor, after: Tensor, share: Tensor) -> Tensor:
        """At a share in [0, 1] of the way; a category jumps half-way, a range moves evenly."""
        if self.is_category:
            return torch.where(share < 0.5, before, after)
        return torch.lerp(before, after, share)

    def check(self, value: float) -> float:
        """Return ``value``, or raise ValueError naming what was expected."""
        if isinstance(self.id, Choice):
            also = self.ood.values if isinstance(self.ood, Choice) else ()
            values = sorted({*self.id.values, *also})
            allowed, expected = value in values, f"one of {values}"
        else:
            low, high = self.physical
            allowed, expected = low <= value <= high, f"{low:g} to {high:g} {self.unit}"
        if not allowed:
            raise ValueError(
                f"task parameter {self.name!r}: expected {expected}, received {value:g}"
            )
        return value

    def of_kind(self, value: float) -> float:
        """A value as a bool or a whole number where the default is one, and it can be."""
        kind = type(self.default)
        return kind(value) if kind in (bool, int) and float(value).is_integer() else value
