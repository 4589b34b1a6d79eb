"""Tab 4: the committed benchmark results, as plots and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import charts, markup
from ssm_metarl.app.handlers import comparing
from ssm_metarl.app.tabs.parts import PRIVATE, Page, chart, shown, text

NOTHING = "No benchmark results come with this version."


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("4. Compare", id="compare"):
        names = comparing.names()
        if not names:
            text(value=markup.notice(NOTHING))
            return
        with gr.Row(elem_classes="ssm-row"):
            result = gr.Dropdown(names, value=names[0], label="Result", elem_id="result")
            part = gr.Dropdown([], label="Part of it", elem_id="result-part")
        note, plot = text("result-note"), chart("result-plot")
        rows, command = text("result-table"), text("result-command")

    def contents(name: Any, part_name: Any = None) -> Sequence[Any]:
        found = comparing.read(name)
        table = next((t for t in found.tables if t.title == part_name), found.tables[0])
        title = table.title.replace("_", " ")
        return [
            gr.update(choices=[t.title for t in found.tables], value=table.title),
            markup.notice(table.note),
            charts.ratios(comparing.intervals(table), title)
            or charts.differences(comparing.differences(table), title),
            markup.table(table.rows, title),
            markup.command(found.command, "Makes these figures again")
            + markup.details("what the words mean", found.definitions.items())
            + markup.details("machine and versions", found.about.items()),
        ]

    outputs = [part, note, plot, rows, command]
    result.input(shown(contents), result, outputs, **PRIVATE)
    part.input(shown(contents), [result, part], outputs, **PRIVATE)
    page.restores(outputs, lambda visitor: contents(names[0]))
