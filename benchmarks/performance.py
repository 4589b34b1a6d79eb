"""The performance benchmark: every row measured, and written as JSON, table and picture.

Place in the flow: beside the package; `make bench` and ``ssm-metarl bench`` run it.

    rows (`ROWS`)  ->  measurements in turns (`timing`)  ->  `results`, `plot`

Each row is a function of its own and stands alone: one that fails, or whose peer is not installed,
leaves a line that says so, and the others go on. Only a whole run writes to the folder that comes
with the package; a part of it (``--quick``, ``--only``) goes elsewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.machine import load, machine
from benchmarks.plot import draw
from benchmarks.results import Measurement, RowResult, busy, cells, write
from benchmarks.settings import Settings, Size
from benchmarks.timing import reason
from ssm_metarl.app.handlers.comparing import RESULTS
from ssm_metarl.version import __version__

Report = Callable[[float, str], None]
QUICK_OUT, PART_OUT = Path("runs/bench-quick"), Path("runs/bench-part")


@dataclass(frozen=True)
class Row:
    """Where a row is measured, and what it says."""

    module: str
    function: str
    what: str
    share: float
    """Seconds of a whole run, for the progress."""

    def measure(self, settings: Settings) -> list[Measurement]:
        """Import the row and measure it."""
        module = import_module(f"benchmarks.{self.module}")
        rows: list[Measurement] = getattr(module, self.function)(settings)
        return rows


ROWS = {
    "meta_training": Row(
        "meta_training", "meta_training",
        "Environment steps a second of `MetaTrainer` with its default settings, after a real "
        "warm-up, against the same epochs as a loop over tasks and time steps in plain PyTorch.",
        240,
    ),
    "time_to_475": Row(
        "time_to_475", "time_to_475",
        "Seconds of learning, evaluations not counted, until the mean return is 475: `MetaTrainer` "
        "on unseen plants of the family (half of them with the actuator the wrong way), "
        "Stable-Baselines3 on the one plant of CartPole-v1.", 360,
    ),
    "ssm_vs_gru": Row(
        "sequence", "ssm_vs_gru",
        "Forward, squared loss and backward of `DiagonalSSM` against `torch.nn.GRU`.", 60,
    ),
    "in_context": Row(
        "in_context", "in_context",
        "Environment steps a second of `InContextTrainer`, training included, against the same "
        "training of a `torch.nn.GRU`.", 90,
    ),
    "rollout": Row(
        "acting", "rollout",
        "Steps a second of 512 environments, with a policy and without, against Gymnasium's vector "
        "environments without one.", 60,
    ),
    "scan": Row(
        "sequence", "scan",
        "Forward and backward of the linear recurrence, against other ways to compute it.", 120,
    ),
    "adapt_one": Row(
        "adapting", "adapt_one",
        "`StandardAdapter().adapt` to one plant, over the start of as many empty operations.", 10,
    ),
    "adapt_many": Row(
        "adapting", "adapt_many",
        "`StandardAdapter().adapt_tasks` to a thousand plants at once, over the time for one.", 15,
    ),
    "policy_step": Row(
        "acting", "policy_step",
        "One step of `Policy.actor` for one plant, against eager cells of equal size.", 5,
    ),
    "memory": Row(
        "processes", "memory",
        "Peak memory of second-order meta-training above `import torch`, trained policies, a "
        "process each.", 120,
    ),
    "import": Row(
        "processes", "imports",
        "Wall time of imports and of `--help`, a process each.", 60,
    ),
}  # fmt: skip

TARGETS: dict[str, float] = {
    **{
        f"meta_training/{core}/{name}": target
        for core in ("state_space", "diagonal")
        for name, target in (("cell_by_cell", 15), ("layer_by_layer", 15), ("floor", 2.5))
    },
    "time_to_475/state_space/recurrent_ppo": 5,
    "time_to_475/diagonal/recurrent_ppo": 5,
    "ssm_vs_gru/batch32": 2,
    "in_context/state32": 2,
    "in_context/state128": 2,
    **{
        f"scan/{peer}_{steps}_{shape}": 1 / 1.1
        for peer in ("scan_parallel", "associative_scan", "scan_sequential", "scan_reference")
        for steps in (64, 128, 512, 4096)
        for shape in ("16x8", "1x1")
    },
    "adapt_many/one": 20,
    "import/ssm_metarl": 1.2,
}
"""Measurement's name -> least speed-up, or largest cost over the reference, that is aimed at."""


