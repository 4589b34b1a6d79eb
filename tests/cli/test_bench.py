"""``bench`` runs a folder beside the package, which an installation from a wheel does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssm_metarl.cli import bench

from .conftest import Cli

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["bench", "bench --only scan", "bench adaptation --quick"])
def test_without_the_folder_it_says_what_to_clone(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "benchmarks").mkdir()  # another project's
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    refusal = cli(*command.split()).refusal()
    assert refusal.startswith("bench: expected the folder benchmarks beside the package")
    assert "clone the repository of ssm-metarl" in refusal
    assert [path.name for path in tmp_path.iterdir()] == ["benchmarks"], "nothing is written"


@pytest.mark.parametrize("command", ["bench", "bench adaptation"])
def test_help_needs_no_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    shown = cli(*command.split(), "--help")
    assert shown.code == 0 and f"ssm-metarl {command}" in shown.out and "--out" in shown.out


def test_the_folder_is_found_from_anywhere(tmp_path: Path) -> None:
    """As after ``pip install -e``, which puts the package on the path and not what is beside it."""
    (tmp_path / "ssm_metarl").symlink_to(ROOT / "ssm_metarl")
    code = (
        "import sys; from ssm_metarl.cli.bench import benchmark; "
        "print(any('numba' in name or 'torch' in name for name in sys.modules)); "
        "print(benchmark('settings').__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    heavy, found = done.stdout.splitlines()
    assert (heavy, Path(found)) == ("False", ROOT / "benchmarks/settings.py")
