"""Rows `memory` and `import`: what a whole process costs.

Place in the flow: rows of `performance`; each figure comes from a process of its own, `child` among
them, started one after the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import Measurement, compare
from benchmarks.settings import Settings
from benchmarks.timing import Spread, alternate

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("cartpole", {}),
    "state_space_hybrid": (
        "cartpole_hybrid_real_model",
        {"core": "state_space", "adaptation_mode": "hybrid"},
    ),
}
"""Case -> the shipped model that it goes on from, and its settings."""
HORIZON, HORIZONS = 200, (100, 200, 400)
TIMEOUT = 300
ROOT = Path(__file__).parents[1]
"""Where `child` is found."""
MEGA = 1e6


def memory(settings: Settings) -> list[Measurement]:
    """Peak memory of second-order meta-training above ``import torch``, and how it grows with T."""
    repetitions, epochs = settings.choose((3, 6), (1, 2), (1, 1))
    jobs = {name: (name, HORIZON) for name in MODELS}
    jobs |= {f"horizon{h}": ("default", h) for h in HORIZONS if h != HORIZON}
    if settings.size == "tiny":
        jobs = {"default": ("default", 20)}
    details: dict[str, Mapping[str, float]] = {}

    def peak(name: str) -> float:
        case, horizon = jobs[name]
        model, changed = MODELS[case]
        training = {**changed, "seed": 0, "horizon": horizon, "full_horizon_every": 0}
        details[name] = child({"model": model, "epochs": epochs, "training": training})
        return details[name]["bytes"] / MEGA

    series = alternate(
        {name: partial(peak, name) for name in jobs},
        repetitions,
        on_repetition=lambda n: settings.progress(n / repetitions, f"round {n}"),
    )
    rows = []
    for name, (case, horizon) in jobs.items():
        figures = series.figures[name]
        note = series.failures.get(name, "")
        if name in details and name not in series.failures:
            buffer, length = details[name]["buffer"], details[name]["longest_mean_return"]
            loaded = details[name]["imports"] / MEGA
            note = (
                f"{loaded:.0f} MB of it imports; {buffer:,.0f} transitions in the buffer, episodes "
                f"of up to {length:.0f} steps"
            )
        rows.append(
            Measurement(
                name=f"memory/{name}",
                case=f"{case.replace('_', ' ')} model, second order, horizon {horizon}",
                unit="MB",
                ours=Spread.of(figures).median if name not in series.failures else None,
                kind="figure",
                note=note,
            )
        )
    curve = {h: series.figures.get("default" if h == HORIZON else f"horizon{h}") for h in HORIZONS}
    known = {h: figures for h, figures in curve.items() if figures}
    if len(known) == len(HORIZONS):
        rows.append(slope(known))
    return rows


def slope(figures: Mapping[int, Sequence[float]]) -> Measurement:
    """How memory grows with the horizon: a straight line through all repetitions.

    Args:
        figures: Horizon -> megabytes in each repetition.
    """
    points = [(h, x) for h, values in figures.items() for x in values]
    x, y = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    growth, fixed = np.polyfit(x, y, 1)
    medians = {h: Spread.of(values).median for h, values in figures.items()}
    distance = max(abs(m - fixed - growth * h) for h, m in medians.items())
    return Measurement(
        name="memory/slope",
        case=f"growth over horizons {', '.join(map(str, figures))}",
        unit="MB/100 steps",
        ours=float(growth) * 100,
        kind="figure",
        note=f"a line through {fixed:.0f} MB at horizon 0; no median further than "
        f"{distance:.1f} MB from it",
    )


def child(request: Mapping[str, Any]) -> dict[str, float]:
    """Run `child` and read what it prints.

    Raises:
        RuntimeError: It failed; the last line of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.child", json.dumps(request)]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if process.returncode != 0:
        raise RuntimeError((process.stderr.strip().splitlines() or ["no message"])[-1])
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def imports(settings: Settings) -> list[Measurement]:
    """``import ssm_metarl`` over ``import torch``, and ``ssm-metarl --help``, whole processes."""
    repetitions = settings.choose(11, 3, 1)
    commands = {
        "ssm_metarl": ["-c", "import ssm_metarl"],
        "policy": ["-c", "from ssm_metarl import MetaTrainer"],
        "torch": ["-c", "import torch"],
        "help": ["-m", "ssm_metarl.cli", "--help"],
        "python": ["-c", "pass"],
    }
    for command in commands.values():
        seconds_of(command)
    series = alternate(
        {name: partial(seconds_of, command) for name, command in commands.items()},
        repetitions,
        on_repetition=lambda n: settings.progress(n / repetitions, f"round {n}"),
    )
    cases = {
        "ssm_metarl": ("import ssm_metarl", "torch"),
        "policy": ("from ssm_metarl import MetaTrainer", "torch"),
        "help": ("ssm-metarl --help", "python"),
    }
    peers = {"torch": "import torch", "python": "an empty Python process"}
    return [
        compare(
            series,
            f"import/{name}",
            case,
            peers[peer],
            ours=name,
            theirs=peer,
            unit="s",
            kind="over",
        )
        for name, (case, peer) in cases.items()
    ]


def seconds_of(arguments: Sequence[str]) -> float:
    """Wall time of a Python process.

    Raises:
        RuntimeError: It failed.
    """
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        timeout=TIMEOUT,
        check=False,
    )
    if process.returncode != 0:
        raise RuntimeError(f"python {' '.join(arguments)}: exit code {process.returncode}")
    return time.perf_counter() - started
