"""HTML of the page's texts and tables, from the templates in ``static``: every value is escaped.

Place in the flow: stage 10, from the handlers' views to the browser; charts and animations are
drawn there (`charts`). The trap: what a template gives is `Markup`, and plain text that is added
to it is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

STATIC = Path(__file__).parent / "static"
LONG_TEXT = 40  # characters, above which a cell may wrap


def with_code(text: str) -> Markup:
    """What stands in backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def number(value: float) -> str:
    """Four digits of a number."""
    return f"{value:.4g}"


def cell(value: object) -> str:
    """A value as a table has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def kind(value: object) -> str:
    """The class of a cell: numbers to the right, short texts on one line."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "num"
    return "long" if len(str(value)) > LONG_TEXT else "short"


def first_value(rows: Sequence[dict[str, Any]], column: str) -> object:
    """The first value of a column that is one."""
    return next((row[column] for row in rows if row[column] is not None), "")


_templates = Environment(loader=FileSystemLoader(STATIC), autoescape=True)
_templates.filters |= {
    "code": with_code, "number": number, "cell": cell, "kind": kind, "first_value": first_value,
}  # fmt: skip
_parts: Any = _templates.get_template("parts.html").module
Part = Callable[..., Markup]
facts: Part = _parts.facts
notice: Part = _parts.notice
command: Part = _parts.command
progress: Part = _parts.progress
details: Part = _parts.details
table: Part = _parts.table


def render(name: str, **values: Any) -> str:
    """A template with its values."""
    return _templates.get_template(f"{name}.html").render(values)
