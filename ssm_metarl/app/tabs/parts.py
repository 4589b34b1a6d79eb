"""What the tabs share: the page they are on, how refusals reach the visitor, and their parts.

Place in the flow: stage 10, under the tabs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gradio as gr

from ssm_metarl.app import charts, forms, lineage_markup
from ssm_metarl.app.handlers import training
from ssm_metarl.app.handlers.daemon import Refused
from ssm_metarl.app.handlers.lineages import LineageView
from ssm_metarl.app.jobs import Busy, JobQueue
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Visitor

F = TypeVar("F", bound=Callable[..., Any])
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 2}
"""For events that compute: two at once, whatever they are."""
PRIVATE: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
"""Handlers check what comes themselves, as it comes."""
QUIET: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
SHOWN_ERRORS = (ValueError, Busy, Refused, OSError)


@dataclass
class Page:
    """The page that is being built."""

    server: Server
    token: gr.BrowserState
    tabs: gr.Tabs
    components: list[Any] = field(default_factory=list)
    """What loading the page sets, and choosing another model."""
    values: list[Callable[[Visitor], Sequence[Any]]] = field(default_factory=list)
    """What sets them, a value or a `gr.update` each."""
    model_chosen: list[Any] = field(default_factory=list)
    """Events after which another model is in use."""

    def restores(
        self, components: Sequence[Any], values: Callable[[Visitor], Sequence[Any]]
    ) -> None:
        """Have these components set whenever the page is loaded or the model changes."""
        self.components += components
        self.values.append(values)

    def visitor(self, token: object) -> Visitor:
        """Whose page it is."""
        return self.server.visitors.get(token)

    def then(
        self,
        do: Callable[..., object],
        show: Callable[[Visitor], Any] = lambda visitor: None,
    ) -> Any:
        """A handler: do something for the visitor whose page it is, then show how things stand."""

        @shown
        def run(token: Any, *values: Any) -> Any:
            visitor = self.visitor(token)
            do(visitor, *values)
            return show(visitor)

        return run

    def validator(
        self, names: Iterable[str], problems: Callable[..., Mapping[str, str]]
    ) -> Callable[..., list[Any]]:
        """What puts a message beside each field that has a problem.

        Args:
            names: The event's inputs after the token, in order.
            problems: By name, of the visitor and the inputs' values.
        """

        def check(token: Any, *values: Any) -> list[Any]:
            found = problems(self.visitor(token), *values)
            beside = [gr.validate(name not in found, found.get(name, "")) for name in names]
            return [gr.validate(True, ""), *beside]

        return check

    def runs(
        self,
        form: forms.Form,
        fields: Sequence[Any],
        buttons: tuple[gr.Button, gr.Button, gr.Timer],
        outputs: Sequence[Any],
        start: Callable[[Visitor, JobQueue, dict[str, Any]], object],
        updates: Callable[[Visitor], Sequence[Any]],
        *kinds: str,
    ) -> None:
        """Wire what starts a command from a form, stops it, and watches it.

        Args:
            form: In the order of its components, ``fields``.
            fields: What is entered.
            buttons: What begins it, what stops it, and what looks again while it runs.
            outputs: What ``updates`` sets.
            start: Puts a job into the queue.
            updates: How it stands.
            kinds: Of the jobs that are stopped.
        """
        begin, stop, timer = buttons

        def entered(values: Sequence[Any]) -> dict[str, Any]:
            return dict(zip(form, values, strict=True))

        def on_begin(visitor: Visitor, *values: Any) -> None:
            start(visitor, self.server.jobs, entered(values))

        def on_stop(visitor: Visitor) -> None:
            training.cancel(visitor, self.server.jobs, *kinds)

        def problems(visitor: Visitor, *values: Any) -> dict[str, str]:
            return forms.problems(form, entered(values))

        begin.click(
            self.then(on_begin, updates), [self.token, *fields], outputs,
            validator=self.validator(form, problems), **PRIVATE,
        )  # fmt: skip
        stop.click(self.then(on_stop, updates), self.token, outputs, **PRIVATE)
        timer.tick(self.then(lambda visitor: None, updates), self.token, outputs, **QUIET)
        self.restores(outputs, updates)


def shown(handler: F) -> F:
    """Show a handler's refusal to the visitor, without a traceback in the log."""

    @functools.wraps(handler)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except SHOWN_ERRORS as error:
            raise gr.Error(str(error), print_exception=False, duration=8) from None

    return run  # type: ignore[return-value]


def drawn(elem_id: str, template: str, script: str) -> gr.HTML:
    """A piece of the page that a script of ``static`` draws from its value."""
    return gr.HTML(
        {}, html_template=template, apply_default_css=False, js_on_load=script, elem_id=elem_id
    )


def chart(elem_id: str) -> gr.HTML:
    """An empty chart, to be filled with one of `charts`."""
    return drawn(elem_id, '<div class="ssm-chart-box"></div>', "ssm.chart(element, props, watch);")


def text(elem_id: str | None = None, value: str = "", classes: str | None = None) -> gr.HTML:
    """HTML that a handler's view fills."""
    return gr.HTML(value, apply_default_css=False, elem_id=elem_id, elem_classes=classes)


def lineage_values(view: LineageView | None) -> list[Any]:
    """Both charts and the tables of a lineage."""
    if view is None:
        return [charts.NOTHING, charts.NOTHING, ""]
    return [charts.wealth(view), charts.generations(view), lineage_markup.lineage(view)]
