"""What must be measured in a process of its own: peak memory above ``import torch``.

Place in the flow: started by `processes`, one process a figure. Reads one JSON object from the
command line and prints one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MIN_BUFFER = 0.9
"""Share of the experience buffer that is filled before the peak counts (hybrid)."""


def main() -> None:
    """Measure what the argument asks for."""
    print(json.dumps(peak_of_training(**json.loads(sys.argv[1]))))


def peak_of_training(
    *, model: str | None, epochs: int, training: dict[str, Any]
) -> dict[str, float]:
    """Peak memory of a meta-training above ``import torch``, in bytes.

    Args:
        model: Shipped model whose weights it goes on from, so that episodes are as long as the
            horizon; None starts afresh.
        epochs: Epochs to run; a hybrid one goes on until its buffer is full.
        training: Of `MetaTrainingConfig`.
    """
    import torch  # noqa: F401  (the memory before)

    before = peak_memory()
    from ssm_metarl.checkpoint import load_pretrained
    from ssm_metarl.config import MetaTrainingConfig
    from ssm_metarl.meta_rl.trainer import MetaTrainer

    imports = peak_memory() - before
    trainer = MetaTrainer(MetaTrainingConfig(**training))
    if model is not None:
        trainer.policy.load_state_dict(load_pretrained(model).state_dict())
    hybrid = trainer.config.adaptation_mode == "hybrid"
    steps, ran = 0, 0
    while ran < epochs or (
        hybrid and len(trainer.buffer) < MIN_BUFFER * trainer.config.buffer_size
    ):
        metrics = trainer.run_epoch()
        ran += 1
        steps = max(steps, round(metrics.average_return))
    return {
        "bytes": float(peak_memory() - before),
        "imports": float(imports),
        "epochs": float(ran),
        "buffer": float(len(trainer.buffer)),
        "longest_mean_return": float(steps),
    }


def peak_memory() -> int:
    """The most resident memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, ru_maxrss starts with what the *parent* had when it forked
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
