"""The plant's fields: a slider or a list for every parameter of a family, and its disturbance.

Place in the flow: stage 10, a piece of tab 2. Each family has its own group of sliders; the one of
the model in use is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import result_markup
from ssm_metarl.app.forms import OneOf
from ssm_metarl.app.handlers.live import disturbance_name
from ssm_metarl.app.handlers.plants import Plant, field_of, fields
from ssm_metarl.app.tabs.parts import text
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.tasks.task_parameter import TaskParameter

LEGEND = (
    '<p class="ssm-legend-line"><i data-kind="id"></i> as in training <i data-kind="ood"></i> '
    "never seen in training</p>"
)


class PlantFields:
    """The fields of tab 2 that say which plant it is."""

    def __init__(self) -> None:
        self._groups: dict[str, gr.Group] = {}
        self._sliders: dict[tuple[str, str], gr.Slider | gr.Dropdown] = {}
        self.disturb = gr.Checkbox(
            False, label="Disturb it", elem_id="disturb",
            info="Gives the plant the change that the model does not expect.",
        )  # fmt: skip

    def sliders(self, families: Iterable[TaskFamily]) -> None:
        """Build the sliders, below whatever was built meanwhile."""
        for family in families:
            with gr.Group(visible=not self._groups) as self._groups[family.name]:
                for parameter in fields(family):
                    self._sliders[family.name, parameter.name] = _field(parameter)
        text(value=LEGEND)

    @property
    def names(self) -> list[str]:
        """Of the inputs, in order."""
        return ["disturbed", *(name for _, name in self._sliders)]

    @property
    def inputs(self) -> list[Any]:
        """What an event that needs the plant takes."""
        return [self.disturb, *self._sliders.values()]

    @property
    def outputs(self) -> list[Any]:
        """What `updates` sets."""
        return [*self.inputs, *self._groups.values()]

    def read(self, values: Sequence[Any], family: TaskFamily) -> Plant:
        """The plant from the inputs' values."""
        disturbed, *numbers = values
        entered = zip(self._sliders, numbers, strict=True)
        own = {name: value for (owner, name), value in entered if owner == family.name}
        return Plant(own, disturbed is True)

    def updates(self, plant: Plant, family: TaskFamily) -> list[Any]:
        """Show a plant of a family."""
        return [
            gr.update(
                value=plant.disturbed,
                visible=bool(family.disturbances),
                label=f"Disturb it: {disturbance_name(family)}",
            ),
            *(
                gr.update(value=plant.values[name]) if owner == family.name else gr.skip()
                for owner, name in self._sliders
            ),
            *(gr.update(visible=name == family.name) for name in self._groups),
        ]


def _field(parameter: TaskParameter) -> gr.Slider | gr.Dropdown:
    field = field_of(parameter)
    looks: dict[str, Any] = {
        "value": parameter.default, "label": result_markup.label(parameter),
        "info": parameter.meaning, "elem_id": f"plant-{parameter.name}",
    }  # fmt: skip
    if isinstance(field, OneOf):
        return gr.Dropdown([(f"{value:g}", value) for value in field.values], **looks)
    slider = gr.Slider(field.low, field.high, step=10**-field.decimals, **looks)
    text(value=result_markup.range_strip(parameter), classes="ssm-strip-box")
    return slider
