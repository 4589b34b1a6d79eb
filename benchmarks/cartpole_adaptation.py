"""The documented CartPole benchmark: standard against hybrid adaptation, gradient step by step.

Place in the flow: beside `performance`; ``python benchmarks/cartpole_benchmark.py`` runs it. The
documents name three configurations, (5, 0.01), (10, 0.01) and (10, 0.001) for steps and rate: plain
gradient descent. Beside them stands what the model was meta-trained for, its learned step sizes.

All arms meet the same held-out tasks, support data and initial states, so a difference between two
of them is one between pairs. A step that does not lower the loss is undone, as everywhere.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.app.handlers.comparing import RESULTS
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.evaluation.episodes import collect_support, run_arm
from ssm_metarl.evaluation.opened_model import OpenedModel, open_model
from ssm_metarl.evaluation.statistics import paired_interval
from ssm_metarl.tasks.task_family import Split, Tasks
from ssm_metarl.types import Params, Rollout
from ssm_metarl.version import __version__

MODEL, NUM_TASKS, SEED = "cartpole_hybrid_real_model", 200, 10_000
CONFIGURATIONS: tuple[tuple[int, float | None], ...] = (
    (5, 0.01), (10, 0.01), (10, 0.001), (1, None),
)  # fmt: skip
"""Gradient steps and rate; None for the model's learned step sizes."""
MODES = ("standard", "hybrid")
SPLITS: tuple[Split, ...] = ("id", "ood")
COMMAND = ("python", "benchmarks/cartpole_benchmark.py")
DEFINITIONS = {
    "mean": "greedy full-length episodes, four a task, mean over tasks",
    "adapt_lr": "rate of plain gradient descent; learned: the model's own step sizes",
    "ci95": "95 % bootstrap interval of the mean difference over tasks, the same in both arms",
    "kept": "gradient steps that were not undone, mean over tasks",
}

Curve = dict[str, list[np.ndarray]]
"""Of each mode, the tasks' scores (K,) after 0, 1, 2, ... gradient steps."""


def measure(
    opened: OpenedModel,
    config: EvaluationConfig,
    on_progress: Callable[[float, str], None],
) -> dict[str, Any]:
    """Run all configurations on both splits.

    Args:
        opened: A model that came with experience.
        config: Tasks, seed, support steps and episodes.
        on_progress: Called with the share done and what comes next.

    Returns:
        A JSON-ready object: ``configurations``, ``learning_curves``, and what they are of.

    Raises:
        ValueError: The model has no experience to replay.
    """
    if "hybrid" not in opened.modes:
        raise ValueError(
            f"model: expected one with experience to replay (--adaptation_mode hybrid), received "
            f"{opened.name!r}"
        )
    rates = list(dict.fromkeys(rate for _, rate in CONFIGURATIONS))
    configurations, curves = [], []
    for s, split in enumerate(SPLITS):
        tasks = opened.family.sample(split, config.num_tasks, seed=config.seed)
        support = collect_support(
            opened.policy, tasks, config.support_steps, opened.trained.support_policy,
            seed=config.seed,
        )  # fmt: skip
        for r, rate in enumerate(rates):
            on_progress((s * len(rates) + r) / (len(SPLITS) * len(rates)), f"{split}, {name(rate)}")
            most = max(steps for steps, of in CONFIGURATIONS if of == rate)
            scores, kept = _curve(opened, tasks, support, rate, most, config)
            curves += [
                {"split": split, "adapt_lr": name(rate), "mode": mode, "num_adapt_steps": n,
                 "mean": float(scores[mode][n].mean())}
                for mode in MODES for n in range(most + 1)
            ]  # fmt: skip
            configurations += [
                _row(split, steps, rate, scores, kept, config.seed)
                for steps, of in CONFIGURATIONS
                if of == rate
            ]
    on_progress(1.0, "done")
    return {
        "version": __version__,
        "model": opened.name,
        "family": opened.family.name,
        "num_tasks": config.num_tasks,
        "seed": config.seed,
        "support_steps": config.support_steps,
        "machine": machine(),
        "definitions": DEFINITIONS,
        "configurations": configurations,
        "learning_curves": curves,
    }


def name(rate: float | None) -> str:
    """A rate in words."""
    return "learned" if rate is None else f"{rate:g}"


def _curve(
    opened: OpenedModel,
    tasks: Tasks,
    support: Rollout,
    rate: float | None,
    most: int,
    config: EvaluationConfig,
) -> tuple[Curve, dict[str, list[float]]]:
    """Scores after each number of steps up to ``most``, and how many of them were kept."""
    scores: Curve = {mode: [] for mode in MODES}
    kept: dict[str, list[float]] = {mode: [] for mode in MODES}
    unadapted = _scores(opened, opened.policy.meta_params(), tasks, config)
    for mode in MODES:
        scores[mode].append(unadapted)
        kept[mode].append(0.0)
        for steps in range(1, most + 1):
            params, reports = _adapt(opened, mode, support, steps, rate, config)
            scores[mode].append(_scores(opened, params, tasks, config))
            kept[mode].append(float(np.mean([report.num_steps for report in reports])))
    return scores, kept


