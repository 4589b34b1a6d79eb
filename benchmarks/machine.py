"""What the benchmark ran on: figures mean nothing without it.

Place in the flow: beside `results`. No host name, no path: the figures are published.
"""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from ssm_metarl.reproducibility import processor

LIBRARIES = ("torch", "numba", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS",
            "OPENBLAS_CORETYPE")  # fmt: skip
"""Environment variables that change how fast the libraries are."""


def machine() -> dict[str, Any]:
    """Processor, cores, threads, and versions of what was measured."""
    import torch

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name.replace("-", "_"): _version(name) for name in LIBRARIES},
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def load(seconds: float = 1.0, stat: Path = Path("/proc/stat")) -> float | None:
    """Cores that are in use while this process sleeps; None where the system does not say.

    Args:
        seconds: How long to look.
        stat: Where Linux counts each core's ticks.
    """
    if not stat.is_file():
        return None
    before = _busy_ticks(stat)
    time.sleep(seconds)
    busy, total = (b - a for a, b in zip(before, _busy_ticks(stat), strict=True))
    return busy / total * (os.cpu_count() or 1) if total > 0 else 0.0


def _busy_ticks(stat: Path) -> tuple[int, int]:
    """Ticks of all cores that were not idle, and all ticks."""
    ticks = [int(x) for x in stat.read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # idle, and waiting for a disk


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
