"""HTML of the page's texts and tables: every value escaped, no logic.

Place in the flow: stage 10, from the handlers' views to the browser; charts and animations are
drawn there (`charts`, ``static``). `result_markup` and `lineage_markup` are made of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

LONG_TEXT = 40  # characters, above which a cell may wrap


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of what and value."""
    cells = "".join(f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>" for what, value in rows)
    return f'<dl class="ssm-facts">{cells}</dl>'


def notice(text: str, kind: str = "info") -> str:
    """A line of news, with what stands in backticks as code; empty for none."""
    if not text:
        return ""
    said = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
    return f'<p class="ssm-notice" data-kind="{kind}" role="status">{said}</p>'


def muted(text: str) -> str:
    """A line in small print."""
    return f'<p class="ssm-muted">{escape(text)}</p>'


def command(text: str, heading: str = "") -> str:
    """A shell command to copy; empty for none."""
    if not text:
        return ""
    return notice(heading) + f'<pre class="ssm-command"><code>{escape(text)}</code></pre>'


def progress(share: float, text: str) -> str:
    """A bar with a text under it."""
    percent = round(100 * share)
    return (
        f'<div class="ssm-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}"><span style="width: {percent}%"></span></div>{muted(text)}'
    )


def table(rows: Sequence[dict[str, Any]], caption: str = "") -> str:
    """Records as a table that scrolls sideways where it is wide."""
    if not rows:
        return ""

    def head(column: str) -> str:
        first = next((row[column] for row in rows if row[column] is not None), "")
        return f"<th scope='col'{_align(first)}>{escape(column.replace('_', ' '))}</th>"

    def line(row: dict[str, Any]) -> str:
        return "".join(f"<td{_align(v)}>{escape(cell(v))}</td>" for v in row.values())

    lines = "".join(f"<tr>{line(row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="ssm-table" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table>{title}<thead><tr>{''.join(map(head, rows[0]))}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def cell(value: object) -> str:
    """A value as a table has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _align(value: object) -> str:
    """The class of a cell: numbers to the right, short texts on one line."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return ' class="num"'
    return f' class="{"long" if len(str(value)) > LONG_TEXT else "short"}"'


def details(summary: str, rows: Iterable[tuple[str, str]]) -> str:
    """Facts that are shown on request."""
    shown = f"<summary>{escape(summary)}</summary>{facts(rows)}"
    return f'<details class="ssm-details">{shown}</details>'
