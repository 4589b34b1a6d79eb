"""The plant that a visitor sets: a field for every parameter that is theirs to set.

Place in the flow: stage 10, under `adapting` and the page's sliders. The trap: what the family's
first disturbance sets has no field; it is set by disturbing the plant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssm_metarl.app import forms
from ssm_metarl.app.forms import Between, OneOf
from ssm_metarl.evaluation.episodes import first_disturbance
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import Choice, TaskParameter


@dataclass(frozen=True)
class Plant:
    """A task as the page has it: physics, and whether it is disturbed."""

    values: Mapping[str, float]
    """Every parameter of the family but those that its disturbance sets (`fields`)."""
    disturbed: bool
    """Disturbed, against what the model expects before it adapts."""

    def tasks(self, family: TaskFamily, expects_disturbed: bool) -> Tasks:
        """The task.

        Args:
            family: Of the model.
            expects_disturbed: Which of the two the model expects.
        """
        tasks = family.task(forms.read(plant_form(family), self.values))
        disturb = first_disturbance(family)
        if disturb is not None and self.disturbed != expects_disturbed:
            return disturb(tasks)
        return tasks


def fields(family: TaskFamily) -> list[TaskParameter]:
    """The parameters that have a field: all but those that the first disturbance sets."""
    before = family.task()
    disturb = first_disturbance(family)
    after = before if disturb is None else disturb(before)

    def stays(name: str) -> bool:
        return float(before.values[name][0]) == float(after.values[name][0])

    return [p for p in family.parameters if stays(p.name)]


def field_of(parameter: TaskParameter) -> Between | OneOf:
    """What may be entered for a parameter: all that its two ranges span, or have."""
    chosen, ends = set[float](), [parameter.default]
    for drawn in (parameter.id, parameter.ood):
        if isinstance(drawn, Choice):
            chosen |= set(drawn.values)
        else:
            ends += [end for interval in drawn.intervals for end in interval]
    return OneOf(tuple(sorted(chosen))) if parameter.is_category else Between(min(ends), max(ends))


def plant_form(family: TaskFamily) -> dict[str, Between | OneOf]:
    """All fields of a family's plants."""
    return {parameter.name: field_of(parameter) for parameter in fields(family)}


def default_plant(family: TaskFamily) -> Plant:
    """The unmodified environment, undisturbed as the model expects it."""
    return Plant({p.name: float(p.default) for p in fields(family)}, False)


def current_plant(plant: Plant | None, family: TaskFamily) -> Plant:
    """What was last set, if it is a plant of this family; otherwise the default one."""
    form = plant_form(family)
    if plant is None or plant.values.keys() != form.keys() or forms.problems(form, plant.values):
        return default_plant(family)
    return plant
