"""Put the comparison's figures into the docs: `make adaptation` calls it.

Reads ssm_metarl/app/results/adaptation.json; writes the tables between the marks of
docs/adaptation.md and README.md.
"""

import json
from pathlib import Path
from typing import Any

from update_readme import replace_between

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "ssm_metarl/app/results/adaptation.json"
AFTER = ("nothing", "20 steps", "1 episode", "3 episodes", "10 episodes")
SPLITS = {"id": "in distribution", "ood": "out of distribution"}
IN_README = ("frozen (prediction)", "multi_task", "standard (prediction)", "in_context",
             "both (both_prediction)", "least_squares", "lqr")  # fmt: skip


def main() -> None:
    """Rewrite both.

    Raises:
        ValueError: The comparison is not whole.
    """
    result = json.loads(RESULT.read_text())
    if result["size"] != "whole" or result["failed"] or result["not_scored"]:
        raise ValueError(
            f"expected a whole comparison without failures, received size {result['size']}, "
            f"{len(result['failed'])} failed and {len(result['not_scored'])} not scored"
        )
    page, readme = ROOT / "docs/adaptation.md", ROOT / "README.md"
    text = replace_between(page.read_text(), "comparison", returns_tables(result))
    text = replace_between(text, "differences", differences_table(result))
    page.write_text(replace_between(text, "steps to the goal", steps_table(result)))
    readme.write_text(replace_between(readme.read_text(), "comparison", readme_table(result)))


def returns_tables(result: dict[str, Any]) -> str:
    """Mean returns of every arm after each amount of data: a table for each family and split."""
    lines = []
    for row in result["rows"]:
        lines += ["", f"**{row['name']}**", "", f"| mean return after | {' | '.join(AFTER)} |",
                  "|---" + "|--:" * len(AFTER) + "|"]  # fmt: skip
        lines += [f"| {arm} | {' | '.join(cells)} |" for arm, cells in _means(row).items()]
    return "\n".join(lines[1:])


def readme_table(result: dict[str, Any]) -> str:
    """The arms that matter most, all families and splits side by side, after ten episodes."""
    names = [row["name"] for row in result["rows"]]
    lines = [f"| mean return | {' | '.join(names)} |", "|---" + "|--:" * len(names) + "|"]
    tables = [_means(row) for row in result["rows"]]
    for arm in IN_README:
        cells = [[c for c in table.get(arm, ()) if c] or [""] for table in tables]
        lines.append(f"| {arm} | {' | '.join(c[-1] for c in cells)} |")
    return "\n".join(lines)


def differences_table(result: dict[str, Any]) -> str:
    """Differences of pairs of arms, with their intervals: a column for each amount of data."""
    lines = [f"| difference after | family | {' | '.join(AFTER)} |",
             "|---|---" + "|--:" * len(AFTER) + "|"]  # fmt: skip
    cells: dict[tuple[str, str], list[str]] = {}
    for row in result["differences"]:
        d = row["difference"]
        where = row["pair"], f"{row['family']}, {SPLITS[row['split']]}"
        line = cells.setdefault(where, [""] * len(AFTER))
        line[AFTER.index(row["after"])] = (
            f"{d['mean']:+.1f} ({d['ci95_low']:+.1f} to {d['ci95_high']:+.1f})"
        )
    lines += [f"| {pair} | {where} | {' | '.join(line)} |" for (pair, where), line in cells.items()]
    return "\n".join(lines)


def steps_table(result: dict[str, Any]) -> str:
    """Environment steps of a task's data until its return is 475."""
    lines = ["| arm | family | median | share that gets there | runs |", "|---|---|--:|--:|--:|"]
    for row in result["env_steps_to_goal"]:
        median = row["median_env_steps"]
        lines.append(
            f"| {row['arm']} | {row['family']}, {SPLITS[row['split']]} | "
            f"{'' if median is None else f'{median:,.0f}'} | {row['reached']:.1%} | "
            f"{row['runs']:,} |"
        )
    return "\n".join(lines)


def _means(row: dict[str, Any]) -> dict[str, list[str]]:
    """By arm, its mean after each amount of data; empty where it was not scored."""
    cells: dict[str, list[str]] = {}
    for m in row["measurements"]:
        line = cells.setdefault(m["arm"], [""] * len(AFTER))
        line[AFTER.index(m["after"])] = f"{m['mean']:.1f}"
    return cells


if __name__ == "__main__":
    main()
