"""Put the benchmark's ratios into docs/figures.md: `make bench` calls it, with PYTHONPATH=. set.

Only ratios: a bare time says more about the machine than about the program.
"""

import json
from pathlib import Path

from update_readme import replace_between

from benchmarks.results import Measurement, ratio_text
from ssm_metarl.app.handlers.comparing import RESULTS

ROOT = Path(__file__).parents[1]
LOOP = "MAML as a loop over tasks and time steps"
FLOOR = "the arithmetic alone, at this machine's best rates"
SHOWN = {
    "meta_training/state_space/cell_by_cell": ("meta-training a `StateSpaceModel`", LOOP),
    "meta_training/diagonal/cell_by_cell": ("meta-training a `DiagonalSSM`", LOOP),
    "meta_training/state_space/floor": ("meta-training a `StateSpaceModel`, cost", FLOOR),
    "meta_training/diagonal/floor": ("meta-training a `DiagonalSSM`, cost", FLOOR),
    "time_to_475/state_space/recurrent_ppo": (
        "learning a whole family with a `StateSpaceModel`, until 475 of 500",
        "sb3-contrib RecurrentPPO learning one plant, tuned",
    ),
    "time_to_475/state_space/ppo": ("the same", "Stable-Baselines3 PPO learning one plant, tuned"),
    "time_to_475/diagonal/recurrent_ppo": (
        "the same with a `DiagonalSSM`",
        "RecurrentPPO learning one plant",
    ),
    "ssm_vs_gru/batch32": (
        "training step of a `DiagonalSSM`, 128 wide, T = 128, batch 32",
        "`torch.nn.GRU` of equal parameters",
    ),
    "rollout/state_space_SyncVectorEnv": (
        "512 environments with a `StateSpaceModel` policy",
        "Gymnasium's `SyncVectorEnv` without a policy",
    ),
    "scan/scan_parallel_512_16x8": ("scan, forward and backward, T = 512", "log-depth doubling"),
    "scan/associative_scan_512_16x8": ("the same", "PyTorch's `associative_scan`"),
    "policy_step/eager": ("one step of a policy", "the same in eager PyTorch"),
    "adapt_many/one": ("adapting to 1,000 plants at once, cost", "adapting to one"),
    "import/ssm_metarl": ("`import ssm_metarl`, cost", "`import torch`"),
}
"""Measurement's name -> what the page calls it and its peer."""


def performance_table(results: dict) -> str:
    """The page's rows, as Markdown."""
    found = {m["name"]: m for row in results["rows"] for m in row["measurements"]}
    lines = ["| what | against | ratio |", "|---|---|--:|"]
    for name, (what, against) in SHOWN.items():
        ratio = ratio_text(Measurement.from_json(found[name]))
        lines.append(f"| {what} | {against} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite the page between its marks."""
    results = json.loads((RESULTS / "performance.json").read_text())
    page = ROOT / "docs/figures.md"
    text = replace_between(page.read_text(), "performance", performance_table(results))
    page.write_text(text)


if __name__ == "__main__":
    main()
