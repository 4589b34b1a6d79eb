"""``ssm-metarl bench adaptation``: which adaptation helps, when, and by how much.

Place in the flow: a command; the work is `benchmarks.adaptation`, found as `bench` finds its own.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from ssm_metarl.cli.bench import benchmark
from ssm_metarl.cli.console import Reporter, note, print_json
from ssm_metarl.command_line import command_line

EXIT_INTERRUPTED = 130


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
