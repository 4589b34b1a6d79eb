"""What the commands print: progress, tables, JSON.

Place in the flow: used by every command. Progress goes to stderr (a bar on a terminal, plain
lines otherwise), results to stdout: with ``--json`` stdout is one JSON object and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

LINES = 20  # plain progress lines over a whole run


class Reporter:
    """Progress from 0 to 1 with a message: a bar, or a line every 5 %."""

    def __init__(self, title: str) -> None:
        self._console = Console(stderr=True)
        self._title, self._printed = title, -1
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[message]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=1.0, message="")

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: float, message: str) -> None:
        """Show how far it is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, message=message)
        elif (line := int(progress * LINES)) > self._printed:
            self._printed = line
            note(f"{self._title} {progress:4.0%}  {message}")


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """The result on stdout, for machines."""
    print(json.dumps(value, indent=2))


def print_evaluation(result: Mapping[str, Any]) -> None:
    """An evaluation's arms and paired differences as tables on stdout."""
    console = Console()
    split = {"id": "in distribution", "ood": "out of distribution"}[result["split"]]
    table = Table(
        title=f"{result['family']}, {split}: {result['num_tasks']} unseen tasks, "
        f"seed {result['seed']}, {result['support_steps']} support steps"
    )
    for column in ("arm", "IQM", "95 % interval", "mean", "worst tenth", "env steps"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, s in result["arms"].items():
        interval = f"{s['ci95'][0]:.1f} to {s['ci95'][1]:.1f}"
        row = (f"{s['iqm']:.1f}", interval, f"{s['mean']:.1f}", f"{s['worst10']:.1f}")
        table.add_row(arm, *row, str(s["env_steps"]))
    console.print(table)
    for pair, s in result["paired"].items():
        low, high = s["ci95"]
        name = pair.replace("-", " - ")
        console.print(f"{name}: {s['mean']:+.1f} (95 % interval {low:+.1f} to {high:+.1f})")
