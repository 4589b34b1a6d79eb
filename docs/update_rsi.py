"""Put finished lineages and the gate's certificate into the docs: `make self-improvement` calls it.

Reads runs/rsi-MODEL-SEED/audit.json and run.json, and docs/results/rsi_gate.json; writes
docs/results/rsi.json and the tables between the marks of docs/rsi.md and docs/figures.md.
"""

import json
import shutil
import sys
from pathlib import Path

from update_readme import replace_between

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
MODELS = {"half": "half-trained", "cartpole": "shipped `cartpole`"}
REFERENCES = ("generation 0", "plain training")


def main() -> None:
    """Collect, copy and rewrite."""
    seeds = sys.argv[1:]
    rows = [row(model, seed) for model in MODELS for seed in seeds]
    (RESULTS / "rsi.json").write_text(json.dumps(rows, indent=1) + "\n")
    shutil.copy(
        ROOT / f"runs/rsi-half-{seeds[0]}/lineage.png", ROOT / "docs/images/rsi_lineage.png"
    )
    gate = json.loads((RESULTS / "rsi_gate.json").read_text())
    page, figures = ROOT / "docs/rsi.md", ROOT / "docs/figures.md"
    text = replace_between(page.read_text(), "gate", gate_table(gate))
    page.write_text(replace_between(text, "lineages", lineages_table(rows)))
    figures.write_text(replace_between(figures.read_text(), "self-improvement", short_table(rows)))


def row(model: str, seed: str) -> dict:
    """One lineage's run and audit."""
    folder = ROOT / f"runs/rsi-{model}-{seed}"
    audit = json.loads((folder / "audit.json").read_text())
    run = json.loads((folder / "run.json").read_text())
    return {"model": model, "seed": int(seed), "parameters": run["parameters"], **audit}


def gate_table(gate: dict) -> str:
    """The certificate, as Markdown."""
    lives = gate["lifetimes"]
    lines = ["| candidates | count |", "|---|---|"]
    names = {
        "bell": "as good as the champion, spread 25 points",
        "mostly_nothing": "the same, differing on few tasks and by much",
        "with_crashes": "the same, 2 % of the pairs crashing",
    }
    for name, found in gate["null_false_upgrades"].items():
        lines.append(f"| {names[name]} | {found} of {lives:,} lifetimes with a false upgrade |")
    for number, share in gate["accepted_share_at_gain"].items():
        lines.append(f"| 3.7 points better, {number}. confirmation | {share:.1%} accepted |")
    lines.append(f"| 3.7 points worse | {gate['accepted_at_loss']} of {lives:,} accepted |")
    for name, found in gate["sabotaged_false_upgrades"].items():
        lines.append(f"| sabotaged gate: {name} | {found} of {lives:,} lifetimes |")
    return "\n".join(lines)


def lineages_table(rows: list[dict]) -> str:
    """Every lineage, as Markdown."""
    lines = [
        "| generation 0 | seed | accepted | steps, millions | champion: ID, OOD mean | "
        "over generation 0, OOD | over plain training, OOD |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for each in rows:
        champion = each["arms"]["champion"]
        cells = [
            MODELS[each["model"]],
            str(each["seed"]),
            str(each["outcomes"]["accepted"]),
            f"{each['env_steps'] / 1e6:.1f}",
            f"{champion['id']['mean']:.1f}, {champion['ood']['mean']:.1f}",
            *(difference(each, reference, "ood") for reference in REFERENCES),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(each: dict, reference: str, split: str) -> str:
    """A difference with its interval."""
    found = each["differences"][f"champion - {reference}"][split]
    low, high = found["ci95"]
    return f"{found['mean']:+.1f} ({low:+.1f} to {high:+.1f})"


def short_table(rows: list[dict]) -> str:
    """A line a model for docs/figures.md: ranges over the seeds."""
    lines = ["| generation 0 | ID mean: generation 0 → champion | OOD mean | accepted |",
             "|---|--:|--:|--:|"]  # fmt: skip
    for model, title in MODELS.items():
        ours = [each for each in rows if each["model"] == model]
        cells = [title]
        for split in ("id", "ood"):
            before, after = (
                [each["arms"][arm][split]["mean"] for each in ours]
                for arm in ("generation 0", "champion")
            )
            cells.append(f"{span(before)} → {span(after)}")
        cells.append(span([each["outcomes"]["accepted"] for each in ours], 0))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(values: list[float], digits: int = 1) -> str:
    """Least and greatest value, or the one that all are."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    main()
