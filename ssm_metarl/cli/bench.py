"""``ssm-metarl bench``: how fast this package is; ``bench adaptation``: which adaptation helps.

Place in the flow: two commands; the work is `benchmarks.performance` and `.adaptation`, in a folder
beside the package that the wheel leaves out: looked for when a command runs, imported by nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ssm_metarl.cli.console import Reporter, note, print_json
from ssm_metarl.command_line import command_line

EXIT_INTERRUPTED = 130
ROOT = Path(__file__).resolve().parents[2]
"""Of a checkout."""


def benchmark(module: str) -> ModuleType:
    """A module of the folder ``benchmarks`` beside the package.

    Raises:
        ValueError: There is no such folder: the package was installed from a wheel.
    """
    if not (ROOT / "benchmarks" / "performance.py").is_file():
        raise ValueError(
            "bench: expected the folder benchmarks beside the package, received an installation "
            "without it; clone the repository of ssm-metarl, and there: pip install -e '.[bench]'"
        )
    if str(ROOT) not in sys.path:  # the workers that a benchmark spawns inherit it
        sys.path.insert(0, str(ROOT))
    return import_module(f"benchmarks.{module}")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure how fast the package is on this machine, against other libraries.

    Whole, it takes twenty minutes on two cores, and nothing else should run beside it.
    """

    quick: bool = False
    """Two minutes: few repetitions, short caps. Figures to look at, not to publish."""
    only: tuple[str, ...] = ()
    """Rows to measure, such as meta_training scan; all by default."""
    out: Path | None = None
    """Folder of the results; None for the package's own (a whole run), or one under runs."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Measure; exit code 1 where a row could not be measured."""
        from ssm_metarl.cli.outputs import make_folder

        performance = benchmark("performance")
        if self.out is not None:
            make_folder(self.out)
        with Reporter("bench") as reporter:
            result = performance.run(
                size="quick" if self.quick else "whole",
                only=self.only,
                out=self.out,
                report=reporter.update,
            )
        if self.json:
            print_json(result)
        else:
            performance.print_table(result)
        return int(performance.failed(result))


@dataclass(frozen=True, kw_only=True)
class BenchAdaptation:
    """Compare all ways to adapt: train every model on every seed, and score them on unseen tasks.

    Whole, it takes two hours on two cores. Ctrl-C stops it; the same command goes on from there.
    """

    families: tuple[str, ...] = ()
    """Task families; all that are compared by default."""
    seeds: int = 10
    """Training seeds 0, 1, 2, ... of every model."""
    num_tasks: int = 200
    """Held-out tasks of a split."""
    seed: int = 30_000
    """Names the tasks and episodes. Seeds from 10,000 on are for final figures."""
    quick: bool = False
    """Two seeds trained next to nothing, on a few tasks: to see the command at work."""
    work: Path = Path("runs/adaptation")
    """Folder of models and scores. What is there is not computed again."""
    out: Path | None = None
    """Folder of the results; None for WORK/results."""
    workers: int | None = None
    """Processes, of one thread each; None for one a core."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Compare; exit code 1 where something could not be computed."""
        from ssm_metarl.cli.outputs import make_folder, only_writer_of

        comparison = benchmark("adaptation.run")
        if find_spec("matplotlib") is None:  # said now, not after two hours
            raise ValueError(
                "bench adaptation: expected matplotlib, to draw the results, received an "
                "installation without; pip install 'ssm-metarl[report]'"
            )
        plan = comparison.Plan(
            families=self.families or tuple(comparison.RECIPES),
            seeds=2 if self.quick else self.seeds,
            protocol=comparison.Protocol(
                num_tasks=8 if self.quick else self.num_tasks,
                seed=self.seed,
                episodes=2 if self.quick else comparison.Protocol.episodes,
            ),
            size="quick" if self.quick else "whole",
        )
        work = self.work / "quick" if self.quick else self.work
        out = self.out or work / "results"
        with contextlib.ExitStack() as held:
            for folder in dict.fromkeys((work, out)):
                make_folder(folder)
                held.enter_context(only_writer_of(folder))
            try:
                with Reporter("bench adaptation") as reporter:
                    workers = self.workers or os.cpu_count() or 1
                    result = comparison.run(plan, work, workers=workers, report=reporter.update)
            except KeyboardInterrupt:
                note(
                    f"ssm-metarl: stopped; what is in {work} stays, the same command goes on from "
                    f"there"
                )
                return EXIT_INTERRUPTED
            command = command_line("bench adaptation", replace(self, workers=None, out=None))
            result = {"command": command, **result}
            comparison.write(result, out)
        if self.json:
            print_json(result)
        else:
            print(comparison.as_markdown(result))
            print(f"written to {out}")
        return int(bool(result["failed"]))
