"""Tab 2, the live view: a plant that runs on and can be disturbed, and its events."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ssm_metarl.app import markup
from ssm_metarl.app.handlers import live
from ssm_metarl.app.handlers.live import LiveRun, Piece
from ssm_metarl.app.markup import STATIC
from ssm_metarl.app.tabs.parts import COMPUTE, QUIET, Page, drawn, shown, text
from ssm_metarl.app.tabs.plant import PlantFields

ONLINE, FROZEN = "adapt while it runs", "never adapt to a change"


def build(page: Page, plant: PlantFields) -> tuple[gr.Column, gr.HTML]:
    """Build the section and its view: begin, more, disturb."""
    server = page.server
    with gr.Column(elem_classes="ssm-section") as section:
        text(value=markup.render("lead", tab="live"))
        how = gr.Radio(
            [ONLINE, FROZEN], value=ONLINE, label="The controller shall", elem_id="live-how"
        )
        view: Any = drawn(
            "live", (STATIC / "live.html").read_text(),
            'ssm.live(element, props, trigger, watch);  // "begin", "more", "disturb"',
        )  # fmt: skip

    @shown
    def begin(token: Any, chosen: Any, *values: Any) -> dict[str, Any]:
        visitor = page.visitor(token)
        opened = server.models.of(visitor)
        expects = server.models.expects_disturbed(visitor)
        tasks = plant.read(values, opened.family).tasks(opened.family, expects)
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
            return live.as_json(change(visitor.live, detail.get("at")))

    @shown
    def more(token: Any, event: gr.EventData) -> dict[str, Any]:
        return going_on(token, event, lambda run, at: run.advance())

    @shown
    def disturb(token: Any, event: gr.EventData) -> dict[str, Any]:
        def change(run: LiveRun, at: Any) -> Piece:
            if isinstance(at, bool) or not isinstance(at, int):
                raise ValueError("at: expected a step")
            return run.disturb(at)

        return going_on(token, event, change)

    view.begin(begin, [page.token, how, *plant.inputs], view, **QUIET, **COMPUTE)
    view.more(more, page.token, view, trigger_mode="multiple", **QUIET, **COMPUTE)
    view.disturb(disturb, page.token, view, trigger_mode="multiple", **QUIET, **COMPUTE)
    return section, view
