"""Tab 4: the committed benchmark results, as plots and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ssm_metarl.app import charts, markup
from ssm_metarl.app.handlers import comparing
from ssm_metarl.app.tabs.parts import PRIVATE, Page, chart, shown, text
from ssm_metarl.app.visitors import Visitor

NOTHING = "No benchmark results come with this version."


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("4. Compare", id="compare"):
        names = comparing.names()
        if not names:
            text(value=markup.notice(NOTHING))
            return
        first = comparing.read(names[0])
        with gr.Row(elem_classes="ssm-row"):
            result = gr.Dropdown(names, value=names[0], label="Result", elem_id="result")
            part = gr.Dropdown(
                [t.title for t in first.tables], value=first.tables[0].title, label="Part of it",
                elem_id="result-part",
            )  # fmt: skip
        note = text("result-note")
        plot = chart("result-plot")
        rows = text("result-table")
        command = text("result-command")

        def contents(name: Any, part_name: Any) -> Sequence[Any]:
            found = comparing.read(name)
            table = next((t for t in found.tables if t.title == part_name), found.tables[0])
            heading = "Makes these figures again" if found.command else ""
            title = table.title.replace("_", " ")
            return [
                gr.update(choices=[t.title for t in found.tables], value=table.title),
                markup.notice(table.note),
                charts.ratios(comparing.intervals(table), title)
                or charts.differences(comparing.differences(table), title),
                markup.table(table.rows, title),
                markup.notice(heading) + markup.command(found.command)
                + markup.details("what the words mean", markup.facts(found.definitions.items()))
                + markup.details("machine and versions", markup.facts(found.about.items())),
            ]  # fmt: skip

        outputs = [part, note, plot, rows, command]
        result.input(shown(lambda n: contents(n, None)), result, outputs, **PRIVATE)
        part.input(shown(contents), [result, part], outputs, **PRIVATE)

    def values(visitor: Visitor) -> Sequence[Any]:
        return contents(names[0], None)

    page.restores(outputs, values)
