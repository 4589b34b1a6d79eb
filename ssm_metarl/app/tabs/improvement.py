"""Tab 3: a run of recursive self-improvement of one's own, and the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import lineage_markup, markup
from ssm_metarl.app.config import PASSWORD
from ssm_metarl.app.handlers import improving
from ssm_metarl.app.handlers.daemon import ACTIONS
from ssm_metarl.app.handlers.improving import AUDIT, CYCLES, EFFORTS, FORM, KIND
from ssm_metarl.app.tabs.parts import (
    PRIVATE,
    Page,
    chart,
    lineage_values,
    shown,
    text,
)
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.checkpoint import shipped_models

NO_DAEMON = "The daemon has no lineage yet."


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("3. Recursive Self-Improvement", id="improvement"):
        text(value=markup.render("lead", tab="improvement"))
        with gr.Tabs():
            with gr.Tab("A run of your own"):
                _own(page)
            with gr.Tab("The daemon"):
                _daemon(page)


def _own(page: Page) -> None:
    server, most = page.server, CYCLES.high
    with gr.Row(elem_classes="ssm-row"):
        with gr.Column(scale=2, min_width=280):
            cycles = gr.Slider(1, most, value=1, step=1, label="Cycles", elem_id="cycles")
            effort = gr.Radio(
                list(EFFORTS), value=next(iter(EFFORTS)), label="Effort", elem_id="effort",
                info="A quick look takes about a minute a cycle, and can prove nothing small.",
            )  # fmt: skip
            seed = gr.Number(0, label="Seed", precision=0)
            with gr.Row():
                begin = gr.Button("Improve this model", variant="primary", elem_id="improve")
                stop = gr.Button("Cancel", interactive=False, elem_id="improve-cancel")
            audit = gr.Button("Audit it on vault tasks", interactive=False, elem_id="audit")
            status = text("improve-status")
        with gr.Column(scale=3, min_width=280):
            wealth, generations = chart("improve-wealth"), chart("improve-generations")
    lineage = text("improve-lineage")
    timer = gr.Timer(2, active=False)

    def on_audit(visitor: Visitor) -> None:
        improving.start_audit(visitor, server.jobs)

    def updates(visitor: Visitor) -> Sequence[Any]:
        view = improving.view(visitor, server.jobs)
        said = view.message or f"It begins with the model in use: {visitor.model}."
        return [
            markup.notice(said),
            *lineage_values(view.lineage),
            gr.update(interactive=not view.active),
            gr.update(interactive=view.active),
            gr.update(interactive=view.auditable),
            gr.Timer(active=view.active),
        ]

    outputs = [status, wealth, generations, lineage, begin, stop, audit, timer]
    fields, buttons = [cycles, effort, seed], (begin, stop, timer)
    page.runs(FORM, fields, buttons, outputs, improving.start, updates, KIND, AUDIT)
    audit.click(page.then(on_audit, updates), page.token, outputs, **PRIVATE)


def _daemon(page: Page) -> None:
    server = page.server
    status = text("daemon-status")
    with gr.Row(elem_classes="ssm-row"):
        wealth, generations = chart("daemon-wealth"), chart("daemon-generations")
    lineage = text("daemon-lineage")
    look = gr.Button("Look again", size="sm", elem_id="daemon-look")
    with gr.Accordion("Start, stop, pause", open=False):
        text(value=markup.notice(f"These ask for the password that the server has in {PASSWORD}."))
        model = gr.Dropdown(
            list(shipped_models()), value=server.models.first,
            label="Model a new lineage begins with",
        )  # fmt: skip
        password = gr.Textbox(label="Password", type="password", max_length=100, elem_id="password")
        with gr.Row():
            buttons = {
                action: gr.Button(action.capitalize(), size="sm", elem_id=f"daemon-{action}")
                for action in ACTIONS
            }
        answer = text("daemon-answer")

    def updates(visitor: Visitor | None = None) -> Sequence[Any]:
        view = server.daemon.view()
        if view.problem:
            return [markup.notice(f"No daemon here. {view.problem}"), *lineage_values(None)]
        said = lineage_markup.daemon(view.status)
        if not view.can_steer:
            said += markup.notice(f"Steering is off: the server has no {PASSWORD}.")
        if view.lineage is None:
            said += markup.notice(NO_DAEMON)
        return [said, *lineage_values(view.lineage)]

    def steer(action: str) -> Any:
        def run(token: Any, given: Any, chosen: Any) -> Sequence[Any]:
            page.visitor(token)
            came = server.daemon.steer(action, given, chosen)
            return [markup.notice(f"The daemon: {came}.", "good"), *updates()]

        return shown(run)

    outputs = [status, wealth, generations, lineage]
    look.click(shown(updates), None, outputs, **PRIVATE)
    for action, button in buttons.items():
        button.click(steer(action), [page.token, password, model], [answer, *outputs], **PRIVATE)
    page.restores(outputs, updates)
