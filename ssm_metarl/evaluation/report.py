"""A report that a reader can open, and that says how to make it again.

Place in the flow: stage 7, the last. Input is plain data (the JSON objects of evaluations, a
training log, two recorded episodes), so it needs no policy. `write_report` makes a folder with
`report.html`, `results.json`, `adaptation.png` and, where there is something to draw them from,
`training_curve.png` and `before_after.gif`.

The trap: every text that comes from outside (a model's path, a command) is escaped before it
becomes HTML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ssm_metarl.evaluation.animation import Film, animate
from ssm_metarl.evaluation.plots import arm_label, plot_arms, plot_training_curve, present_arms
from ssm_metarl.reproducibility import processor

Evaluation = Mapping[str, Any]
"""The JSON object that ``ssm-metarl evaluate --json`` prints."""
Table = list[list[str]]
"""Rows of cells, the titles first; the first column is text, the others are numbers."""

DEFINITIONS: Mapping[str, str] = {
    "Task": "one plant with its own parameters, which no training drew. Out of distribution: every "
    "parameter with a range lies outside the training range at once.",
    "Score of a task": "mean undiscounted return of its full-length episodes, greedy actions.",
    "IQM": "interquartile mean: the mean of the middle half of the tasks' scores.",
    "95 % interval": "percentile bootstrap over tasks of the IQM, or of the mean difference: how "
    "the number would change with another draw of tasks. It does not cover training noise.",
    "Worst tenth": "mean of the lowest tenth of the tasks' scores.",
    "Support steps": "environment steps collected in a task before adapting, at most.",
}


def arms_table(evaluation: Evaluation) -> Table:
    """Every arm's statistics, in display order."""
    table = [["arm", "IQM", "95 % interval", "mean", "worst tenth", "support steps"]]
    for arm in present_arms([evaluation]):
        scores = evaluation["arms"][arm]
        low, high = scores["ci95"]
        steps = f"{scores['env_steps']:,.0f}" if scores.get("env_steps") else "–"  # noqa: RUF001
        numbers = [f"{scores[name]:.1f}" for name in ("iqm", "mean", "worst10")]
        numbers.insert(1, f"{low:.1f} to {high:.1f}")
        table.append([arm_label(arm), *numbers, steps])
    return table


def paired_table(evaluation: Evaluation) -> Table:
    """Mean per-task differences between arms; titles alone where there are none."""
    table = [["difference on the same tasks", "mean", "95 % interval"]]
    for pair, difference in evaluation.get("paired", {}).items():
        labels = map(arm_label, pair.split("-", 1))
        low, high = difference["ci95"]
        numbers = [f"{difference['mean']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        table.append([" − ".join(labels), *numbers])  # noqa: RUF001
    return table


def write_report(
    out: Path,
    *,
    evaluations: Mapping[str, Evaluation],
    training_log: Path | None,
    film: Film | None = None,
    command: str,
) -> Path:
    """Write the report's files into a folder.

    Args:
        out: The folder; made if missing, files in it replaced.
        evaluations: Title, such as "in distribution" -> JSON object of an evaluation.
        training_log: JSON lines of the training (see `plots.plot_training_curve`); None where a
            model came without one.
        film: One episode before adapting and one after it; None where a family cannot be drawn.
        command: The shell command that makes this report again.

    Returns:
        Path of ``report.html``.
    """
    out.mkdir(parents=True, exist_ok=True)
    captions = {}
    if film is not None:
        captions[animate(film, out / "before_after.gif").name] = film.caption
    known = {tuple(e.get("return_bounds") or ()) for e in evaluations.values()}
    bounds = known.pop() if len(known) == 1 else ()
    ends = (bounds[0], bounds[1]) if bounds else None
    plot_arms(evaluations, out / "adaptation.png", bounds=ends)
    captions["adaptation.png"] = "Every arm on the same unseen tasks."
    if training_log is not None:
        plot_training_curve(training_log, out / "training_curve.png", bounds=ends)
        captions["training_curve.png"] = "Returns over meta-training, before and after adapting."
    results = {"command": command, "processor": processor(), "evaluations": evaluations}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = out / "report.html"
    page.write_text(_html(evaluations, captions, command), encoding="utf-8")
    return page


def _definitions(evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """What the report's words mean: its own, and those of the arms that it shows."""
    own = {
        arm_label(arm): text
        for e in evaluations.values()
        for arm, text in e.get("definitions", {}).items()
        if arm in e["arms"]
    }
    return {**DEFINITIONS, **own}


def _origin(evaluations: Mapping[str, Evaluation]) -> str:
    """Model, family, version, and what was drawn, in one line."""
    first = next(iter(evaluations.values()))
    known = [f"{name} {first[name]}" for name in ("model", "family", "version") if name in first]
    drawn = [
        f"{title}: {e['num_tasks']} tasks, seed {e['seed']}"
        for title, e in evaluations.items()
        if "num_tasks" in e and "seed" in e
    ]
    return " · ".join(known + drawn)


def _html(evaluations: Mapping[str, Evaluation], captions: Mapping[str, str], command: str) -> str:
    figures = "".join(
        f'<figure><img src="{escape(name)}" alt="{escape(caption)}">\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
        for name, caption in captions.items()
    )
    splits = "".join(
        f"<h2>{escape(title)}</h2>\n{_html_table(arms_table(e))}\n{_html_table(paired_table(e))}"
        for title, e in evaluations.items()
    )
    terms = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n"
        for name, text in _definitions(evaluations).items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Before and after adapting</title>
<style>
{STYLE}</style>
</head>
<body>
<h1>Before and after adapting</h1>
<p class="muted">{escape(_origin(evaluations))}</p>
{figures}{splits}
<h2>Definitions</h2>
<dl>
{terms}</dl>
<h2>Make it again</h2>
<pre><code>{escape(command)}</code></pre>
</body>
</html>
"""


def _html_table(table: Table) -> str:
    """An HTML table, which scrolls by itself where the screen is narrow; "" without rows."""
    titles, *rows = table
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in titles)
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{_cells(numbers)}</tr>\n'
        for label, *numbers in rows
    )
    shown = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    return f'<div class="scroll">{shown}</div>' if rows else ""


def _cells(numbers: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in numbers)


STYLE = """\
:root { color-scheme: light dark; --ink: #1f2933; --muted: #52606d; --page: #ffffff;
  --card: #f1f3f5; --rule: #d9dee3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --muted: #9aa5b1; --page: #14181d; --card: #20262d; --rule: #38414a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h2::first-letter { text-transform: uppercase; }
.muted, figcaption { color: var(--muted); font-size: .9rem; }
figure { margin: 1.6rem 0; }
figcaption { margin-top: .4rem; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 8px; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); font-weight: normal; }
th:first-child { text-align: left; }
thead th { color: var(--muted); font-size: .85rem; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; color: var(--muted); }
pre { background: var(--card); padding: .9rem 1rem; border-radius: 8px; overflow-x: auto; }
"""
