"""Names, environment ids, files and entry points lead to families, or to one clear line."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.tasks import registry
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.registry import FAMILIES, family_of_env, named_family, registered_families
from ssm_metarl.tasks.task_family import TaskFamily

PLANT = """
import pathlib
from dataclasses import dataclass, replace
from ssm_metarl.tasks.cartpole import CARTPOLE

RUNS = pathlib.Path(__file__).with_suffix(".runs")
RUNS.write_text(RUNS.read_text() + "x" if RUNS.exists() else "x")

@dataclass
class Declared:
    name: "str" = "mine"

FAMILY = replace(CARTPOLE, name=Declared().name, disturbances={"none": lambda tasks: tasks})
OTHER = replace(FAMILY, name="other")
STOLEN = replace(CARTPOLE, name="cartpole", parameters=())
NUMBER = 3
"""


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    path = tmp_path / "my_plant.py"
    path.write_text(PLANT)
    return path


def test_names_and_ids() -> None:
    assert family_of_env("CartPole-v1") is CARTPOLE
    assert family_of_env("cartpole") is CARTPOLE
    assert named_family("cartpole") is CARTPOLE


def test_an_unknown_environment_id_says_how_to_declare_a_family() -> None:
    with pytest.raises(ValueError, match=re.escape("cartpole (CartPole-v1)")) as error:
        family_of_env("Acrobot-v1")
    message = str(error.value)
    assert "received 'Acrobot-v1'" in message
    assert "\n" not in message
    declaration = (
        'TaskFamily.from_gymnasium("Pendulum-v1", parameters={"g": Uniform(5, 15, unit="m/s²")})'
    )
    assert declaration in message
    assert "--family my_plant.py:FAMILY" in message


def test_a_file_is_run_once_and_may_hold_several(
    plant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = named_family(f"{plant}:FAMILY")
    assert isinstance(family, TaskFamily) and family.name == "mine"
    monkeypatch.chdir(plant.parent)
    assert named_family("my_plant.py:FAMILY") is family
    assert named_family("my_plant.py:OTHER").name == "other"
    assert plant.with_suffix(".runs").read_text() == "x"


def test_what_a_checkpoint_names_is_never_run(plant: Path) -> None:
    with pytest.raises(ValueError, match="task family: expected one of cartpole"):
        family_of_env(f"{plant}:FAMILY")
    assert not plant.with_suffix(".runs").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "FAMLY",
            r"name of a TaskFamily .*\(such as CARTPOLE, FAMILY, OTHER, STOLEN\), received",
        ),
        ("", "received ''"),
        ("NUMBER", "NUMBER: expected a TaskFamily, received int"),
        ("STOLEN", "STOLEN: expected a name of its own, received 'cartpole', which the package's"),
    ],
)
def test_a_name_that_is_no_family_of_one_s_own(plant: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        named_family(f"{plant}:{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "expected one that declares a family, received ZeroDivisionError: division by"),
        ("def (:", "received SyntaxError: "),
        ("import no_such_module", "received ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "received SystemExit: 3"),
        ("raise KeyError('a\\nb')", "received KeyError"),
        (
            "from ssm_metarl.tasks.task_family import *\nFAMILY = TaskFamily(name='x')",
            "received TypeError: .*'parameters'",
        ),
        (
            "from ssm_metarl.tasks.task_family import *\n"
            "FAMILY = TaskFamily.from_gymnasium('Pendulum-v1', {'gg': Uniform(1, 2)})",
            "ValueError: parameter 'gg': expected an attribute of Pendulum-v1",
        ),
    ],
)
def test_a_file_that_declares_nothing(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    for _ in range(2):  # and it is not remembered as one that ran
        with pytest.raises(ValueError, match=f"family file {path}: .*{message}") as error:
            named_family(f"{path}:FAMILY")
        assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"expected a Python file, received .*no\.py, which is none"
    ):
        named_family(f"{tmp_path / 'no.py'}:FAMILY")


def test_a_family_of_a_file_goes_to_another_process_whatever_it_holds(plant: Path) -> None:
    family = named_family(f"{plant}:FAMILY")
    tasks = family.sample("id", 3, seed=0)
    assert pickle.loads(pickle.dumps(family)) is family
    (plant.parent / "tasks.pickle").write_bytes(pickle.dumps(tasks))
    code = (
        "import pickle, pathlib; import ssm_metarl.tasks.registry;"
        "tasks = pickle.loads(pathlib.Path('tasks.pickle').read_bytes());"
        "print(tasks.family.name, len(tasks), tasks.family.disturbances['none'](7))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=plant.parent, capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == ("mine 3 7\n", "")
    copy = pickle.loads(pickle.dumps(CARTPOLE))
    assert copy.parameters == CARTPOLE.parameters and copy is not CARTPOLE


OFFERED = {
    "boat": "tests_boat:FAMILY",
    "raft": "tests_boat:FAMILY",
    "broken": "tests_no_such_module:FAMILY",
}


def test_installed_packages_offer_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests_boat.py").write_text(PLANT.replace('"mine"', '"boat"'))
    monkeypatch.syspath_prepend(tmp_path)

    def offered(group: str) -> list[Any]:
        assert group == "ssm_metarl.families"
        return [EntryPoint(name, value, group) for name, value in OFFERED.items()]

    monkeypatch.setattr(registry, "entry_points", offered)
    boat = family_of_env("boat")
    assert boat.name == "boat" and named_family("boat") is boat
    with pytest.raises(
        ValueError, match=r"raft = tests_boat:FAMILY of .*: expected a family of th"
    ):
        family_of_env("raft")
    with pytest.raises(ValueError, match=r"entry point broken .*received ModuleNotFoundError: No"):
        family_of_env("broken")
    with pytest.raises(ValueError, match=r"\(Pendulum-v1\), boat, broken, raft, received 'x'"):
        family_of_env("x")
    known = registered_families()
    assert list(known) == ["cartpole", "cartpole_scrambled", "pendulum", *OFFERED]
    assert known["boat"]() is boat and known["cartpole"]() is CARTPOLE
    del sys.modules["tests_boat"]


def test_a_family_can_be_a_key():
    """What was worked out about one is kept for the next time (`adaptation.plant_prior`)."""
    found = {family: family.name for family in FAMILIES.values()}
    assert {found[family] for family in FAMILIES.values()} == set(FAMILIES)
