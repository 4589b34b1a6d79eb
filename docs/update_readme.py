"""Put the figures of finished runs into docs/figures.md: `make figures` calls it.

Reads runs/demo/report (written by `make demo`) and runs/seed-N/id.json and ood.json for the
training seeds given as arguments, copies pictures and results into docs/, and rewrites the page
between its marks.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from statistics import fmean, stdev

from ssm_metarl.evaluation.report import arms_table, paired_table
from ssm_metarl.reproducibility import processor

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "runs/demo/report"
PICTURES = ("before_after.gif", "adaptation.png", "training_curve.png")


def main() -> None:
    """Copy and rewrite."""
    for folder in ("images", "results"):
        (ROOT / "docs" / folder).mkdir(exist_ok=True)
    for name in PICTURES:
        shutil.copy(REPORT / name, ROOT / "docs/images" / name)
    results = json.loads((REPORT / "results.json").read_text())
    (ROOT / "docs/results/demo.json").write_text(json.dumps(results, indent=1) + "\n")
    tables = [
        f"**{title.capitalize()}**\n\n{results_table(evaluation)}"
        for title, evaluation in results["evaluations"].items()
    ]
    tables.append(made_on(results["processor"]))
    seeds = [seed_row(ROOT / f"runs/seed-{seed}") for seed in sys.argv[1:]]
    (ROOT / "docs/results/seeds.json").write_text(json.dumps(seeds, indent=1) + "\n")
    page = ROOT / "docs/figures.md"
    text = replace_between(page.read_text(), "results: make demo", "\n\n".join(tables))
    page.write_text(replace_between(text, "seeds", seeds_table(seeds)))


def results_table(evaluation: dict) -> str:
    """An evaluation as Markdown: a table of its arms, and one of the paired differences."""
    tables = [arms_table(evaluation), paired_table(evaluation)]
    return "\n\n".join(markdown_table(table) for table in tables if len(table) > 1)


def markdown_table(table: list[list[str]]) -> str:
    """A Markdown table with aligned columns: the titles first, a column of text, then numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def line(cells: list[str]) -> str:
        first, *numbers = cells
        padded = [first.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(line, [table[0], rule, *table[1:]]))


def seed_row(run: Path) -> dict:
    """One training's evaluations on both splits, with its seed and its environment steps."""
    last = json.loads((run / "training_log.jsonl").read_text().splitlines()[-1])
    row = {
        "training_seed": int(run.name.split("-")[1]),
        "env_steps": last["env_steps"],
        "processor": processor(),
    }
    for split in ("id", "ood"):
        evaluation = json.loads((run / f"{split}.json").read_text())
        keys = ("num_tasks", "seed", "support_steps", "arms", "by_sign")
        row[split] = {key: evaluation[key] for key in keys}
    return row


def seeds_table(rows: list[dict]) -> str:
    """The policy before its step and after it (`standard`), of every training seed.

    As Markdown; the last row is over the seeds.
    """
    lines = [
        "| seed | env steps | before: mean | after: mean | worst tenth, sign +1 | sign -1 "
        "| OOD mean | worst tenth |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        arm, ood = row["id"]["arms"]["standard"], row["ood"]["arms"]["standard"]
        signs = [row["id"]["by_sign"][sign]["standard"]["worst10"] for sign in ("+1", "-1")]
        lines.append(
            f"| {row['training_seed']} | {row['env_steps']:,} | "
            f"{row['id']['arms']['frozen']['mean']:.1f} | {arm['mean']:.1f} | "
            f"{signs[0]:.1f} | {signs[1]:.1f} | {ood['mean']:.1f} | {ood['worst10']:.1f} |"
        )
    before, after, ood = (
        [row[split]["arms"][arm]["mean"] for row in rows]
        for split, arm in (("id", "frozen"), ("id", "standard"), ("ood", "standard"))
    )
    lines.append(
        f"| all | | {min(before):.1f} to {max(before):.1f} | {min(after):.1f} to {max(after):.1f} "
        f"| | | {fmean(ood):.1f} ± {stdev(ood):.1f} ({min(ood):.1f} to {max(ood):.1f}) | |"
    )
    processors = sorted({row["processor"] for row in rows})
    return "\n".join([*lines, "", made_on(", ".join(processors))])


def made_on(processor: str) -> str:
    """A line that names the processor of figures."""
    return f"Processor: {processor}."


def replace_between(text: str, name: str, content: str) -> str:
    """The text with other content between the marks of ``name``."""
    pattern = rf"<!-- {name} -->.*?<!-- end of {name} -->"
    new = f"<!-- {name} -->\n{content}\n<!-- end of {name} -->"
    return re.sub(pattern, lambda _: new, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
