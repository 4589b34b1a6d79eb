"""Tab 1: train a model of one's own, watch it learn, use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import charts, markup
from ssm_metarl.app.handlers import training
from ssm_metarl.app.handlers.training import ENV_STEPS, TrainingView
from ssm_metarl.app.jobs import JobQueue, JobState
from ssm_metarl.app.tabs.parts import PRIVATE, Page, chart, text
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.config import MetaTrainingConfig


def build(page: Page) -> None:
    """Build the tab."""
    server, form = page.server, training.training_form(page.server.families)
    with gr.Tab("1. Meta-Training", id="training"):
        text(value=markup.render("lead", tab="training"))
        with gr.Row(elem_classes="ssm-row"):
            with gr.Column(scale=2, min_width=280):
                fields = _fields(server.families)
                with gr.Row():
                    begin = gr.Button("Train", variant="primary", elem_id="train")
                    stop = gr.Button("Cancel", interactive=False, elem_id="train-cancel")
            with gr.Column(scale=3, min_width=280):
                status = text("train-status")
                curve = chart("train-curve")
                use = gr.Button("Use this model", interactive=False, elem_id="train-use")
                command = text("train-command")
        timer = gr.Timer(1.5, active=False)

    def start(visitor: Visitor, jobs: JobQueue, entered: dict[str, Any]) -> None:
        training.start(visitor, jobs, server.families, entered)

    def on_use(visitor: Visitor) -> None:
        training.use(visitor, server.models)
        gr.Info("Your model is in use in every tab.", duration=4)

    def updates(visitor: Visitor) -> Sequence[Any]:
        view = training.view(visitor, server.jobs)
        return [
            _status(view),
            charts.training_curve(view.log, bounds=view.return_bounds),
            gr.update(interactive=not view.active),
            gr.update(interactive=view.active),
            gr.update(interactive=view.usable),
            markup.command(view.command),
            gr.Timer(active=view.active),
        ]

    outputs = [status, curve, begin, stop, use, command, timer]
    page.runs(form, fields, (begin, stop, timer), outputs, start, updates, training.KIND)
    page.model_chosen.append(use.click(page.then(on_use), page.token, None, **PRIVATE))


def _fields(families: Iterable[str]) -> list[Any]:
    """The form's components, in the order of its fields."""
    usual = MetaTrainingConfig()
    family = gr.Dropdown(
        list(families), value=usual.family, label="Task family", elem_id="train-family"
    )
    core = gr.Radio(
        [("diagonal", "diagonal"), ("state space", "state_space")], value=usual.core,
        label="Sequence model", elem_id="train-core",
        info="diagonal is linear and fast; state space has 6,744 parameters",
    )  # fmt: skip
    objective = gr.Radio(
        [("prediction", "prediction"), ("policy gradient", "policy_gradient")],
        value=usual.objective, label="A step of adapting descends",
        info="the loss of prediction needs no reward",
    )  # fmt: skip
    mode = gr.Radio(
        [("standard", "standard"), ("hybrid", "hybrid")], value=usual.adaptation_mode,
        label="Adaptation", info="hybrid also replays experience of other plants",
    )  # fmt: skip
    steps = gr.Number(
        ENV_STEPS, label="Environment steps", precision=0, elem_id="train-steps",
        info="1,450,000 is the full training; 300,000 already adapts to most plants.",
    )  # fmt: skip
    with gr.Accordion("Rates, batch and seed", open=False):
        tasks = gr.Number(usual.tasks_per_epoch, label="Tasks in a meta-batch", precision=0)
        inner = gr.Number(usual.inner_lr, label="Inner learning rate (initial)")
        outer = gr.Number(usual.outer_lr, label="Outer learning rate (Adam)")
        seed = gr.Number(usual.seed, label="Seed", precision=0)
    return [family, core, objective, mode, steps, tasks, inner, outer, seed]


def _status(view: TrainingView) -> str:
    """A line of news, and how far it is."""
    if view.state is None:
        return markup.notice("Nothing is training yet.")
    kind = {JobState.DONE: "good", JobState.FAILED: "bad"}.get(view.state, "info")
    said = markup.notice(view.message, kind)
    if not view.log:
        return said
    last = view.log[-1]
    text = f"{last['env_steps']:,} environment steps in {last['epoch']:,} epochs"
    if view.seconds_left is not None:
        text += f", about {view.seconds_left:.0f} s left"
    return said + markup.progress(view.progress, text)
