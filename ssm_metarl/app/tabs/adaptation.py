"""Tab 2: set a plant, adapt to it, see before and after; and a live view that can be disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import markup
from ssm_metarl.app.handlers import adapting, live, plants
from ssm_metarl.app.handlers.adapting import ADAPT_STEPS, SUPPORT_STEPS
from ssm_metarl.app.handlers.live import LiveRun, Piece
from ssm_metarl.app.handlers.models import mode_meaning
from ssm_metarl.app.tabs.parts import COMPUTE, PRIVATE, QUIET, Page, beside_fields, shown, text
from ssm_metarl.app.tabs.plant import PlantFields
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.tasks.task_family import Split

LEAD = """
<div class="ssm-lead"><p><strong>Change the plant</strong> (disturb it, to begin with), then press
<strong>Adapt</strong>. The controller tries the plant for a moment, takes one gradient step on how
badly it predicted what happened, and drives it again.</p></div>
"""
EMPTY = markup.notice("Press Adapt: what the controller does before and after appears here.")
PLAYER = """
<div class="ssm-player" hidden>
  <div class="ssm-sketches">
    <figure><figcaption>Before adapting</figcaption><canvas data-side="before" role="img"
      aria-label="The plant before adapting"></canvas>
      <p data-caption="before"></p></figure>
    <figure><figcaption>After adapting</figcaption><canvas data-side="after" role="img"
      aria-label="The plant after adapting"></canvas>
      <p data-caption="after"></p></figure>
  </div>
  <div class="ssm-track"><span data-time></span></div>
  <div class="ssm-controls">
    <button type="button" data-do="play">Play</button>
    <button type="button" data-do="restart">From the start</button>
    <span>episode</span><span data-episodes></span>
  </div>
</div>
"""
LIVE = """
<div class="ssm-live">
  <figure><canvas role="img" aria-label="The plant, live"></canvas>
    <p><span data-clock>0.0 s</span> <b data-state aria-live="polite">not started</b></p></figure>
  <div class="ssm-controls">
    <button type="button" data-do="start" class="primary">Start</button>
    <button type="button" data-do="disturb" disabled>Disturb it now</button>
    <button type="button" data-do="pause" disabled>Pause</button>
  </div>
  <ol data-log aria-label="What happened, the latest first"></ol>
