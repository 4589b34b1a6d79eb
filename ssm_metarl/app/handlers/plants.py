"""The plant that a visitor sets: a field for every parameter that is theirs to set, and its bounds.

Place in the flow: stage 10, under `adapting` and the page's sliders. The trap: what the family's
first disturbance sets has no field; it is set by disturbing the plant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ssm_metarl.app.visitors import Visitor
from ssm_metarl.evaluation.episodes import first_disturbance
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import Choice, TaskParameter, Uniform


class FieldError(ValueError):
    """A field holds what it may not.

    Args:
        name: Of the field.
        message: What was expected.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.message = name, message


@dataclass(frozen=True)
class Plant:
    """A task as the page has it: physics, and whether it is disturbed."""

    values: Mapping[str, float]
    """Every parameter of the family but those that its disturbance sets (`fields`); a category that
    is missing has its default."""
    disturbed: bool
    """Disturbed, against what the model expects before it adapts."""

    def tasks(self, family: TaskFamily, expects_disturbed: bool) -> Tasks:
        """The task.

        Args:
            family: Of the model.
            expects_disturbed: Which of the two the model expects.

        Raises:
            FieldError: A value that is no number, or outside what the page offers.
        """
        for name, message in self.problems(family).items():
            raise FieldError(name, message)
        names = {p.name for p in fields(family)}
        tasks = family.task({n: v for n, v in self.values.items() if n in names})
        disturb = first_disturbance(family)
        if disturb is not None and self.disturbed != expects_disturbed:
            tasks = disturb(tasks)
        return tasks

    def problems(self, family: TaskFamily) -> dict[str, str]:
        """What is wrong, by parameter; empty where nothing is."""
        found: dict[str, str] = {}
        for parameter in fields(family):
            name = parameter.name
            try:
                if parameter.is_category:
                    one_of(parameter, self.values.get(name, parameter.default))
                else:
                    limits = slider_range(parameter.id, parameter.ood)
                    number(name, self.values.get(name), *limits)
            except FieldError as error:
                found[name] = error.message
        return found


def fields(family: TaskFamily) -> list[TaskParameter]:
    """The parameters that have a field: all but those that the first disturbance sets."""
    disturb = first_disturbance(family)
    if disturb is None:
        return list(family.parameters)
    before = family.task()
    after = disturb(before)
    return [
        p for p in family.parameters
        if float(before.values[p.name][0]) == float(after.values[p.name][0])
    ]  # fmt: skip


def choices(parameter: TaskParameter) -> list[float]:
    """Every value that a category may have."""
    ranges = (r for r in (parameter.id, parameter.ood) if isinstance(r, Choice))
    return sorted({value for r in ranges for value in r.values})


def one_of(parameter: TaskParameter, value: object) -> float:
    """A category from a field.

    Raises:
        FieldError: It is none of its values.
    """
    offered = choices(parameter)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in offered:
        raise FieldError(parameter.name, f"expected one of {', '.join(map(_plain, offered))}")
    return float(value)


def default_plant(family: TaskFamily) -> Plant:
    """The unmodified environment, undisturbed as the model expects it."""
    return Plant({p.name: float(p.default) for p in fields(family)}, False)


def current_plant(visitor: Visitor, family: TaskFamily) -> Plant:
    """What the visitor last set, if it is a plant of this family; otherwise the default one."""
    plant, default = visitor.plant, default_plant(family)
    if plant is None or plant.values.keys() != default.values.keys() or plant.problems(family):
        return default
    return plant


def slider_range(inside: object, outside: object) -> tuple[float, float]:
    """From the least to the greatest value of a parameter's two ranges."""
    ends = [e for r in (inside, outside) if isinstance(r, Uniform) for i in r.intervals for e in i]
    return min(ends), max(ends)


def number(name: str, value: object, low: float, high: float) -> float:
    """A number from a field.

    Raises:
        FieldError: It is none, or not from ``low`` to ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FieldError(name, f"expected a number from {_plain(low)} to {_plain(high)}")
    if not low <= value <= high:
        expected = f"{_plain(low)} to {_plain(high)}"
        raise FieldError(name, f"expected {expected}, received {_plain(value)}")
    return float(value)


def _plain(value: float) -> str:
    """A number as one writes it: 3,000,000 and 0.02."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def rounded(family: TaskFamily, name: str, value: float) -> float:
    """To the slider's own steps, so that what is shown is what is run."""
    parameter = next(p for p in family.parameters if p.name == name)
    if parameter.is_category:
        return value
    low, high = slider_range(parameter.id, parameter.ood)
    return min(high, max(low, round(value, decimals(low, high))))


def decimals(low: float, high: float) -> int:
    """Decimals of a slider that has some hundreds of steps."""
    return max(0, math.ceil(math.log10(95 / (high - low))))
