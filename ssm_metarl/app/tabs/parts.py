"""What the tabs share: the page they are on, and how refusals reach the visitor.

Place in the flow: stage 10, under the tabs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gradio as gr

from ssm_metarl.app.handlers.daemon import Refused
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Busy, Visitor

F = TypeVar("F", bound=Callable[..., Any])
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 2}
"""For events that compute: two at once, whatever they are."""
PRIVATE: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
"""Handlers check what comes themselves, as it comes."""
QUIET: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
SHOWN_ERRORS = (ValueError, Busy, Refused, OSError)


@dataclass
class Part:
    """What one tab restores."""

    components: Sequence[Any]
    values: Callable[[Visitor], Sequence[Any]]
    """A value, or a `gr.update`, for each of them."""


@dataclass
class Page:
    """The page that is being built."""

    server: Server
    token: gr.BrowserState
    tabs: gr.Tabs
    parts: list[Part] = field(default_factory=list)
    model_chosen: list[Any] = field(default_factory=list)
    """Events after which everything is restored, for another model is in use."""

    def restores(
        self, components: Sequence[Any], values: Callable[[Visitor], Sequence[Any]]
    ) -> None:
        """Have these components set whenever the page is loaded or the model changes."""
        self.parts.append(Part(components, values))

    def visitor(self, token: object) -> Visitor:
        """Whose page it is."""
        return self.server.visitors.get(token)

    def then(self, do: Callable[..., object], show: Callable[[Visitor], Any]) -> Any:
        """A handler: do something for the visitor whose page it is, then show how things stand."""

        @shown
        def run(token: Any, *values: Any) -> Any:
            visitor = self.visitor(token)
            do(visitor, *values)
            return show(visitor)

        return run


def shown(handler: F) -> F:
    """Show a handler's refusal to the visitor, without a traceback in the log."""

    @functools.wraps(handler)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except SHOWN_ERRORS as error:
            raise gr.Error(str(error), print_exception=False, duration=8) from None

    return run  # type: ignore[return-value]


def chart(elem_id: str) -> gr.HTML:
    """An empty chart, to be filled with one of `charts`."""
    return gr.HTML(
        {}, html_template='<div class="ssm-chart-box"></div>', apply_default_css=False,
        js_on_load="ssm.chart(element, props, watch);", elem_id=elem_id,
    )  # fmt: skip


def text(elem_id: str | None = None, value: str = "", classes: str | None = None) -> gr.HTML:
    """HTML that a handler's view fills."""
    return gr.HTML(value, apply_default_css=False, elem_id=elem_id, elem_classes=classes)


def beside_fields(names: Sequence[str], problems: dict[str, str], leading: int) -> list[Any]:
    """What a validator returns: a message beside each field that has a problem.

    Args:
        names: The event's inputs, in order, after the first ``leading`` ones.
        problems: Messages by field.
        leading: Inputs that are no fields, such as the token.
    """
    sound = [gr.validate(True, "")] * leading
    return sound + [gr.validate(name not in problems, problems.get(name, "")) for name in names]
