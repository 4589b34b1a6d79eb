"""Bring environments of other packages to the product, as a user would, and write what came of it.

Place in the flow: beside the package; each environment is a file here that declares ``FAMILY``::

    python -m benchmarks.environments            # those whose packages are installed here
    python -m benchmarks.environments ant acrobot
    python -m benchmarks.environments units      # one plant in two systems of units

Each is checked, trained for three epochs, saved, opened, trained on, adapted to a log that its own
environment wrote in a task, and evaluated. Rows of environments that are not installed stay as they
are in the table, for the packages do not all go together.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssm_metarl import Environment, MetaTrainingConfig, TaskFamily
from ssm_metarl.action_space import Discrete
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.evaluation.opened_model import open_model
from ssm_metarl.meta_rl.training_run import TrainingRun
from ssm_metarl.tasks.registry import named_family

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results" / "environments.json"
PAGE = RESULTS.parents[1] / "environments.md"
BEGIN, END = "<!-- environments -->", "<!-- end of environments -->"
HEAD = """\
| environment | packages | lines | checks | steps/s | adapted to its log | all worked |
|---|---|--:|---|--:|---|---|"""
PACKAGES = {
    ("gymnasium",): "pendulum pendulum_other_units mountain_car mountain_car_continuous acrobot",
    ("gymnasium", "box2d"): "lunar_lander lunar_lander_continuous bipedal_walker",
    ("gymnasium", "mujoco"): "half_cheetah hopper walker2d swimmer ant humanoid inverted_pendulum "
    "inverted_double_pendulum reacher pusher",
    ("popgym",): "popgym_cartpole popgym_noisy_pendulum popgym_repeat_previous",
    ("gym-electric-motor",): "gem_pmsm",
    ("pcgym",): "pcgym_cstr",
    ("shimmy", "dm-control", "mujoco"): "dm_control_cartpole",
    ("target-gym", "gymnasium"): "target_gym_cstr target_gym_plane",
}
"""Packages, and the environments that need them."""
TINY = MetaTrainingConfig(
    num_epochs=3, horizon=100, full_horizon_every=0, push_probability=0.0, spread_starts=0.0
)
LOG_EPISODES, LOG_STEPS = 3, 60
UNITS = ("pendulum", "pendulum_other_units")
"""The same plant twice."""
UNITS_STEPS = 1_000_000


@dataclass(frozen=True)
class Row:
    """What came of one environment."""

    name: str
    packages: str
    """With their versions."""
    lines: int
    """Of the family's file."""
    checks: str
    """How many ``families check`` made, and whether it passed."""
    notes: tuple[str, ...]
    """What it noted or found wrong."""
    steps_per_second: int
    """Of environment steps in meta-training, the faster of the epochs after the first, a second of
    processor time: other programs that run beside it count little."""
    adapt: str
    """"kept", or why nothing was written; then the command is run again with --no-rollback."""
    worked: bool
    """Whether every command and call did what it says."""


def main(names: list[str]) -> None:
    """Run what is asked for, and write each row once it is there."""
    if names == ["units"]:
        write(units=[learned(name) for name in UNITS])
        return
    for packages, listed in PACKAGES.items():
        try:
            found = ", ".join(f"{package} {version(package)}" for package in packages)
        except PackageNotFoundError as missing:
            print(f"{listed}: left out, {missing.name} is not installed here", flush=True)
            continue
        for name in (n for n in listed.split() if not names or n in names):
            write(row=asdict(brought(name, found)))


