"""Put the benchmark's ratios into the README: `make bench` calls it.

Only ratios: a bare time says more about the machine than about the program.
"""

import json
from pathlib import Path

from update_readme import replace_between

from ssm_metarl.benchmarks.results import RESULTS, Measurement, ratio_text

ROOT = Path(__file__).parents[1]
SHOWN = {
    "meta_training/state_space/cell_by_cell": "meta-training a `StateSpaceModel` (steps a second)",
    "meta_training/diagonal/cell_by_cell": "meta-training a `DiagonalSSM`",
    "meta_training/state_space/floor": "the same, `StateSpaceModel`, over its floor",
    "time_to_475/state_space/recurrent_ppo": "seconds to 475: `StateSpaceModel`, a whole family",
    "time_to_475/diagonal/recurrent_ppo": "seconds to 475: `DiagonalSSM`, a whole family",
    "ssm_vs_gru/batch32": "a training step of `DiagonalSSM`, 128 wide, T = 128, batch 32",
    "rollout/state_space_SyncVectorEnv": "512 environments with a `StateSpaceModel` policy",
    "scan/scan_parallel_512_16x8": "scan, forward and backward, T = 512",
    "adapt_one/floor": "adapting to one plant, over the launch of as many empty operations",
    "adapt_many/one": "adapting to 1,000 plants at once, over one",
    "import/ssm_metarl": "`import ssm_metarl`, over `import torch`",
}
"""Measurement's name -> what the README calls it."""
PEERS = {
    "task loop, cell by cell": "MAML as a loop over tasks and time steps",
    "floor": "the arithmetic alone, at this machine's best rates",
    "RecurrentPPO": "sb3-contrib RecurrentPPO, on one plant only",
    "SyncVectorEnv": "Gymnasium's `SyncVectorEnv` without one",
}


def performance_table(results: dict) -> str:
    """The README's rows, as Markdown."""
    found = {m["name"]: m for row in results["rows"] for m in row["measurements"]}
    lines = ["| what | against | ratio |", "|---|---|--:|"]
    for name, what in SHOWN.items():
        m = Measurement.from_json(found[name])
        lines.append(f"| {what} | {PEERS.get(m.peer, f'`{m.peer}`')} | {ratio_text(m)} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite the README between its marks."""
    results = json.loads((RESULTS / "performance.json").read_text())
    readme = ROOT / "README.md"
    text = replace_between(readme.read_text(), "performance", performance_table(results))
    readme.write_text(text)


if __name__ == "__main__":
    main()
