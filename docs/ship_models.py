"""Evaluate finished trainings, and put them into the package with their cards: `make models`.

For each NAME given as an argument, runs/NAME is a finished training. Every row of `BY_GRADIENT` and
`IN_CONTEXT` is one public command; what it printed goes to docs/results/NAME.json, the weights, the
card (`model_card`) and a thinned training log to ssm_metarl/models/.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_card import SPLITS, card
from update_readme import replace_between

from ssm_metarl.checkpoint import load_checkpoint, save_checkpoint
from ssm_metarl.core.ssm import StateSpaceModel

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "ssm_metarl/models"
RESULTS = ROOT / "docs/results"
EVALUATE = "ssm-metarl evaluate --model {model} --num_tasks 200 --seed 20000"
BY_GRADIENT = {
    "20 steps of support": "--support_steps 20 --safety",
    "5 steps of support": "--support_steps 5",
    "20 steps, by the policy itself": "--support_steps 20 --support_policy policy",
    "200 steps of support": "--support_steps 200",
}
IN_CONTEXT = {"trials of 10 episodes": "--episodes_per_task 10"}
LOG_LINES = 100


def main() -> None:
    """Ship every model named on the command line."""
    MODELS.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:]:
        run = ROOT / "runs" / name
        ship_weights(name, run)
        results = evaluations(name)
        (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        lines = (run / "training_log.jsonl").read_text().splitlines()
        (MODELS / f"{name}.training.jsonl").write_text("\n".join(thinned(lines)) + "\n")
        checkpoint = load_checkpoint(MODELS / f"{name}.safetensors")
        (MODELS / f"{name}.md").write_text(card(name, checkpoint, results, json.loads(lines[-1])))
    page = ROOT / "docs/figures.md"
    page.write_text(replace_between(page.read_text(), "shipped", shipped_table()))


def ship_weights(name: str, run: Path) -> None:
    """Copy a training's last checkpoint, without its optimiser, as the model NAME."""
    checkpoint = load_checkpoint(run)
    tensors = {n: v for n, v in checkpoint.tensors.items() if not n.startswith("optimizer.")}
    save_checkpoint(
        MODELS / f"{name}.safetensors", replace(checkpoint, tensors=tensors, counters={})
    )
    if isinstance(checkpoint.policy().core, StateSpaceModel):
        shutil.copy(run / "model.pth", MODELS / f"{name}.pth")


def evaluations(name: str) -> list[dict[str, Any]]:
    """What every case printed, on either split, with the command that printed it."""
    policy = load_checkpoint(MODELS / f"{name}.safetensors").policy()
    results = []
    for case, flags in (IN_CONTEXT if policy.in_context else BY_GRADIENT).items():
        for split in SPLITS:
            command = f"{EVALUATE.format(model=name)} --split {split} {flags}"
            print(command, flush=True)
            printed = subprocess.run(
                [str(Path(sys.executable).parent / "ssm-metarl"), *command.split()[1:], "--json"],
                check=True,
                stdout=subprocess.PIPE,
            ).stdout
            evaluation = json.loads(printed)
            for key in ("definitions", "model", "version"):
                evaluation.pop(key)
            evaluation.get("safety", {}).pop("definitions", None)
            results.append({"case": case, "command": command, "evaluation": evaluation})
    return results


def thinned(lines: list[str]) -> list[str]:
    """About a hundred lines of a log: evenly spaced ones, those with an evaluation, the last."""
    every = max(1, len(lines) // LOG_LINES)
    return [
        line
        for i, line in enumerate(lines)
        if i % every == 0 or "eval_" in line or i == len(lines) - 1
    ]


def shipped_table() -> str:
    """Mean and worst tenth of the adapted models, for docs/figures.md."""
    lines = ["| model, case | in distribution | out of distribution |", "|---|--:|--:|"]
    for path in sorted(MODELS.glob("*.safetensors")):
        found: dict[str, list[str]] = {}
        for row in json.loads((RESULTS / f"{path.stem}.json").read_text()):
            arms = row["evaluation"]["arms"]
            arm = arms.get("in_context", arms.get("standard"))
            cell = f"{arm['mean']:.1f} ({arm['worst10']:.1f})"
            found.setdefault(row["case"], []).append(cell)
        for case, cells in found.items():
            lines.append(f"| `{path.stem}`, {case} | {' | '.join(cells)} |")
    return (
        "Mean return of the adapted policy, by one reward-free gradient step or in context, in "
        "brackets the worst tenth of 200 unseen tasks (seed 20000):\n\n" + "\n".join(lines)
    )


if __name__ == "__main__":
    main()