def write(*, row: dict[str, Any] | None = None, units: list[dict[str, Any]] | None = None) -> None:
    """Put a row, or the comparison of units, among the results and into the page."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"environments": []}
    if row is not None:
        rows = {r["name"]: r for r in [*results["environments"], row]}
        order = [name for listed in PACKAGES.values() for name in listed.split()]
        results["environments"] = [rows[name] for name in order if name in rows]
        print(as_line(row), flush=True)
    if units is not None:
        results["units"] = units
        print(json.dumps(units, indent=1))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    table = "\n".join([HEAD, *map(as_line, results["environments"])])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def as_line(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    name = row["name"]
    cells = (
        f"[{name}](../benchmarks/environments/{name}.py)",
        row["packages"],
        row["lines"],
        row["checks"] + (f", {len(row['notes'])} noted" if row["notes"] else ""),
        f"{row['steps_per_second']:,}",
        "kept" if row["adapt"] == "kept" else "undone",
        "yes" if row["worked"] else "no",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def brought(name: str, packages: str) -> Row:
    """Everything that a user does with an environment, in a folder that goes when it is done."""
    file = HERE / f"{name}.py"
    row = Row(name, packages, len(file.read_text().splitlines()), "", (), 0, "", False)
    family = f"{file}:FAMILY"
    with tempfile.TemporaryDirectory() as folder:
        model, log, adapted = (
            Path(folder) / n for n in ("model", "log.csv", "adapted.safetensors")
        )
        code, checked = command("families", "check", family)
        told = tuple(f"{c['check']}: {c['message']}" for c in checked["checks"]
                     if c["verdict"] in ("note", "wrong"))  # fmt: skip
        verdict = f"{len(checked['checks'])} passed" if code == 0 else "failed"
        row = replace(row, checks=verdict, notes=told)
        declared = named_family(family)
        row = replace(row, steps_per_second=round(trained(declared, model)))
        write_log(declared, log)
        adapt = ["adapt", "--model", str(model), "--family", family, "--data", str(log),
                 "--out", str(adapted)]  # fmt: skip
        kept, said = command(*adapt)
        row = replace(row, adapt="kept" if kept == 0 else said["message"])
        if kept != 0:
            kept, _ = command(*adapt, "--no-rollback")
        scores = [
            command("evaluate", "--model", str(which), "--family", family,
                    "--num-tasks", "2", "--episodes-per-task", "1")[0]
            for which in (model, adapted)
        ]  # fmt: skip
        return replace(row, worked=[code, kept, *scores] == [0, 0, 0, 0])


def learned(name: str) -> dict[str, Any]:
    """Train longer, and evaluate on unseen tasks: mean return of each arm."""
    family = named_family(f"{HERE / name}.py:FAMILY")
    config = replace(TINY, num_epochs=None, max_env_steps=UNITS_STEPS, horizon=200)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        policy = TrainingRun.start(config, out, family=family).train()
        scored = open_model(str(out), family).evaluate(
            EvaluationConfig(num_tasks=50), lambda share, message: None
        )
    means = {arm: round(scores["mean"], 1) for arm, scores in scored["arms"].items()}
    return {"name": name, "obs_scale": policy.config.obs_scale, **means}


def command(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code of a command of the product, and what it printed as JSON, or its error."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ssm_metarl.cli", *arguments, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    lines = ran.stderr.strip().splitlines() or [""]
    try:
        return ran.returncode, json.loads(ran.stdout)
    except json.JSONDecodeError:
        return ran.returncode, {"message": lines[-1], "checks": []}


def trained(family: TaskFamily, out: Path) -> float:
    """Train, save, open, and train on; steps a second of processor time.

    Raises:
        RuntimeError: What was opened is not what was saved, or it went on with something else.
    """
    rates, before = [], [time.process_time(), 0]

    def on_epoch(metrics: Any, line: object) -> None:
        now = time.process_time()
        rates.append((metrics.env_steps - before[1]) / (now - before[0]))
        before[:] = now, metrics.env_steps

    run = TrainingRun.start(TINY, out, family=family, on_epoch=on_epoch)
    before[0] = time.process_time()
    policy = run.train()
    opened = open_model(str(out), family=family).policy
    again = TrainingRun.resume(out, family=family, num_epochs=TINY.num_epochs + 1)
    same = all(
        all(map(torch.equal, policy.state_dict().values(), other.state_dict().values()))
        for other in (opened, again.trainer.policy)
    )
    again.train()
    if not same or again.trainer.epoch != TINY.num_epochs + 1:
        raise RuntimeError(f"{family.name}: expected the policy that was saved, received another")
    return float(max(rates[1:]))


def write_log(family: TaskFamily, path: Path) -> None:
    """What a plant of the family writes: some short episodes of random actions, without rewards."""
    env = Environment(family, task={p.name: p.of_kind(p.id.at(0.8)) for p in family.parameters})
    obs_dim, space = family.spaces
    size = 1 if isinstance(space, Discrete) else space.dim
    actions = ["action"] if size == 1 else [f"action_{i}" for i in range(size)]
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["episode", *(family.obs_names or [f"obs_{i}" for i in range(obs_dim)]),
                        *actions])  # fmt: skip
        for episode in range(LOG_EPISODES):
            obs, _ = env.reset(seed=episode)
            for _ in range(LOG_STEPS):
                action = np.ravel(space.random(rng, 1)[0].numpy())
                table.writerow([episode, *np.ravel(obs), *action])
                obs, _, terminated, truncated, _ = env.step(
                    action[0] if isinstance(space, Discrete) else action
                )
                if terminated or truncated:
                    break
            table.writerow([episode, *np.ravel(obs), *[""] * size])
    env.close()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
