"""What the commands print: progress, tables, JSON.

Place in the flow: used by every command. Progress goes to stderr (a bar on a terminal, plain
lines otherwise), results to stdout: with ``--json`` stdout is one JSON object and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

LINES = 20  # plain progress lines over a whole run
TABLE_WIDTH = 76  # characters
DRIFT_TITLES = {"flip": "the actuator turns round", "parameters": "the physics move"}
SPLIT_TITLES = {"id": "in distribution", "ood": "out of distribution"}


class Reporter:
    """Progress from 0 to 1 with a message: a bar, or a line every 5 %."""

    def __init__(self, title: str) -> None:
        self._console = Console(stderr=True)
        self._title, self._printed = title, -1
        self._bar: Progress | None = None
        if self._console.is_terminal:
            share, message = "{task.percentage:>3.0f} %", "{task.fields[message]}"
            columns: list[ProgressColumn] = [
                TextColumn("{task.description}"),
                TextColumn(f"{share}  {message}"),
            ]
            if self._console.width >= TABLE_WIDTH:  # rich would cut the numbers, not the bar
                columns[1:1] = [BarColumn(bar_width=20), TimeRemainingColumn()]
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(title, total=1.0, message="")

    def __enter__(self) -> Reporter:
        announce_compilation()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: float, message: str) -> None:
        """Show how far it is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, message=message)
        elif (line := int(progress * LINES)) > self._printed:
            self._printed = line
            note(f"{self._title} {progress:4.0%}  {message}")


@cache
def announce_compilation() -> None:
    """Say so if kernels must be compiled: they are kept for the next time."""
    from ssm_metarl.compiled import on_compile

    on_compile(lambda: note("compiling for this processor, once: up to half a minute ..."))


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """The result on stdout, for machines.

    Raises:
        ValueError: It holds NaN or infinity, which JSON does not know.
    """
    print(json.dumps(value, indent=2, allow_nan=False))


def interval(ends: tuple[float, float] | list[float], sign: str = "") -> str:
    """The two ends of an interval; ``sign`` "+" for a difference."""
    low, high = ends
    return f"{low:{sign}.1f} to {high:{sign}.1f}"


def difference(of: Mapping[str, Any]) -> str:
    """A paired difference and its interval."""
    return f"{of['mean']:+.1f} (95 % interval {interval(of['ci95'], '+')})"


def print_evaluation(result: Mapping[str, Any]) -> None:
    """An evaluation's arms and paired differences on stdout."""
    print(f"{_scope(result)}, adapted from {result['support_steps']} environment steps")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "IQM", "95 % interval", "mean", "worst tenth", "env steps"):
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for arm, s in result["arms"].items():
        row = (f"{s['iqm']:.1f}", interval(s["ci95"]), f"{s['mean']:.1f}", f"{s['worst10']:.1f}")
        table.add_row(arm, *row, f"{s['env_steps']:,}")
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)  # rich would cut the numbers
    console.print(table)
    for pair, s in result["paired"].items():
        print(f"{pair.replace('-', ' - ')}: {difference(s)}")


def print_comparison(result: Mapping[str, Any]) -> None:
    """A paired test of two models on stdout."""
    first, second = result["models"]
    print(
        f"{_scope(result)}\n"
        f"{first}: mean {result['means'][0]:.1f}; {second}: mean {result['means'][1]:.1f}\n"
        f"{first} - {second}: {difference(result['difference'])}, spread "
        f"{result['difference']['spread']:.1f}\n"
        f"e-value against 'no better': {result['e_value']:.3g} (20 is evidence at 0.05); "
        f"the other way round: {result['e_value_reversed']:.3g}"
    )


def print_drift(result: Mapping[str, Any]) -> None:
    """Who controlled a plant that changed inside an episode, on stdout."""
    print(
        f"{_scope(result)}, {DRIFT_TITLES.get(result['drift'], result['drift'])} inside an "
        f"episode; no training has seen such a change"
    )
    arms = result["arms"].items()
    for arm, s in arms:
        held = ""
        if s["up_after"] is not None:
            low, high = s["ci95"]
            held = (
                f"up at the change {s['up_at_change']:.1%}, {result['look_after']} steps later "
                f"{s['up_after']:.1%} (95 % interval {low:.1%} to {high:.1%}), "
            )
        told = "" if s["of_told"] is None else f", {s['of_told']:.0%} of the way to the told expert"
        print(
            f"{arm}: {held}reward a step before the change {s['reward_before']:.2f}, after it "
            f"{s['reward_after']:.2f}{told}, mean return {s['mean_return']:.0f}"
        )
    for arm, s in arms:
        if s.get("notice_steps") is not None:
            print(
                f"{arm}: noticed on {s['noticed']:.1%} of tasks, after {s['notice_steps']:.0f} "
                f"steps; {s['false_alarms']:.2f} false alarms per 1,000 steps"
            )
        if s.get("adaptations"):
            print(f"{arm}: {s['adaptations']:.0f} adaptations of a task up to the end")
    control = result["control_period_ms"]
    period = "" if control is None else f" (control period {control:.0f} ms)"
    for kind, ms in result["control_step_ms"].items():
        print(
            f"a control step, {kind}: {ms['median']:.1f} ms, 99 % within {ms['p99']:.1f} ms{period}"
        )


def print_safety(safety: Mapping[str, Any]) -> None:
    """What the safeguard and the change detector did, on stdout."""
    for row in safety["more_steps"]:
        free = row["without_rollback"]
        print(
            f"{row['num_adapt_steps']} step(s): mean {row['mean']:.1f}, worst tenth "
            f"{row['worst10']:.1f}; kept {row['steps_kept']:.1f}, rolled back on "
            f"{row['rolled_back']:.1%} of tasks; without rollback {free['mean']:.1f}, "
            f"{free['worst10']:.1f}"
        )
    lied = safety["shuffled_actions"]
    print(
        f"return falls after a kept step: {safety['falls_after_a_kept_step']:.1%} of tasks\n"
        f"shuffled actions: rolled back on {lied['rolled_back']:.1%} of tasks, harmless on "
        f"{lied['harmless']:.1%}"
    )
    if detector := safety.get("change_detector"):
        found = [
            f", {name.removesuffix('_found')} found {share:.1%}"
            for name, share in detector.items()
            if name != "false_alarms"
        ]
        print(f"change detector: false alarms {detector['false_alarms']:.1%}{''.join(found)}")


def print_worth(result: Mapping[str, Any]) -> None:
    """What adapting is worth on stdout; the verdict is the last line."""
    worth, arms = result["worth"], result["arms"]
    fixed, told = f"best fixed policy found: {arms['fixed']['mean']:.1f}", worth["told"]
    if told is None:
        print(f"{fixed}; told everything: nobody, for this family")
    else:
        gap = difference(worth["gap"])
        print(f"{fixed}; told everything ({told}): {arms[told]['mean']:.1f}; gap {gap}")
    for arm, s in worth["arms"].items():
        gain, closed = s["over_fixed"], ""
        if (share := s["share"]) is not None:
            low, high = share["ci95"]
            closed = f", {share['mean']:.0%} of the gap ({low:.0%} to {high:.0%})"
        print(f"{arm}: {gain['mean']:+.1f} ({interval(gain['ci95'], '+')}) over it{closed}")
    print(worth["verdict"])


def _scope(result: Mapping[str, Any]) -> str:
    """Which tasks were measured."""
    return (
        f"{result['family']}, {SPLIT_TITLES[result['split']]}: {result['num_tasks']} unseen tasks "
        f"(seed {result['seed']})"
    )
