"""``ssm-metarl bench``: how fast this package is on this machine, against others.

Place in the flow: a command; the work is `benchmarks.performance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssm_metarl.cli.console import Reporter, print_json


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
        from ssm_metarl.benchmarks.performance import failed, print_table, run
        from ssm_metarl.cli.outputs import make_folder

        if self.out is not None:
            make_folder(self.out)
        with Reporter("bench") as reporter:
            result = run(
                size="quick" if self.quick else "whole",
                only=self.only,
                out=self.out,
                report=reporter.update,
            )
        if self.json:
            print_json(result)
        else:
            print_table(result)
        return int(failed(result))
