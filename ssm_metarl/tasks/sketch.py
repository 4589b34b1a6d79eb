"""How a plant is drawn: a few shapes in its own units, one description for every picture.

Place in the flow: stage 1, a field of a `task_family`; film, page and live view scale the shapes to
their pixels and choose the colours by role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
Role = Literal["ground", "body", "part", "joint", "force"]


@dataclass(frozen=True)
class Shape:
    """One shape, in the plant's units, y upwards."""

    kind: Literal["line", "box", "disc"]
    points: tuple[Point, ...]
    """Of a line its ends, of a box two opposite corners, of a disc the centre."""
    size: float
    """Of a line its width, of a disc its radius."""
    role: Role


@dataclass(frozen=True)
class Sketch:
    """What to draw of a state."""

    extent: tuple[float, float, float, float]
    """Left, right, bottom and top of what is shown."""
    draw: Callable[[Sequence[float], Mapping[str, float]], list[Shape]]
    """Shapes from a state (S,) and the task's parameters, the first ones behind the others."""
