"""Tab 0: choose a model, read what it is, and go on to try it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import charts, markup
from ssm_metarl.app.tabs.parts import PRIVATE, Page, chart, shown, text
from ssm_metarl.app.visitors import Visitor

TAB, NEXT = "models", "adaptation"
INTRODUCTION = """
<div class="ssm-lead">
  <p>This controller was trained on thousands of plants. Each has other physics, some a motor that
  <strong>works the wrong way round</strong>. No sensor tells which plant it is.</p>
  <p>So it learnt to find out: it tries some actions, compares what happens with what it expected,
  and adapts.</p>
</div>
"""


def build(page: Page) -> None:
    """Build the tab."""
    server = page.server
    with gr.Tab("0. Load Pre-trained Model", id=TAB):
        text(value=INTRODUCTION)
        with gr.Row(elem_classes="ssm-row"):
            with gr.Column(scale=2, min_width=280):
                choice = gr.Radio(
                    [server.models.first], value=server.models.first, label="Model",
                    info="Ready to use: nothing needs to be trained first.", elem_id="model",
                )  # fmt: skip
                ready = text("model-ready")
                go = gr.Button(
                    "Change the plant, and watch it adapt →", variant="primary", elem_id="go-adapt"
                )
                facts = text("model-facts")
            with gr.Column(scale=3, min_width=280):
                curve = chart("model-curve")
        with gr.Accordion("Model card", open=False):
            card = gr.Markdown(elem_id="model-card")

        @shown
        def choose(token: Any, name: Any) -> None:
            server.models.choose(page.visitor(token), name)

        chosen = choice.input(choose, [page.token, choice], None, **PRIVATE)
        page.model_chosen.append(chosen)
        go.click(None, None, page.tabs, js=f"() => ({{selected: '{NEXT}', __type__: 'update'}})")

    def values(visitor: Visitor) -> Sequence[Any]:
        view = server.models.view(visitor)
        return [
            gr.update(choices=server.models.names(visitor), value=view.name),
            markup.notice(f"{view.name} is loaded and ready.", "good"),
            markup.facts(view.facts),
            charts.training_curve(view.log, bounds=view.return_bounds),
            view.card or "_A training of your own has no card._",
        ]

    page.restores([choice, ready, facts, curve, card], values)
