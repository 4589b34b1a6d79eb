"""Put the figures of finished runs into the README: `make figures` calls it.

Reads runs/demo/report (written by `make demo`) and runs/seed-N/id.json and ood.json for the
training seeds given as arguments, copies pictures and results into docs/, and rewrites the README
between its marks.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from statistics import fmean, stdev

from ssm_metarl.evaluation.report import results_table

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
    seeds = [seed_row(ROOT / f"runs/seed-{seed}") for seed in sys.argv[1:]]
    (ROOT / "docs/results/seeds.json").write_text(json.dumps(seeds, indent=1) + "\n")
    readme = ROOT / "README.md"
    text = replace_between(readme.read_text(), "results: make demo", "\n\n".join(tables))
    readme.write_text(replace_between(text, "seeds", seeds_table(seeds)))


def seed_row(run: Path) -> dict:
    """One training's evaluations on both splits, with its seed and its environment steps."""
    last = json.loads((run / "training_log.jsonl").read_text().splitlines()[-1])
    row = {"training_seed": int(run.name.split("-")[1]), "env_steps": last["env_steps"]}
    for split in ("id", "ood"):
        evaluation = json.loads((run / f"{split}.json").read_text())
        keys = ("num_tasks", "seed", "support_steps", "arms", "by_sign")
        row[split] = {key: evaluation[key] for key in keys}
    return row


def seeds_table(rows: list[dict]) -> str:
    """The `standard` arm of every training seed, as Markdown; last, over the seeds."""
    lines = [
        "| seed | env steps | mean | worst tenth, sign +1 | sign -1 | OOD mean | worst tenth |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        arm, ood = row["id"]["arms"]["standard"], row["ood"]["arms"]["standard"]
        signs = [row["id"]["by_sign"][sign]["standard"]["worst10"] for sign in ("+1", "-1")]
        lines.append(
            f"| {row['training_seed']} | {row['env_steps']:,} | {arm['mean']:.1f} | "
            f"{signs[0]:.1f} | {signs[1]:.1f} | {ood['mean']:.1f} | {ood['worst10']:.1f} |"
        )
    means = [row["ood"]["arms"]["standard"]["mean"] for row in rows]
    lines.append(
        f"| all | | | | | {fmean(means):.1f} ± {stdev(means):.1f} "
        f"({min(means):.1f} to {max(means):.1f}) | |"
    )
    return "\n".join(lines)


def replace_between(text: str, name: str, content: str) -> str:
    """The text with other content between the marks of ``name``."""
    pattern = rf"<!-- {name} -->.*?<!-- end of {name} -->"
    new = f"<!-- {name} -->\n{content}\n<!-- end of {name} -->"
    return re.sub(pattern, lambda _: new, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
