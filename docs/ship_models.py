"""Evaluate finished trainings, and put them into the package with their cards: `make models`.

For each NAME given as an argument, runs/NAME is a finished training. Every row of `CASES` is one
public command; what it printed goes to docs/results/NAME.json, the weights, the card and a thinned
training log to ssm_metarl/models/.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from update_readme import replace_between

from ssm_metarl.checkpoint import load_checkpoint, save_checkpoint
from ssm_metarl.core.ssm import StateSpaceModel

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "ssm_metarl/models"
RESULTS = ROOT / "docs/results"
EVALUATE = "ssm-metarl evaluate --model {model} --num_tasks 200 --seed 20000"
CASES = {
    "20 steps of support": "--support_steps 20 --safety",
    "5 steps of support": "--support_steps 5",
    "20 steps, by the policy itself": "--support_steps 20 --support_policy policy",
    "200 steps of support": "--support_steps 200",
}
SPLITS = {"id": "in distribution", "ood": "out of distribution"}
LOG_LINES = 100

TEXTS = {
    "cartpole": {
        "what": "The default `DiagonalSSM`, meta-trained by MAML to adapt from reward-free data.",
        "file": "`cartpole.safetensors`: weights, learned step sizes, limits of adaptation, replay "
        "experience, and this training's settings as JSON in its header.",
    },
    "cartpole_hybrid_real_model": {
        "what": "The documented `StateSpaceModel`, meta-trained with hybrid adaptation: each inner "
        "step also replays experience of other tasks, weighed by how well it fits.",
        "file": "`cartpole_hybrid_real_model.pth`: the documented weights alone, loadable by "
        "anyone; what makes a policy of them (learned step sizes, clipped observations, symmetry, "
        "limits of adaptation, replay experience) is in the `.safetensors` beside it.",
    },
}


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
        (MODELS / f"{name}.md").write_text(card(name, results, json.loads(lines[-1])))
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
    results = []
    for case, flags in CASES.items():
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


def card(name: str, results: list[dict[str, Any]], last: dict[str, Any]) -> str:
    """The model's card, in Markdown."""
    checkpoint = load_checkpoint(MODELS / f"{name}.safetensors")
    policy = checkpoint.policy()
    verification = checkpoint.card["verification"]
    limits = checkpoint.calibration
    settings = "\n".join(f"| `{k}` | {v} |" for k, v in sorted(checkpoint.training.items()))
    versions = ", ".join(f"{k} {v}" for k, v in sorted(checkpoint.versions.items()))
    safety = {
        row["evaluation"]["split"]: row["evaluation"]["safety"]
        for row in results
        if "safety" in row["evaluation"]
    }
    return f"""# {name}

{TEXTS[name]["what"]} {policy.num_parameters():,} parameters (`{type(policy.core).__name__}`).
{TEXTS[name]["file"]}

Made by (seed {checkpoint.training["seed"]}; {versions}), the last checkpoint, after
{last["env_steps"]:,} environment steps in {last["epoch"]:,} epochs:

```
{checkpoint.card["command"]}
```

## Use

```python
from ssm_metarl import StandardAdapter, load_pretrained

policy = load_pretrained("{name}")
adapted = StandardAdapter().adapt(policy, support)  # a Rollout of some 20 steps, no reward
```

**Intended**: study of adaptation; a starting point for plants that look like CartPole: four
observations (position in m, velocity in m/s, angle in rad, angular velocity in rad/s, upright at
zero), two actions, a decision every 0.02 s. **Not intended**: any plant on which a fall hurts
somebody or something; a changed goal (prediction carries no reward, so only a changed *plant* can
be found out); more than the few seconds of an episode that it was evaluated on.

## Data and procedure

No data set: {last["env_steps"]:,} steps (the limits' calibration not counted) in simulated
CartPoles whose force, pole, gravity and actuator sign were drawn anew for every task from the
in-distribution ranges of the `cartpole` family. Each epoch: support data of a random length, up to
{checkpoint.training["adaptation_steps"]} inner gradient steps on the prediction loss, query
episodes of the adapted policies (pushed, and half of them started far from upright), second-order
outer steps. Then the limits of adaptation were set on training tasks
(`ssm_metarl/evaluation/calibration.py`): {limits_text(limits)}.

## Results

200 tasks that training never drew, four greedy episodes of at most 500 steps each; seed 20000, on
which nothing was chosen. Intervals: 95 % bootstrap of the IQM over tasks, of this one policy.

{results_table(results)}

Ten seeded episodes (`ssm-metarl verify --model {name}`): mean {verification["mean"]:.1f} ±
{verification["std"]:.1f}, minimum {verification["min"]:g}, maximum {verification["max"]:g}; without
adapting {verification["frozen_mean"]:.1f}.

Gradient steps on the same 20 steps of support data (mean, worst tenth; in brackets without
rollback):

{steps_table(safety)}

{safety_text(safety)}

## Limits and bias

- The family hides **one bit**, the actuator's direction; a fixed linear controller that reads it
  off the same data (`sign_probe`) does as well. What is shown is that a gradient step can read it
  and re-tune a network by it.
- It is biased towards the ranges it was trained in. Out of them it fails most on weak actuators
  beside high gravity, and on very short poles.
- The unadapted policy is not meant to be used: mean {frozen(results, "+1"):.0f} of 500 where
  action 1 pushes to the right, {frozen(results, "-1"):.0f} where it pushes to the left.
- Support data that lie are mostly refused (above), not always. Sensor noise and delays were not in
  the training.

## Monitoring

`needs_adaptation(policy, transitions)` compares the prediction error of the last
{limits["window"]} transitions with its limit; call it once a second or so, and collect new support
data when its verdict is True. Watch `.report`: a step that was undone says why.

## Hyperparameters

| setting | value |
|---|---|
{settings}
"""


