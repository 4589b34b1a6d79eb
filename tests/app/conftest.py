"""A server without Gradio for the handlers, and the whole app as a process for everything else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.app_start import free_port
from ssm_metarl.app.config import AppConfig
from ssm_metarl.app.handlers.daemon import Daemon
from ssm_metarl.app.handlers.models import OWN_RUN
from ssm_metarl.app.jobs import Job, JobState
from ssm_metarl.app.server import Server
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.meta_rl.training_run import TrainingRun

ROOT = Path(__file__).parents[2]
AUDIT = Path(__file__).parent / "audit"
COMPILED = Job("compiling", (), Path(), limit_seconds=1.0, state=JobState.DONE)
PATIENCE = 120.0  # seconds; a loaded machine takes its time to import torch and gradio


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """What the handlers share, nothing served; its daemon's lineage does not exist."""
    folder = tmp_path / "server"
    folder.mkdir()
    made = Server(AppConfig(), folder)
    made.daemon = Daemon(tmp_path / "rsi")
    made.kernels.compiling = COMPILED  # the session has, before its first test
    yield made
    made.close()


@pytest.fixture
def visitor(server: Server) -> Visitor:
    """Somebody new."""
    return server.visitors.arrive("")


@pytest.fixture
def swinging(server: Server, visitor: Visitor, tmp_path: Path) -> Visitor:
    """Somebody whose own model, hardly trained, is of a pendulum, and in use."""
    config = MetaTrainingConfig(
        family="pendulum", num_epochs=2, tasks_per_epoch=2, horizon=20, full_horizon_every=0,
        max_support_steps=20, state_dim=4, hidden_dim=8, num_layers=1,
    )  # fmt: skip
    TrainingRun.start(config, tmp_path / "run").train()
    arguments = ("ssm_metarl.cli", "train", "--family", "pendulum", "--max-env-steps", "5000")
    visitor.jobs["training"] = Job(
        "training", arguments, tmp_path, limit_seconds=1.0, state=JobState.DONE
    )
    server.models.choose(visitor, OWN_RUN)
    return visitor


@dataclass(frozen=True)
class App:
    """The app, served by a process of its own on loopback."""

    url: str
    pid: int
    connections: Path
    """Where the process writes whom it connects to, a JSON list a line."""

    def outbound(self) -> list[object]:
        """Connections that left this machine, or tried to."""
        lines = self.connections.read_text().splitlines() if self.connections.exists() else []
        addresses = [json.loads(line) for line in lines]
        return [a for a in addresses if a[0] not in ("127.0.0.1", "::1", "localhost")]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """``python app.py`` as a user starts it, but for the port and the home; no password is set."""
    folder, port = tmp_path_factory.mktemp("app"), free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if k != "SSM_METARL_PASSWORD"},
        "SSM_METARL_HOME": str(folder / "home"),
        "PYTHONPATH": str(AUDIT),
        "SSM_METARL_CONNECTIONS": str(folder / "connections"),
        "TMPDIR": str(folder),
    }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, ROOT / "app.py", "--port", str(port)],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() - started < PATIENCE, (folder / "log").read_text()
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield App(url, process.pid, folder / "connections")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    said = (folder / "log").read_text()
    assert process.returncode == 0 and "Traceback" not in said, said
    assert not list(folder.glob("ssm-metarl-app-*")), "the visitors' runs outlive the server"
