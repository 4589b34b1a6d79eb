"""``ssm-metarl bench``: how fast this package is on this machine, against others.

Place in the flow: a command; the work is `benchmarks.performance`, in a folder beside the package
that the wheel leaves out. So it is looked for when the command runs, and nothing imports it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ssm_metarl.cli.console import Reporter, print_json

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