def run(
    *,
    size: Size = "whole",
    only: Sequence[str] = (),
    out: Path | None = None,
    report: Report | None = None,
    rows: Mapping[str, Row] = ROWS,
    targets: Mapping[str, float] = TARGETS,
) -> dict[str, Any]:
    """Measure rows and write what they came to.

    Args:
        size: See `Settings.size`.
        only: Names of the rows; empty for all.
        out: Folder of the results; None for the package's own (whole runs), or one under ``runs``.
        report: Called with the share that is done, in [0, 1], and what is being measured.
        rows: What there is to measure.
        targets: What is aimed at.

    Returns:
        The JSON object that was written, with ``out`` added.

    Raises:
        ValueError: An unknown row.
    """
    unknown = sorted(set(only) - set(rows))
    if unknown:
        raise ValueError(f"only: expected among {', '.join(rows)}, received {', '.join(unknown)}")
    chosen = {name: row for name, row in rows.items() if not only or name in only}
    report, busy_cores = report or (lambda share, message: None), load()
    total, measured = sum(row.share for row in chosen.values()), []
    starts = accumulate((row.share for row in chosen.values()), initial=0.0)
    for (name, row), start in zip(chosen.items(), starts, strict=False):

        def progress(
            share: float, message: str, name: str = name, row: Row = row, start: float = start
        ) -> None:
            report((start + row.share * min(share, 1.0)) / total, f"{name}: {message}")

        progress(0.0, "starts")
        measured.append(_measure(name, row, Settings(size=size, progress=progress), targets))
    report(1.0, "done")
    folder = out or default_folder(size, only)
    header = {
        "benchmark": "performance",
        "command": "make bench",
        "version": __version__,
        "quick": size != "whole",
        "busy_cores": busy_cores,
        "machine": machine(),
    }
    result = write(measured, header, folder)
    try:
        draw(measured, folder / "performance.png")
    except ModuleNotFoundError as error:
        result["plot"] = f"no picture: {error.name} is not installed"
    return {**result, "out": str(folder)}


def default_folder(size: Size, only: Sequence[str]) -> Path:
    """Where results go that were given no folder: the package's own for nothing but whole runs."""
    if size != "whole":
        return QUICK_OUT
    return PART_OUT if only else RESULTS


def _measure(name: str, row: Row, settings: Settings, targets: Mapping[str, float]) -> RowResult:
    started = time.perf_counter()
    measurements: list[Measurement] = []
    error = None
    try:
        measurements = [replace(m, target=targets.get(m.name)) for m in row.measure(settings)]
    except Exception as problem:
        error = reason(problem)
    seconds = time.perf_counter() - started
    return RowResult(
        name=name, what=row.what, seconds=seconds, measurements=measurements, error=error
    )


def print_table(result: Mapping[str, Any]) -> None:
    """The result on stdout, as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 180)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("row", "measured", "ours", "against", "theirs", "ratio", "floor x", "target"):
        right = title in ("ours", "theirs", "ratio", "floor x")
        table.add_column(title, justify="right" if right else "left", no_wrap=right)
    notes = []
    for row in result["rows"]:
        if row["error"] is not None:
            notes.append(f"{row['name']}: {row['error']}")
        for values in row["measurements"]:
            m = Measurement.from_json(values)
            table.add_row(row["name"], *cells(m)[:-1])
            if m.ours is None or (m.peer and m.ratio is None):
                notes.append(f"{m.name}: {m.note}")
    console.print(table)
    for note in [*notes, *filter(None, [result.get("plot")]), *busy(result)]:
        console.print(note, markup=False)
    console.print(f"written to {result['out']}", markup=False)


def failed(result: Mapping[str, Any]) -> bool:
    """Whether a row has no measurements."""
    return any(row["error"] is not None for row in result["rows"])


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m benchmarks.performance``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="performance", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two minutes instead of twenty")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    arguments = parser.parse_args(argv)

    def report(share: float, message: str) -> None:
        print(f"bench {share:4.0%}  {message}", file=sys.stderr, flush=True)

    try:
        result = run(
            size="quick" if arguments.quick else "whole",
            only=arguments.only,
            out=arguments.out,
            report=report,
        )
    except ValueError as error:
        parser.error(str(error))
    if arguments.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print_table(result)
    return int(failed(result))


if __name__ == "__main__":
    sys.exit(main())
