"""The comparison as Markdown.

Place in the flow: after `comparison`, beside `plot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.adaptation.arms import BUDGETS, GOAL
from benchmarks.adaptation.comparison import MARGIN

Row = Mapping[str, Any]


def as_markdown(result: Mapping[str, Any]) -> str:
    """All tables, under the command that made them."""
    lines = [
        "# Which adaptation helps, when, and by how much",
        "",
        f"`{result['command']}`: {result['num_tasks']} unseen tasks a split (seed "
        f"{result['seed']}), {result['seeds']} training seeds of every model, version "
        f"{result['version']}.",
        "",
        "IQM of the returns of all seeds and tasks, with the 95 % interval of a bootstrap "
        "stratified by task (over tasks, where there are no seeds); in square brackets the range "
        "of the seeds' means.",
    ]
    for row in result["rows"]:
        lines += ["", f"## {row['name']}", "", *_scores(row["measurements"])]
    lines += ["", "## Differences", "", "Means over all pairs of seed and task; their 95 % "
              "intervals are over both, those of the probability of improvement over seeds.", "",
              *_differences(result["differences"])]  # fmt: skip
    for key, name in (("hybrid_not_worse", "Hybrid"), ("uniform_replay", "Uniform replay")):
        lines += ["", f"## {name} against standard", "",
                  f"Not worse: loses less than {MARGIN:g}. Holm-corrected over the table, "
                  "intervals corrected as well.", "", *_verdicts(result[key])]  # fmt: skip
    lines += ["", f"## Environment steps to {GOAL:g}", "",
              f"Median: {result['definitions']['median_env_steps']}.", "",
              *_steps(result["env_steps_to_goal"])]  # fmt: skip
    if result["failed"] or result["not_scored"]:
        lines += ["", "## Failed", ""]
        lines += [f"- {each['what']}: {each['why']}" for each in result["failed"]]
        lines += [f"- not scored: {name}" for name in result["not_scored"]]
    return "\n".join(lines) + "\n"


def _scores(measurements: Sequence[Row]) -> list[str]:
    cells = {(m["arm"], m["after"]): m for m in measurements}
    arms = dict.fromkeys(m["arm"] for m in measurements)
    lines = [f"| arm | {' | '.join(BUDGETS)} |", "|---" + "|--:" * len(BUDGETS) + "|"]
    for arm in arms:
        found = (cells.get((arm, after)) for after in BUDGETS)
        lines.append(f"| {arm} | {' | '.join('' if m is None else _score(m) for m in found)} |")
    return lines


def _score(m: Row) -> str:
    iqm = m["iqm"]
    text = f"{iqm['mean']:.0f} ({iqm['ci95_low']:.0f} to {iqm['ci95_high']:.0f})"
    if m["seeds"] > 1:
        text += f" [{m['lowest_seed']:.0f} to {m['highest_seed']:.0f}]"
    return text


def interval(difference: Row) -> str:
    """A difference with its interval."""
    return "{mean:+.1f} ({ci95_low:+.1f} to {ci95_high:+.1f})".format(**difference)


def _differences(rows: Sequence[Row]) -> list[str]:
    lines = ["| family | split | pair | after | difference | probability of improvement |",
             "|---|---|---|---|--:|--:|"]  # fmt: skip
    for row in rows:
        better = "{mean:.2f} ({ci95_low:.2f} to {ci95_high:.2f})".format(**row["improvement"])
        lines.append(
            f"| {row['family']} | {row['split']} | {row['pair']} | {row['after']} | "
            f"{interval(row['difference'])} | {better} |"
        )
    return lines


def _verdicts(rows: Sequence[Row]) -> list[str]:
    lines = ["| family | split | model | after | pairs | difference | p not worse | p better | |",
             "|---|---|---|---|--:|--:|--:|--:|---|"]  # fmt: skip
    for row in rows:
        lines.append(
            f"| {row['family']} | {row['split']} | {row['model']} | {row['after']} | "
            f"{row['pairs']:,} | {interval(row['difference'])} | {row['p_not_worse']:.1g} | "
            f"{row['p_better']:.1g} | {row['verdict']} |"
        )
    return lines


def _steps(rows: Sequence[Row]) -> list[str]:
    lines = ["| family | split | arm | median | share of runs that get there | runs |",
             "|---|---|---|--:|--:|--:|"]  # fmt: skip
    for row in rows:
        median = row["median_env_steps"]
        lines.append(
            f"| {row['family']} | {row['split']} | {row['arm']} | "
            f"{'' if median is None else f'{median:,.0f}'} | {row['reached']:.1%} | "
            f"{row['runs']:,} |"
        )
    return lines
