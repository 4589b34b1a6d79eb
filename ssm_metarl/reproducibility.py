"""Arithmetic that is the same on every x86-64 processor with AVX2: ``--reproducible``.

Place in the flow: below everything; `cli` begins a command again with these variables, before
torch and Numba are loaded, `compiled` compiles accordingly, and checkpoints record it.

Libraries choose their kernels by the processor, and each adds in another order: a training by the
same command differs from the first epoch on. Here all take what every such processor has.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

VARIABLES: Mapping[str, str] = {
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's products, and those inside compiled functions
    "MKL_CBWR": "COMPATIBLE",  # PyTorch's
    "ATEN_CPU_CAPABILITY": "default",  # PyTorch's sums and elementwise functions
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "",
}
NEEDS = ("avx2", "fma")
"""What OpenBLAS's kernels for Haswell use; with fewer it would take others."""


def is_reproducible() -> bool:
    """Whether this process computes the same on every x86-64 processor with AVX2."""
    return all(os.environ.get(name) == value for name, value in VARIABLES.items())


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, as the system names it: published figures are told with it."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def begin_again(cpuinfo: Path = Path("/proc/cpuinfo")) -> NoReturn:
    """Start this process's command again, in its place, with the variables set.

    Raises:
        ValueError: The processor is another one, or the variables would come too late.
    """
    if "torch" in sys.modules:
        raise ValueError(
            "reproducible: expected a process of its own, as ssm-metarl train --reproducible is, "
            "received one that has loaded torch"
        )
    lacking = _lacking(platform.machine(), cpuinfo.read_text() if cpuinfo.is_file() else "")
    if lacking:
        raise ValueError(
            f"reproducible: expected an x86-64 processor with AVX2 and FMA, received {lacking}"
        )
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **VARIABLES})


def _lacking(machine: str, cpuinfo: str) -> str:
    """What speaks against a processor, in words; "" for nothing."""
    if machine.lower() not in ("x86_64", "amd64"):
        return machine or "an unknown one"
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), None)
    without = [] if flags is None else [need for need in NEEDS if need not in flags]
    return f"one without {' and '.join(without)}" if without else ""
