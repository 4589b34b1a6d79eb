"""This version against an earlier commit of this repository, side by side in one run.

Place in the flow: ``python -m benchmarks.earlier COMMIT`` on quiet cores. The commit is checked out
into a worktree beside; each piece of `earlier_work` runs in a process of its own, in turns, in
either tree with the installed packages. A ratio above 1 says that this version is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.earlier_work import TRAININGS

ROOT = Path(__file__).parents[1]
WORK = ("calls", *TRAININGS)


def main() -> None:
    """Measure and print a table, and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--turns", type=int, default=5, help="runs of each tree (default: 5)")
    parser.add_argument("--only", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--out", type=Path, help="also write the samples to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(before), args.commit], check=True)
        try:
            samples = measured({"before": before, "now": ROOT}, args.only, args.turns)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    print("| work | before | now | ratio (range of the turns) |\n|---|--:|--:|--:|")
    for name, of in samples.items():
        print(row(name, of["before"], of["now"]))
    if args.out is not None:
        found = {"commit": args.commit, "seconds": samples}
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def measured(
    trees: dict[str, Path], work: tuple[str, ...], turns: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each piece, tree and turn; a turn before the first compiles."""
    samples: dict[str, dict[str, list[float]]] = {}
    for piece in work:
        for turn in range(turns + 1):
            order = sorted(trees, reverse=turn % 2 == 1)
            for tree in order:
                print(f"{piece}: turn {turn} of {turns}, {tree}", file=sys.stderr, flush=True)
                found = timed(trees[tree], piece)
                for name, seconds in found.items() if turn > 0 else ():
                    samples.setdefault(name, {}).setdefault(tree, []).append(seconds)
    return samples


def timed(tree: Path, piece: str) -> dict[str, float]:
    """One piece of work in one tree."""
    script = Path(__file__).with_name("earlier_work.py")
    done = subprocess.run(
        [sys.executable, str(script), piece],
        env=os.environ | {"PYTHONPATH": str(tree)},
        cwd=tree,
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, before: list[float], now: list[float]) -> str:
    """Medians, and how many times as fast this version is."""
    ratios = [b / n for b, n in zip(before, now, strict=True)]
    middle = [f"{statistics.median(times) * 1e6:.1f} µs" for times in (before, now)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"| {name} | {middle[0]} | {middle[1]} | {ratio} |"


if __name__ == "__main__":
    main()
