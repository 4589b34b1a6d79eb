"""Put the pendulum's figures into docs/figures.md: `make pendulum` calls it.

Reads runs/pendulum-MODE-SEED/id.json and ood.json for the training seeds given as arguments, writes
docs/results/pendulum.json, and rewrites the page between its marks.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

from update_readme import replace_between

from ssm_metarl.reproducibility import processor

ROOT = Path(__file__).parents[1]
ARMS = {"meta_rl": ("frozen", "standard", "hybrid"), "in_context": ("in_context",)}
CHANCE, TOLD = "random", "energy"


def main() -> None:
    """Collect and rewrite."""
    rows = [row(mode, int(seed)) for mode in ARMS for seed in sys.argv[1:]]
    (ROOT / "docs/results/pendulum.json").write_text(json.dumps(rows, indent=1) + "\n")
    page = ROOT / "docs/figures.md"
    page.write_text(replace_between(page.read_text(), "pendulum", table(rows)))


def row(mode: str, seed: int) -> dict:
    """One training's evaluations on both splits."""
    run = ROOT / f"runs/pendulum-{mode}-{seed}"
    found = {"mode": mode, "training_seed": seed, "processor": processor()}
    for split in ("id", "ood"):
        evaluation = json.loads((run / f"{split}.json").read_text())
        keys = ("num_tasks", "seed", "support_steps", "arms")
        found[split] = {key: evaluation[key] for key in keys}
    return found


def share(evaluation: dict, arm: str) -> float:
    """How far an arm's mean lies on the way from random torques to the told expert."""
    mean = {name: evaluation["arms"][name]["mean"] for name in (CHANCE, TOLD, arm)}
    return (mean[arm] - mean[CHANCE]) / (mean[TOLD] - mean[CHANCE])


def table(rows: list[dict]) -> str:
    """A line an arm: mean and range over the training seeds, on both splits."""
    lines = [
        "| arm | ID mean | worst tenth | of the way | OOD mean | worst tenth | of the way |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    first = [r for r in rows if r["mode"] == "meta_rl"]
    shown = [(CHANCE, first), *((arm, [r for r in rows if r["mode"] == mode])
             for mode, arms in ARMS.items() for arm in arms), (TOLD, first)]  # fmt: skip
    for arm, trainings in shown:
        cells = [arm]
        for split in ("id", "ood"):
            arms = [r[split]["arms"][arm] for r in trainings]
            shares = [share(r[split], arm) for r in trainings]
            cells += [
                f"{fmean(a['mean'] for a in arms):.0f}",
                f"{fmean(a['worst10'] for a in arms):.0f}",
                f"{fmean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    processors = ", ".join(sorted({r["processor"] for r in rows}))
    return "\n".join([*lines, "", f"Processor: {processors}."])


if __name__ == "__main__":
    main()
