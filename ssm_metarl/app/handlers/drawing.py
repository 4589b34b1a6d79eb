"""How the browser is told to draw a plant: the shapes of its family's sketch, as small JSON.

Place in the flow: stage 10, under `adapting` and `live`; ``static/sketch.js`` draws it. A picture
is a look, which stands in the description once, and the numbers that move. The trap: what stands
still (the ground) is part of the look, so a ground that moves makes a look a state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ssm_metarl.tasks.task_family import TaskFamily

STEP_SECONDS = 0.02
"""Of a plant that does not know its time step."""
DIGITS = 4
"""What a picture resolves: the extent's leading digits."""
Frame = list[float]
"""Number of a look, then x and y of every point that moves."""


def step_seconds(family: TaskFamily) -> float:
    """Time between two states."""
    return family.time_step or STEP_SECONDS


def drawing(
    family: TaskFamily,
    parameters: Mapping[str, float],
    takes: Iterable[Sequence[Sequence[float]]],
) -> tuple[dict[str, Any], list[list[Frame]]]:
    """The description of some takes, and their frames.

    Args:
        family: With a sketch.
        parameters: Of the task.
        takes: States (S,) one after the other, of each.
    """
    assert family.sketch is not None
    left, right, *_ = extent = family.sketch.extent
    digits = DIGITS - 1 - math.floor(math.log10(right - left))
    looks: dict[tuple[Any, ...], int] = {}

    def frame(state: Sequence[float]) -> Frame:
        look, moving = [], []
        for shape in family.sketch.draw(state, parameters) if family.sketch else ():
            numbers = [round(x, digits) for point in shape.points for x in point]
            still = tuple(numbers) if shape.role == "ground" else ()
            look.append((shape.kind, shape.role, shape.size, still))
            moving += [] if still else numbers
        return [looks.setdefault(tuple(look), len(looks)), *moving]

    frames = [[frame(state) for state in take] for take in takes]
    return {"extent": extent, "looks": list(looks), "step_seconds": step_seconds(family)}, frames