def _adapt(
    opened: OpenedModel,
    mode: str,
    support: Rollout,
    steps: int,
    rate: float | None,
    config: EvaluationConfig,
) -> tuple[Params, list[AdaptationReport]]:
    settings = opened.trained.adaptation(num_adapt_steps=steps, adapt_lr=rate)
    if mode == "standard":
        return StandardAdapter(settings).adapt_tasks(opened.policy, support)
    assert opened.buffer is not None
    hybrid = opened.trained.hybrid(settings, seed=config.seed)
    return HybridAdapter(hybrid).adapt_tasks(opened.policy, support, opened.buffer)


def _scores(
    opened: OpenedModel, params: Params, tasks: Tasks, config: EvaluationConfig
) -> np.ndarray:
    actor = opened.policy.actor(params, len(tasks), config.episodes_per_task)
    scores: np.ndarray = run_arm(tasks, actor, config).mean(axis=1)
    return scores


def _row(
    split: str, steps: int, rate: float | None, scores: Curve, kept: dict[str, list[float]],
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    frozen = scores["standard"][0]
    row: dict[str, Any] = {
        "split": split, "num_adapt_steps": steps, "adapt_lr": name(rate),
        "frozen": float(frozen.mean()),
    }  # fmt: skip
    for mode in MODES:
        row[mode] = float(scores[mode][steps].mean())
        row[f"{mode}_kept"] = kept[mode][steps]
    pairs = {
        "standard - frozen": scores["standard"][steps] - frozen,
        "hybrid - standard": scores["hybrid"][steps] - scores["standard"][steps],
    }
    for pair, difference in pairs.items():
        low, high = paired_interval(difference, seed=seed)
        row[pair] = {"mean": float(difference.mean()), "ci95_low": low, "ci95_high": high}
    return row


def table(result: dict[str, Any]) -> str:
    """The configurations as Markdown."""
    lines = [
        "# Standard and hybrid adaptation on CartPole",
        "",
        f"`{result['command']}`: model `{result['model']}`, {result['num_tasks']} unseen tasks a "
        f"split (seed {result['seed']}), {result['support_steps']} environment steps of data, "
        f"version {result['version']}.",
        "",
        "| split | steps | rate | frozen | standard | hybrid | standard - frozen | "
        "hybrid - standard |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["configurations"]:
        means = " | ".join(f"{row[arm]:.1f}" for arm in ("frozen", *MODES))
        pairs = " | ".join(
            "{mean:+.1f} ({ci95_low:+.1f} to {ci95_high:+.1f})".format(**row[pair])
            for pair in ("standard - frozen", "hybrid - standard")
        )
        lines.append(
            f"| {row['split']} | {row['num_adapt_steps']} | {row['adapt_lr']} | {means} | {pairs} |"
        )
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], folder: Path) -> None:
    """``adaptation_comparison.png`` and ``learning_curves.png``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from benchmarks.plot import draw_bars, draw_curves

    rows = result["configurations"]
    draw_bars(
        {
            f"{row['split'].upper()}, {row['num_adapt_steps']} x {row['adapt_lr']}": {
                arm: row[arm] for arm in ("frozen", *MODES)
            }
            for row in rows
        },
        folder / "adaptation_comparison.png",
    )
    panels: dict[str, dict[str, list[float]]] = {}
    for row in result["learning_curves"]:
        panel = panels.setdefault(f"{row['split'].upper()}, rate {row['adapt_lr']}", {})
        panel.setdefault(row["mode"], []).append(row["mean"])
    draw_curves(panels, folder / "learning_curves.png")


def write(result: dict[str, Any], out: Path) -> None:
    """Write figures, tables and plots into a folder."""
    for folder in (out / "plots", out / "tables"):
        folder.mkdir(parents=True, exist_ok=True)
    (out / "benchmark_results.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "tables" / "benchmark_results.md").write_text(table(result))
    draw(result, out / "plots")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write everything."""
    parser = argparse.ArgumentParser(
        prog="cartpole_benchmark", description="Standard against hybrid adaptation on CartPole."
    )
    parser.add_argument("--model", default=MODEL, help="a shipped name, a run or a checkpoint")
    parser.add_argument("--num_tasks", type=int, default=NUM_TASKS, help="held-out tasks a split")
    parser.add_argument("--seed", type=int, default=SEED, help="names the tasks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(argv)

    def told(share: float, what: str) -> None:
        print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)

    try:
        config = EvaluationConfig(num_tasks=given.num_tasks, seed=given.seed)
        words = sys.argv[1:] if argv is None else argv
        result: dict[str, Any] = {"command": shlex.join([*COMMAND, *words])}
        result |= measure(open_model(given.model), config, told)
        write(result, given.out)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(" ".join(str(error).split()))
    print(json.dumps(result, indent=1) if given.json else table(result))
    return 0
