"""The command line, called in this process or in one of its own, and a model to call it on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.cli import main

BUDGET = (
    "--num_epochs", "4", "--tasks_per_epoch", "4", "--horizon", "40", "--update_epochs", "2",
    "--calibration_tasks", "180",
)  # fmt: skip
"""A training of seconds."""


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object that stdout is."""
        return json.loads(self.out)

    def refusal(self) -> str:
        """The one line that a refused command writes, without the program's name."""
        assert self.code == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("ssm-metarl: ")
        assert "expected" in lines[0] and "received" in lines[0]
        return lines[0].removeprefix("ssm-metarl: ")


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # --help
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command line in a process of its own; none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "ssm_metarl.cli", *map(str, arguments)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    folder: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of ``train`` with a budget of seconds. Read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    process = subprocess.run(
        [sys.executable, "-m", "ssm_metarl.cli", "train", "--out", str(folder), *BUDGET, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    return Trained(folder, Outcome(process.returncode, process.stdout, process.stderr))


@pytest.fixture(scope="session")
def model(trained: Trained) -> Path:
    """The folder of a trained model. Read only."""
    assert trained.outcome.code == 0, trained.outcome.err
    return trained.folder
