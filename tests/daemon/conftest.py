"""Daemons that do a dummy's work, from a script of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.daemon.lock import (
    lock_is_held,
)
from ssm_metarl.daemon.process import (
    DaemonError,
    start,
    status,
    stop,
)

ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "ssm_metarl.rsi_daemon"]

SCRIPT = """
import os, subprocess, sys, time
from ssm_metarl.rsi_daemon import main

def work(lineage, control, arguments):
    with open(lineage / "lives", "a") as lives:
        lives.write(f"{os.getpid()}\\n")
    worker = None
    if "raise" in arguments:
        raise RuntimeError("the work failed")
    if "worker" in arguments:  # as leaky as can be
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        worker = subprocess.Popen(command, close_fds=False).pid
    print("work begins", *arguments, flush=True)
    while "deaf" in arguments or not control.stopping():
        control.report(
            step=time.monotonic(), paused=control.paused(), worker=worker, cwd=os.getcwd(),
            ack=control.take_ack(),
        )
        time.sleep(0.01)
    return 7 if "seven" in arguments else 0

sys.exit(main(work=work, command=[sys.executable, __file__, "run"]))
"""


class Daemons:
    """Dummies' lineages, whose daemons are ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "dummy.py"
        self.script.write_text(SCRIPT)
        self.command = [sys.executable, str(self.script), "run"]
        self.lineage = folder / "lineage"

    def start(self, *arguments: str) -> bool:
        return start(self.lineage, arguments, self.command)

    def run(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, self.script, action, "--lineage", self.lineage, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def pid(self) -> int:
        pid = status(self.lineage)["pid"]
        assert isinstance(pid, int)
        return pid

    def kill(self) -> None:
        os.kill(self.pid(), signal.SIGKILL)
        wait_for(lambda: not lock_is_held(self.lineage))

    def reported(self, name: str) -> Any:
        return status(self.lineage)["status"].get(name)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    daemons = Daemons(tmp_path)
    yield daemons
    with suppress(DaemonError):
        stop(daemons.lineage, 5)
    if lock_is_held(daemons.lineage) and status(daemons.lineage)["pid"] is not None:
        daemons.kill()


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