</div>
"""
LIVE_LEAD = """
<div class="ssm-lead"><h3>Live: break it while it runs</h3><p>The plant above runs on and on.
Disturb it whenever you like: the controller notices within a few steps that nothing happens as it
predicted, adapts to what it sees while it goes on, and recovers. One that never adapts does
not.</p></div>
"""
NO_LIVE = "There is no live view: its family has no batched physics, or no sketch to draw it by."
NO_DISTURBANCE = "Its family names no disturbance: the plant can be set, but not disturbed."
DEFAULT_DATA = 20  # environment steps
ONLINE, FROZEN = "adapt while it runs", "never adapt to a change"


def build(page: Page) -> None:
    """Build the tab."""
    server = page.server
    with gr.Tab("2. Test-Time Adaptation", id="adaptation"):
        text(value=LEAD)
        with gr.Row(elem_classes="ssm-row"):
            with gr.Column(scale=2, min_width=280):
                plant = PlantFields()
                lacking = text("lacking")
                with gr.Row():
                    press = gr.Button("Adapt", variant="primary", elem_id="adapt", scale=2)
                    over = gr.Button("Start over", elem_id="start-over", min_width=90)
                plant.sliders()
                with gr.Row():
                    inside = gr.Button("Surprise me", size="sm", elem_id="surprise-id")
                    outside = gr.Button(
                        "Surprise me, out of range", size="sm", elem_id="surprise-ood"
                    )
                mode, data, steps = _how()
            with gr.Column(scale=3, min_width=280):
                player = gr.HTML(
                    {}, html_template=PLAYER, apply_default_css=False, elem_id="player",
                    js_on_load="ssm.player(element, props, watch);",
                )  # fmt: skip
                result = text("adapt-result", EMPTY)
                command = text("adapt-command")
        live_view = _live(page, plant)
        how = [mode, data, steps]
        names = [*plant.names, "mode", "support_steps", "num_adapt_steps"]
        outcome = [player, result, command, press]

        def on_press(visitor: Visitor, *values: Any) -> None:
            family = server.models.of(visitor).family
            *about, chosen, support_steps, num_adapt_steps = values
            adapting.adapt(
                visitor, server.models, server.kernels, plant.read(about, family),
                mode=chosen, support_steps=support_steps, num_adapt_steps=num_adapt_steps,
            )  # fmt: skip

        def check(token: Any, *values: Any) -> Sequence[Any]:
            visitor = page.visitor(token)
            family = server.models.of(visitor).family
            *about, _, support_steps, num_adapt_steps = values
            problems = adapting.problems(
                plant.read(about, family), family, support_steps, num_adapt_steps
            )
            return beside_fields(names, problems, leading=1)

        def on_set(visitor: Visitor, *about: Any) -> None:
            family = server.models.of(visitor).family
            adapting.keep(visitor, plant.read(about, family), family)

        def surprise(split: Split) -> Any:
            def draw(visitor: Visitor) -> None:
                adapting.surprise(visitor, server.models, split)

            return page.then(draw, plant_of)

        def show(visitor: Visitor) -> list[Any]:
            done = visitor.adaptation
            if done is None:
                return [{}, EMPTY, "", gr.update(value="Adapt")]
            family = server.models.of(visitor).family
            return [
                adapting.film(done),
                markup.result(done, family),
                markup.notice("The same on the command line") + markup.command(done.command)
                if done.command
                else "",
                gr.update(value="Adapt further"),
            ]

        def plant_of(visitor: Visitor) -> list[Any]:
            family = server.models.of(visitor).family
            return plant.updates(plants.current_plant(visitor, family), family)

        press.click(
            page.then(on_press, show), [page.token, *plant.inputs, *how], outcome, validator=check,
            show_progress="minimal", show_progress_on=result, scroll_to_output=True,
            **PRIVATE, **COMPUTE,
        )  # fmt: skip
        over.click(page.then(adapting.start_over, show), page.token, outcome, **QUIET)
        gr.on(
            [component.input for component in plant.inputs],
            page.then(on_set, lambda visitor: None),
            [page.token, *plant.inputs], None, trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        inside.click(surprise("id"), page.token, plant.outputs, **QUIET)
        outside.click(surprise("ood"), page.token, plant.outputs, **QUIET)

        def values(visitor: Visitor) -> Sequence[Any]:
            family = server.models.of(visitor).family
            modes, last = server.models.modes(visitor), visitor.adaptation
            chosen = last.mode if last is not None else modes[min(1, len(modes) - 1)]
            choices = [(f"{m}: {mode_meaning(m)}", m) for m in modes]
            data, steps = last.asked if last is not None else (DEFAULT_DATA, ADAPT_STEPS[0])
            tried = "random actions that it tries first"
            if family.time_step is not None:
                tried += f"; {DEFAULT_DATA} are {DEFAULT_DATA * family.time_step:g} s"
            still = live.idle(family)
            missing = [] if still else [NO_LIVE]
            missing += [] if family.disturbances else [NO_DISTURBANCE]
            return [
                *plant_of(visitor),
                gr.update(choices=choices, value=chosen),
                gr.update(value=data, info=tried),
                steps,
                *show(visitor),
                gr.update(value=markup.notice(" ".join(missing)), visible=bool(missing)),
                gr.update(visible=bool(still)),
                still,
            ]

        page.restores([*plant.outputs, *how, *outcome, lacking, *live_view], values)


def _how() -> tuple[gr.Radio, gr.Slider, gr.Slider]:
    """How to adapt: mode, data, steps."""
    with gr.Accordion("How it adapts", open=False):
        mode = gr.Radio([("standard", "standard")], value="standard", label="Mode", elem_id="mode")
        data = gr.Slider(
            *SUPPORT_STEPS, value=DEFAULT_DATA, step=1, label="Data (environment steps)",
            info="random actions that it tries first", elem_id="support-steps",
        )  # fmt: skip
        steps = gr.Slider(
            *ADAPT_STEPS, value=1, step=1, label="Gradient steps",
            info="a step that does not help is undone", elem_id="adapt-steps",
        )  # fmt: skip
    return mode, data, steps


def _live(page: Page, plant: PlantFields) -> tuple[gr.Column, gr.HTML]:
    """The live view and its events: begin, more, disturb."""
    server = page.server
    with gr.Column(elem_classes="ssm-section") as section:
        text(value=LIVE_LEAD)
        how = gr.Radio(
            [ONLINE, FROZEN], value=ONLINE, label="The controller shall", elem_id="live-how"
        )
        view: Any = gr.HTML(
            {}, html_template=LIVE, apply_default_css=False, elem_id="live",
            js_on_load='ssm.live(element, props, trigger, watch);  // "begin", "more", "disturb"',
        )  # fmt: skip

    @shown
    def begin(token: Any, chosen: Any, *values: Any) -> dict[str, Any]:
        visitor = page.visitor(token)
        opened = server.models.of(visitor)
        tasks = plant.read(values, opened.family).tasks(
            opened.family, server.models.expects_disturbed(visitor)
        )
        with visitor.lock, server.kernels.operations():
            visitor.live = LiveRun(
                opened.policy, tasks, chosen != FROZEN, visitor.seed, opened.trained.online()
            )
            return live.as_json(visitor.live.advance())

    def going_on(token: Any, event: gr.EventData, change: Any) -> dict[str, Any]:
        visitor = page.visitor(token)
        detail = event._data if isinstance(event._data, dict) else {}
        with visitor.lock, server.kernels.operations():
            if visitor.live is None or visitor.live.name != detail.get("run"):
                raise ValueError("This live run has ended: start another one.")
            piece: Piece = change(visitor.live, detail)
            return live.as_json(piece)

    @shown
    def more(token: Any, event: gr.EventData) -> dict[str, Any]:
        return going_on(token, event, lambda run, detail: run.advance())

    @shown
    def disturb(token: Any, event: gr.EventData) -> dict[str, Any]:
        def change(run: LiveRun, detail: dict[str, Any]) -> Piece:
            at = detail.get("at")
            if isinstance(at, bool) or not isinstance(at, int):
                raise ValueError("at: expected a step")
            return run.disturb(at)

        return going_on(token, event, change)

    view.begin(begin, [page.token, how, *plant.inputs], view, **QUIET, **COMPUTE)
    view.more(more, page.token, view, trigger_mode="multiple", **QUIET, **COMPUTE)
    view.disturb(disturb, page.token, view, trigger_mode="multiple", **QUIET, **COMPUTE)
    return section, view
