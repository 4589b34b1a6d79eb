"""HTML of tab 2: what adapting brought, and a plant's parameters.

Place in the flow: stage 10, from `before_after` to the browser.
"""

from __future__ import annotations

from ssm_metarl.app.forms import Between
from ssm_metarl.app.handlers.before_after import REMEMBERING, Adaptation
from ssm_metarl.app.handlers.plants import field_of
from ssm_metarl.app.markup import render
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.tasks.task_parameter import TaskParameter, Uniform

UNITS = {"m/s^2": "m/s²"}


def label(parameter: TaskParameter) -> str:
    """What a parameter's field is called: ``Mass (kg)``."""
    return parameter.name.capitalize() + (f" ({_unit(parameter)})" if parameter.unit else "")


def _unit(parameter: TaskParameter) -> str:
    return UNITS.get(parameter.unit, parameter.unit)


def range_strip(parameter: TaskParameter) -> str:
    """Where a slider is in the range that training saw, and where out of it."""
    slider, inside = field_of(parameter), parameter.id
    assert isinstance(slider, Between) and isinstance(inside, Uniform)
    scale = 100 / (slider.high - slider.low)
    parts = [
        (kind, scale * (a - slider.low), scale * (b - a))
        for kind, drawn in (("id", inside), ("ood", parameter.ood))
        for a, b in (drawn.intervals if isinstance(drawn, Uniform) else ())
    ]
    said = f"trained on {inside.low:g} to {inside.high:g} {_unit(parameter)}"
    return render("strip", parts=parts, said=said)


def result(adaptation: Adaptation, family: TaskFamily) -> str:
    """Before and after in two numbers, the episodes as bars, and what it took."""
    every = [*adaptation.before.returns, *adaptation.after.returns]
    low, high = family.return_bounds or (min(0.0, *every), max(0.0, *every))
    task = adaptation.task
    plant = [f"{p.name} {task[p.name]:g} {_unit(p)}".rstrip() for p in family.parameters]
    return render(
        "result", done=adaptation, remembers=adaptation.mode in REMEMBERING, low=low, high=high,
        scale=f"of {high:g}" if low == 0 else f"from {low:g} to {high:g}", plant=" · ".join(plant),
    )  # fmt: skip
