"""A training with --reproducible: the same bits whatever kernels the libraries would choose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.checkpoint import load_checkpoint
from ssm_metarl.reproducibility import VARIABLES, _lacking, is_reproducible

TRAINING = (
    "train", "--num_epochs", "2", "--tasks_per_epoch", "4", "--horizon", "40",
    "--calibration_tasks", "0", "--json",
)  # fmt: skip
FLAGS = "flags\t\t: fpu sse2 avx avx2 fma\n"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="x86-64 only"
)


def train(folder: Path, *more: str, **ambient: str) -> subprocess.CompletedProcess[str]:
    """A training in a process of its own, where libraries would choose these kernels."""
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "ssm_metarl.cli", *TRAINING, *more],
        cwd=folder, env=env | ambient, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    bool(_lacking("x86_64", Path("/proc/cpuinfo").read_text())), reason="needs AVX2 and FMA"
)
def test_ambient_kernels_change_nothing(tmp_path: Path) -> None:
    one = train(tmp_path, "--reproducible", "--out", "one")
    other = train(
        tmp_path, "--reproducible", "--out", "other",
        OPENBLAS_CORETYPE="Prescott", ATEN_CPU_CAPABILITY="avx2", NUMBA_CPU_NAME="generic",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert (one.returncode, other.returncode) == (0, 0), one.stderr + other.stderr
    files = [tmp_path / name / "checkpoint.safetensors" for name in ("one", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    made = load_checkpoint(files[0])
    assert made.versions["reproducible"] == "true" and made.card["reproducible"] is True
    assert made.card["command"].endswith(" --reproducible")
    results = [json.loads(run.stdout) for run in (one, other)]
    assert results[0]["arms"] == results[1]["arms"]
    resumed = subprocess.run(
        [sys.executable, "-m", "ssm_metarl.cli", "train", "--resume", "one", "--num_epochs", "3"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert resumed.returncode == 2
    assert resumed.stderr == (
        "ssm-metarl: resume: expected one to be continued with --reproducible, as it was begun, "
        "received a command without it\n"
    )


def test_a_process_that_has_loaded_torch_is_not_replaced(cli: Any) -> None:
    assert cli(*TRAINING, "--reproducible").refusal() == (
        "reproducible: expected a process of its own, as ssm-metarl train --reproducible is, "
        "received one that has loaded torch"
    )


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "lacking"),
    [
        ("x86_64", FLAGS, ""),
        ("AMD64", "", ""),  # no such file: the libraries will find out
        ("x86_64", FLAGS.replace(" avx2 fma", ""), "one without avx2 and fma"),
        ("x86_64", FLAGS.replace(" fma", ""), "one without fma"),
        ("aarch64", "", "aarch64"),
        ("", "", "an unknown one"),
    ],
)
def test_what_a_processor_lacks(machine: str, cpuinfo: str, lacking: str) -> None:
    assert _lacking(machine, cpuinfo) == lacking


def test_every_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert is_reproducible()
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, "other")
        assert not is_reproducible()
        monkeypatch.setenv(name, value)
