"""How long the app takes to its first page, and how much memory: a command, not a test.

Place in the flow: of the app, which it starts as a user would. The reference is a process that does
nothing but ``import torch, gradio``.

    python -m benchmarks.app_start [repetitions]
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import psutil

BARE = "import torch, gradio, psutil; print(psutil.Process().memory_info().rss)"
APP = (sys.executable, "-m", "ssm_metarl.cli", "app", "--port")
PATIENCE_SECONDS = 120.0
REPETITIONS = 5


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare_import() -> tuple[float, float]:
    """Seconds and resident MB of importing torch and gradio."""
    started = time.perf_counter()
    printed = subprocess.run([sys.executable, "-c", BARE], capture_output=True, check=True).stdout
    return time.perf_counter() - started, int(printed) / 1e6


def first_page() -> tuple[float, float]:
    """Seconds from starting the app to its page and all that the page is built from; resident MB.

    Raises:
        TimeoutError: There was no page.
    """
    port, started = free_port(), time.perf_counter()
    process = subprocess.Popen([*APP, str(port)], stdout=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started < PATIENCE_SECONDS:
            try:
                for path in ("/", "/config", "/theme.css"):
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                        answer.read()
            except OSError:
                time.sleep(0.02)
                continue
            seconds = time.perf_counter() - started
            return seconds, psutil.Process(process.pid).memory_info().rss / 1e6
        raise TimeoutError(f"app: expected a page within {PATIENCE_SECONDS:g} s, received none")
    finally:
        process.terminate()
        process.wait()


def measure(repetitions: int = REPETITIONS) -> dict[str, Any]:
    """Both, in turns; medians, with the whole range of the seconds."""
    pairs = [(bare_import(), first_page()) for _ in range(repetitions)]
    bare, page = (list(zip(*side, strict=True)) for side in zip(*pairs, strict=True))
    return {
        "repetitions": repetitions,
        "first_page_seconds": statistics.median(page[0]),
        "first_page_range": [min(page[0]), max(page[0])],
        "bare_import_seconds": statistics.median(bare[0]),
        "memory_mb": statistics.median(page[1]),
        "bare_import_mb": statistics.median(bare[1]),
        "memory_above_mb": statistics.median(page[1]) - statistics.median(bare[1]),
    }


def main(argv: Sequence[str]) -> int:
    """Measure, print one JSON object."""
    print(json.dumps(measure(int(argv[0]) if argv else REPETITIONS), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
