"""Tab 2: set a plant, adapt to it, see before and after; the live view below it is `live`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import forms, markup, result_markup
from ssm_metarl.app.handlers import adapting
from ssm_metarl.app.handlers.adapting import ADAPT_STEPS, SUPPORT_STEPS, how_form
from ssm_metarl.app.handlers.before_after import film
from ssm_metarl.app.handlers.live import idle
from ssm_metarl.app.handlers.models import mode_meaning
from ssm_metarl.app.handlers.plants import current_plant, plant_form
from ssm_metarl.app.markup import STATIC
from ssm_metarl.app.tabs import live
from ssm_metarl.app.tabs.parts import COMPUTE, PRIVATE, QUIET, Page, drawn, text
from ssm_metarl.app.tabs.plant import PlantFields
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.tasks.task_family import Split, TaskFamily

EMPTY = markup.notice("Press Adapt: what the controller does before and after appears here.")
REMEMBERS = (
    "This model takes no gradient step: it remembers. Each press shows its next episode on the "
    "plant, its memory running through."
)
NO_LIVE = "There is no live view: its family has no batched physics, or no sketch to draw it by."
NO_DISTURBANCE = "Its family names no disturbance: the plant can be set, but not disturbed."
DEFAULT_DATA = 20  # environment steps


def build(page: Page) -> None:
    """Build the tab."""
    server = page.server
    with gr.Tab("2. Test-Time Adaptation", id="adaptation"):
        text(value=markup.render("lead", tab="adaptation"))
        with gr.Row(elem_classes="ssm-row"):
            with gr.Column(scale=2, min_width=280):
                plant = PlantFields()
                notes = text("notes")
                with gr.Row():
                    press = gr.Button("Adapt", variant="primary", elem_id="adapt", scale=2)
                    over = gr.Button("Start over", elem_id="start-over", min_width=90)
                plant.sliders(server.families.values())
                with gr.Row():
                    inside = gr.Button("Surprise me", size="sm", elem_id="surprise-id")
                    outside = gr.Button(
                        "Surprise me, out of range", size="sm", elem_id="surprise-ood"
                    )
                how = _how()
            with gr.Column(scale=3, min_width=280):
                player = drawn(
                    "player", (STATIC / "player.html").read_text(),
                    "ssm.player(element, props, watch);",
                )  # fmt: skip
                result = text("adapt-result", EMPTY)
                command = text("adapt-command")
        live_view = live.build(page, plant)

    def family_of(visitor: Visitor) -> TaskFamily:
        return server.models.of(visitor).family

    def how_of(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(how_form([]), values, strict=True))

    def on_press(visitor: Visitor, *values: Any) -> None:
        *about, mode, data, steps = values
        set_to = plant.read(about, family_of(visitor))
        entered = how_of((mode, data, steps))
        adapting.adapt(visitor, server.models, server.kernels, set_to, entered)

    def problems(visitor: Visitor, *values: Any) -> dict[str, str]:
        *about, mode, data, steps = values
        family = family_of(visitor)
        entered = {**plant.read(about, family).values, **how_of((mode, data, steps))}
        form = {**plant_form(family), **how_form(server.models.modes(visitor))}
        return forms.problems(form, entered)

    def on_set(visitor: Visitor, *about: Any) -> None:
        family = family_of(visitor)
        adapting.keep(visitor, plant.read(about, family), family)

    def surprise(split: Split) -> Any:
        return page.then(lambda v: adapting.surprise(v, server.models, split), plant_of)

    def show(visitor: Visitor) -> list[Any]:
        done = visitor.adaptation
        if done is None:
            return [{}, EMPTY, "", gr.update(value="Adapt")]
        return [
            film(done),
            result_markup.result(done, family_of(visitor)),
            markup.command(done.command, "The same on the command line"),
            gr.update(value="Adapt further"),
        ]

    def plant_of(visitor: Visitor) -> list[Any]:
        family = family_of(visitor)
        return plant.updates(current_plant(visitor.plant, family), family)

    def how_values(visitor: Visitor) -> list[Any]:
        opened, last = server.models.of(visitor), visitor.adaptation
        modes = server.models.modes(visitor)
        tried = "random actions that it tries first"
        if opened.family.time_step is not None:
            tried += f"; {DEFAULT_DATA} are {DEFAULT_DATA * opened.family.time_step:g} s"
        steps = bool(opened.gradient_modes)
        return [
            gr.update(
                choices=[(f"{m}: {mode_meaning(m)}", m) for m in modes],
                value=last.mode if last else modes[min(1, len(modes) - 1)],
            ),
            gr.update(
                value=last.asked.support_steps if last else DEFAULT_DATA, info=tried, visible=steps
            ),
            gr.update(value=last.asked.num_adapt_steps if last else 1, visible=steps),
        ]

    def values(visitor: Visitor) -> Sequence[Any]:
        opened = server.models.of(visitor)
        still = idle(opened.family)
        remembers = opened.policy.in_context and not opened.gradient_modes
        said = [REMEMBERS] if remembers else []
        said += [] if still else [NO_LIVE]
        said += [] if opened.family.disturbances else [NO_DISTURBANCE]
        return [
            *plant_of(visitor),
            *how_values(visitor),
            *show(visitor),
            gr.update(value=markup.notice(" ".join(said)), visible=bool(said)),
            gr.update(visible=bool(still)),
            still,
        ]

    outcome = [player, result, command, press]
    press.click(
        page.then(on_press, show), [page.token, *plant.inputs, *how], outcome,
        validator=page.validator([*plant.names, *how_form([])], problems),
        show_progress="minimal", show_progress_on=result, scroll_to_output=True,
        **PRIVATE, **COMPUTE,
    )  # fmt: skip
    over.click(page.then(adapting.start_over, show), page.token, outcome, **QUIET)
    gr.on(
        [component.input for component in plant.inputs],
        page.then(on_set), [page.token, *plant.inputs], None, trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    inside.click(surprise("id"), page.token, plant.outputs, **QUIET)
    outside.click(surprise("ood"), page.token, plant.outputs, **QUIET)
    page.restores([*plant.outputs, *how, *outcome, notes, *live_view], values)


def _how() -> list[Any]:
    """How to adapt: mode, data, steps."""
    with gr.Accordion("How it adapts", open=False):
        return [
            gr.Radio([("standard", "standard")], value="standard", label="Mode", elem_id="mode"),
            gr.Slider(
                SUPPORT_STEPS.low, SUPPORT_STEPS.high, value=DEFAULT_DATA, step=1,
                label="Data (environment steps)",
                info="random actions that it tries first", elem_id="support-steps",
            ),
            gr.Slider(
                ADAPT_STEPS.low, ADAPT_STEPS.high, value=1, step=1, label="Gradient steps",
                info="a step that does not help is undone", elem_id="adapt-steps",
            ),
        ]  # fmt: skip
