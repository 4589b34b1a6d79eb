"""Tab 0: choose a model, read what it is, and go on to try it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import charts, markup
from ssm_metarl.app.handlers.models import facts, log_rows
from ssm_metarl.app.tabs.parts import PRIVATE, Page, chart, text
from ssm_metarl.app.visitors import Visitor

TAB, NEXT = "models", "adaptation"


def build(page: Page) -> None:
    """Build the tab."""
    models = page.server.models
    with gr.Tab("0. Load Pre-trained Model", id=TAB):
        text(value=markup.render("lead", tab="models"))
        with gr.Row(elem_classes="ssm-row"):
            with gr.Column(scale=2, min_width=280):
                choice = gr.Radio(
                    [models.first], value=models.first, label="Model", elem_id="model",
                    info="Ready to use: nothing needs to be trained first.",
                )  # fmt: skip
                ready = text("model-ready")
                go = gr.Button(
                    "Change the plant, and watch it adapt →", variant="primary", elem_id="go-adapt"
                )
                about = text("model-facts")
            with gr.Column(scale=3, min_width=280):
                curve = chart("model-curve")
        with gr.Accordion("Model card", open=False):
            card = gr.Markdown(elem_id="model-card")

    def values(visitor: Visitor) -> Sequence[Any]:
        opened = models.of(visitor)
        log = log_rows(opened.training_log)
        return [
            gr.update(choices=models.names(visitor), value=visitor.model),
            markup.notice(f"{visitor.model} is loaded and ready.", "good"),
            markup.facts(facts(opened)),
            charts.training_curve(log, bounds=opened.family.return_bounds),
            models.card(visitor) or "_A training of your own has no card._",
        ]

    chosen = choice.input(page.then(models.choose), [page.token, choice], None, **PRIVATE)
    page.model_chosen.append(chosen)
    go.click(None, None, page.tabs, js=f"() => ({{selected: '{NEXT}', __type__: 'update'}})")
    page.restores([choice, ready, about, curve, card], values)
