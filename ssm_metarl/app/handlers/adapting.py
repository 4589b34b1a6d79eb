"""Tab 2: set a plant, adapt a model to it, look at before and after.

Place in the flow: stage 10, over `before_after`. A press adds data and gradient steps to the
presses before: the n-th adapts, from the model's own weights, to n times the data in n times the
steps, so it equals one press with larger numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssm_metarl.app import forms
from ssm_metarl.app.forms import Between, FieldError, OneOf
from ssm_metarl.app.handlers.before_after import Adaptation, Amount, before_after
from ssm_metarl.app.handlers.models import Models
from ssm_metarl.app.handlers.plants import Plant, plant_form
from ssm_metarl.app.kernels import Kernels
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.tasks.task_family import Split, TaskFamily

SUPPORT_STEPS = Between(5, 200, whole=True)
ADAPT_STEPS = Between(1, 5, whole=True)
"""What one press may ask for: data in environment steps, and gradient steps."""
MOST = {"support_steps": 1000, "num_adapt_steps": 20}
"""What all presses together may ask for."""
STREAM = "app"
"""Tasks that the surprise buttons draw: a stream that nothing else uses."""


def how_form(modes: Sequence[str]) -> dict[str, Between | OneOf]:
    """How one press may adapt a model that can run in these modes."""
    return {
        "mode": OneOf(tuple(modes)),
        "support_steps": SUPPORT_STEPS,
        "num_adapt_steps": ADAPT_STEPS,
    }


def adapt(
    visitor: Visitor, models: Models, kernels: Kernels, plant: Plant, how: Mapping[str, object]
) -> Adaptation:
    """Press *adapt*: the first time, or on from the last press on this plant in this mode."""
    opened = models.of(visitor)
    given = forms.read(how_form(models.modes(visitor)), how)
    mode = given.pop("mode")
    asked = total = Amount(**given)
    tasks = plant.tasks(opened.family, models.expects_disturbed(visitor))
    with visitor.lock, kernels.operations():
        last, presses = visitor.adaptation, 1
        if last is not None and (last.plant, last.mode) == (plant, mode):
            presses, total = last.presses + 1, last.total + asked
        for name, most in MOST.items():
            if getattr(total, name) > most:
                raise FieldError(name, f"at most {most} in all: start over")
        visitor.plant = plant
        visitor.adaptation = Adaptation(
            presses=presses, mode=mode, asked=asked, total=total, plant=plant, tasks=tasks,
            **before_after(opened, tasks, mode, total, presses),
        )  # fmt: skip
        return visitor.adaptation


def keep(visitor: Visitor, plant: Plant, family: TaskFamily) -> None:
    """Remember a plant as it is being set, if it is one."""
    if not forms.problems(plant_form(family), plant.values):
        visitor.plant = plant


def start_over(visitor: Visitor) -> None:
    """Forget the presses so far."""
    with visitor.lock:
        visitor.adaptation = None


def surprise(visitor: Visitor, models: Models, split: Split) -> Plant:
    """The next plant of a split, from the visitor's own sequence of draws."""
    family, expects = models.of(visitor).family, models.expects_disturbed(visitor)
    with visitor.lock:
        draw, visitor.draws = visitor.draws, visitor.draws + 1
        tasks = family.sample(split, 1, seed=visitor.seed, start=draw, stream=STREAM)
        drawn, form = tasks.as_dicts()[0], plant_form(family)
        by_disturbance = {n: v for n, v in drawn.items() if n not in form}
        disturbed = any(v != family.default_task[n] for n, v in by_disturbance.items())
        visitor.plant = Plant(
            {name: field.nearest(drawn[name]) for name, field in form.items()},
            bool(by_disturbance) and disturbed != expects,
        )
        return visitor.plant
