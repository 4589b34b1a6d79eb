"""Run the numerical tests as on other x86-64 processors: `make test-processors`.

What decides the last bits of a result is which kernels OpenBLAS and PyTorch choose, and whether
compiled functions multiply and add in one rounding. Environment variables choose them as other
processors would. One line a cell; the exit code is 1 where a cell failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = (
    *("core", "objectives", "tasks", "env_runner", "test_compiled.py", "test_float32.py"),
    *("adaptation/test_inner_loop.py", "adaptation/test_adapters.py"),
    "adaptation/test_hybrid_adapter.py",
    *("adaptation/test_propensity.py", "adaptation/test_inner_objective.py"),
    *("adaptation/test_change_detector.py", "meta_rl/test_meta_maml.py", "meta_rl/test_trainer.py"),
    *("meta_rl/test_in_context.py", "benchmarks/test_task_loop.py", "benchmarks/test_gru.py"),
    "evaluation/test_least_squares.py",
)
SELECTED = "not slow and not gate and not nightly"

Variables = Mapping[str, str]
AVX2 = ("avx2", "fma")
AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
OPENBLAS = {"": (), "Haswell": AVX2, "Zen": AVX2, "SkylakeX": AVX512}
"""OpenBLAS's kernels, and what they need of a processor; "" for its own choice."""
ATEN = {"": (), "default": (), "avx2": AVX2}
NUMBA: Mapping[str, Variables] = {
    "": {},
    "generic": {  # x86-64 without anything that came later, fused operations above all
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(ROOT / "build/numba-generic"),
    },
}


def missing(*needs: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """What this processor lacks of what kernels need."""
    lines = cpuinfo.read_text().splitlines()
    flags = next(line.split(":")[1].split() for line in lines if line.startswith("flags"))
    return [need for need in needs if need not in flags]


def run(openblas: str, aten: str, numba: str) -> bool:
    """Run the tests in one cell, and print its line; whether they passed."""
    name = f"OpenBLAS {openblas or 'own':9} ATen {aten or 'own':8} Numba {numba or 'own':8}"
    lacks = missing(*OPENBLAS[openblas], *ATEN[aten])
    if lacks:
        print(f"{name} skipped: this processor has no {', '.join(lacks)}", flush=True)
        return True
    chosen = {"OPENBLAS_CORETYPE": openblas, "ATEN_CPU_CAPABILITY": aten}
    env = {name: value for name, value in os.environ.items() if name not in chosen}
    env |= {name: value for name, value in chosen.items() if value} | dict(NUMBA[numba])
    files = [str(ROOT / "tests" / file) for file in FILES]
    options = ["-q", "-p", "no:cacheprovider", "-m", SELECTED]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    passed = done.returncode == 0
    word = "passed" if passed else "FAILED"
    print(f"{name} {word} in {time.perf_counter() - started:.0f} s", flush=True)
    if not passed:
        print(done.stdout[-4000:] + done.stderr[-1000:], flush=True)
    return passed


def main() -> int:
    """Run all cells, as many at once as there are cores; each of Numba's variants compiles once."""
    firsts = [("", "", numba) for numba in NUMBA]
    others = [cell for cell in product(OPENBLAS, ATEN, NUMBA) if cell not in firsts]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
        passed = [ok for cells in (firsts, others) for ok in cores.map(lambda c: run(*c), cells)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