def limits_text(limits: dict[str, Any]) -> str:
    """The calibration's numbers in words."""
    losses = ", ".join(
        f"{loss:.2f} (from {steps} steps on)"
        for steps, loss in zip(limits["support_steps"], limits["max_loss"], strict=True)
    )
    return (
        f"a step is kept where the inner loss falls, to at most {losses}, and "
        f"KL(adapted || meta) stays under {limits['max_kl']:.2f} nats; a prediction error over "
        f"{limits['max_prediction_error']:.3f} means that the plant has changed"
    )


def results_table(results: list[dict[str, Any]]) -> str:
    """Every case and arm as a row."""
    lines = ["| case | arm | mean | IQM | interval | worst tenth |", "|---|---|--:|--:|--:|--:|"]
    for row in results:
        evaluation = row["evaluation"]
        for arm, s in evaluation["arms"].items():
            if arm == "random" and row["case"] != next(iter(CASES)):
                continue
            low, high = s["ci95"]
            lines.append(
                f"| {SPLITS[evaluation['split']]}, {row['case']} | {arm} | {s['mean']:.1f} | "
                f"{s['iqm']:.1f} | {low:.1f} to {high:.1f} | {s['worst10']:.1f} |"
            )
    return "\n".join(lines)


def shipped_table() -> str:
    """Mean and worst tenth of the adapted models, for docs/figures.md."""
    lines = [
        "| model, support data | in distribution | out of distribution |",
        "|---|--:|--:|",
    ]
    for name in TEXTS:
        results = json.loads((RESULTS / f"{name}.json").read_text())
        for case in CASES:
            cells = []
            for split in SPLITS:
                arms = next(
                    row["evaluation"]["arms"]
                    for row in results
                    if row["case"] == case and row["evaluation"]["split"] == split
                )
                cells.append(f"{arms['standard']['mean']:.1f} ({arms['standard']['worst10']:.1f})")
            lines.append(f"| `{name}`, {case} | {' | '.join(cells)} |")
    return (
        "Mean return after one reward-free gradient step, in brackets the worst tenth of 200 "
        "unseen tasks (seed 20000):\n\n" + "\n".join(lines)
    )


def steps_table(safety: dict[str, Any]) -> str:
    """Returns after more and more gradient steps."""
    counts = [row["num_adapt_steps"] for row in safety["id"]["more_steps"]]
    lines = ["| | " + " | ".join(map(str, counts)) + " |", "|---|" + "--:|" * len(counts)]
    for split, title in SPLITS.items():
        cells = [
            f"{r['mean']:.1f}, {r['worst10']:.1f} ({r['without_rollback']['mean']:.1f}, "
            f"{r['without_rollback']['worst10']:.1f})"
            for r in safety[split]["more_steps"]
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
        undone = [f"{r['rolled_back']:.0%}" for r in safety[split]["more_steps"]]
        lines.append("| rolled back on | " + " | ".join(undone) + " |")
    return "\n".join(lines)


def safety_text(safety: dict[str, Any]) -> str:
    """Falls, lying data and the change detector, on either split."""
    lines = []
    for split, title in SPLITS.items():
        s = safety[split]
        lied, detector = s["shuffled_actions"], s["change_detector"]
        lines.append(
            f"- {title}: the return falls after a kept step on "
            f"{s['falls_after_a_kept_step']:.1%} of the tasks. With shuffled actions the step is "
            f"undone on {lied['rolled_back']:.1%}, and harmless on {lied['harmless']:.1%}. Change "
            f"detector: false alarms {detector['false_alarms']:.1%}, flipped actuators found "
            f"{detector['flips_found']:.1%}."
        )
    return "\n".join(lines)


def frozen(results: list[dict[str, Any]], sign: str) -> float:
    """Mean return of the unadapted policy for one direction of the actuator."""
    return float(results[0]["evaluation"]["by_sign"][sign]["frozen"]["mean"])


if __name__ == "__main__":
    main()
