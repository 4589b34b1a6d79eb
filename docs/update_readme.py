"""Put the figures of finished runs into the README: `make figures` calls it.

Reads runs/demo/report (written by `make demo`) and runs/seed-N/evaluation.json for the training
seeds given as arguments, copies pictures and results into docs/, and rewrites the README between
its marks.
"""

import json
import re
import shutil
import sys
from pathlib import Path

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
    text = replace(readme.read_text(), "results: make demo", "end of results", "\n\n".join(tables))
    readme.write_text(replace(text, "seeds", "end of seeds", seeds_table(seeds)))


def seed_row(run: Path) -> dict:
    """One training's evaluation, with its seed and its environment steps."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    last = json.loads((run / "training_log.jsonl").read_text().splitlines()[-1])
    return {"training_seed": int(run.name.split("-")[1]), "env_steps": last["env_steps"]} | {
        key: evaluation[key] for key in ("split", "num_tasks", "seed", "support_steps", "arms")
    }


def seeds_table(rows: list[dict]) -> str:
    """The `standard` arm of every training seed, as Markdown."""
    lines = [
        "| seed | environment steps | IQM | mean | worst tenth |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        arm = row["arms"]["standard"]
        lines.append(
            f"| {row['training_seed']} | {row['env_steps']:,} | {arm['iqm']:.1f} | "
            f"{arm['mean']:.1f} | {arm['worst10']:.1f} |"
        )
    return "\n".join(lines)


def replace(text: str, start: str, end: str, content: str) -> str:
    """The text with other content between two marks."""
    pattern = rf"<!-- {start} -->.*?<!-- {end} -->"
    new = f"<!-- {start} -->\n{content}\n<!-- {end} -->"
    return re.sub(pattern, lambda _: new, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
