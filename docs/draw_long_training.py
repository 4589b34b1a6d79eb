"""Draw a training that went on for five times as long: `make long-training` calls it.

Reads runs/long/training_log.jsonl; writes docs/images/long_training.png and the evaluations on the
way to docs/results/long_training.json.
"""

import json
from pathlib import Path

from ssm_metarl.evaluation.plots import plot_training_curve, read_log
from ssm_metarl.tasks.cartpole import CARTPOLE

ROOT = Path(__file__).parents[1]
LOG = ROOT / "runs/long/training_log.jsonl"


def main() -> None:
    """Draw and write."""
    plot_training_curve(LOG, ROOT / "docs/images/long_training.png", bounds=CARTPOLE.return_bounds)
    rows = [
        {k: v for k, v in row.items() if k == "env_steps" or k.startswith("eval_")}
        for row in read_log(LOG)
        if "eval_adapted_mean" in row
    ]
    (ROOT / "docs/results/long_training.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
