"""The path of a stranger's plant: thirty lines of theirs, and every command works on them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BUDGET = {"--max-env-steps 300000": "--max-env-steps 4000 --calibration-tasks 0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, where their commands may write."""
    return Path(shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("user") / "examples"))


def commands() -> list[str]:
    """The first block of the page, with a budget of seconds."""
    block = (EXAMPLES / "README.md").read_text().split("```\n")[1]
    for generous, tiny in BUDGET.items():
        assert generous in block
        block = block.replace(generous, tiny)
    return block.splitlines()


def run(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    program, *arguments = line.split()
    command = [sys.executable, *arguments]
    if program == "ssm-metarl":
        command = [sys.executable, "-m", "ssm_metarl.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_plant_is_thirty_lines() -> None:
    assert len((EXAMPLES / "my_plant.py").read_text().splitlines()) <= 30


@pytest.mark.slow
def test_the_page_s_commands_run_in_their_order(folder: Path) -> None:
    check, train, evaluate, record, adapt, again = commands()
    checked = run(folder, f"{check} --json")
    assert checked.returncode == 0 and json.loads(checked.stdout)["passed"]
    for line in (f"{train} --json", f"{evaluate} --num_tasks 4 --json"):
        ran = run(folder, line)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["family"] == "Trolley"
    assert run(folder, record).returncode == 0
    # a model of seconds learns no step that the safeguard keeps
    adapted = run(folder, f"{adapt} --no-rollback --json")
    assert adapted.returncode == 0, adapted.stderr
    assert json.loads(adapted.stdout)["report"]["env_steps"] > 30
    ran = run(folder, f"{again} --num_tasks 4 --json")
    assert ran.returncode == 0, ran.stderr
    assert set(json.loads(ran.stdout)["arms"]) == {"frozen", "random"}
    resumed = run(folder, "ssm-metarl train --resume trolley --family my_plant.py:FAMILY "
                          "--max-env-steps 5000 --json")  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["env_steps"] >= 5000


def test_the_page_s_declarations_are_python() -> None:
    for block in (EXAMPLES / "README.md").read_text().split("```python\n")[1:]:
        compile(block.split("```")[0], "README.md", "exec")
