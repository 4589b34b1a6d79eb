"""``families``, ``families check``, and a family of one's own file in every command."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.checkpoint import FILE_NAME, load_checkpoint
from ssm_metarl.cli import main
from ssm_metarl.cli.families import described, in_words, line
from ssm_metarl.evaluation.contract import Finding
from ssm_metarl.tasks import registry
from ssm_metarl.tasks.task_family import TaskFamily

from .conftest import Cli

PLANT = """
import gymnasium, numpy as np
from ssm_metarl.tasks.task_family import Choice, TaskFamily, Uniform

class Trolley(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    broken = False

    def __init__(self):
        self.motor, self.colour = 1.0, 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        if Trolley.broken:
            raise RuntimeError("the belt\\ntore")
        speed = self.state[1] + 0.1 * self.motor * action[0]
        self.state = np.array([self.state[0] + 0.1 * speed, speed], np.float32)
        return self.state, 1 - min(abs(float(self.state[0])), 1), False, False, {}

def declare(parameters, **fields):
    return TaskFamily.from_gymnasium(
        Trolley, parameters, max_episode_steps=20, obs_names=("place", "speed"), time_step=0.1,
        return_bounds=(0, 20), **fields)

FAMILY = declare({"motor": Uniform(0.5, 2, unit="m/s^2")}, name="test_trolley")
CHANGED = declare({"motor": Uniform(0.5, 3, unit="m/s^2")}, name="test_trolley")
PAINTED = declare({"colour": Uniform(0.5, 3)}, name="test_painted")
"""
TINY = (
    "--num_epochs",
    2,
    "--tasks_per_epoch",
    2,
    "--horizon",
    15,
    "--hidden_dim",
    8,
    "--state_dim",
    8,
)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plant") / "trolley.py"
    path.write_text(PLANT)
    return path


@pytest.fixture(scope="module")
def trained(plant: Path) -> Path:
    """A training of moments. Read only."""
    out = plant.parent / "run"
    flags = ("--out", out, *TINY, "--calibration_tasks", 0, "--json")
    assert main(["train", "--family", f"{plant}:FAMILY", *map(str, flags)]) == 0
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_list_describes_every_family(cli: Cli) -> None:
    rows = {row["name"]: row for row in cli("families", "--json").json["families"]}
    assert list(rows) == ["cartpole", "cartpole_scrambled", "pendulum"]
    pendulum = rows["pendulum"]
    assert pendulum["observations"][2] == {"name": "theta_dot", "unit": "rad/s"}
    assert pendulum["actions"] == {"kind": "continuous", "dim": 1, "low": -2.0, "high": 2.0}
    assert (pendulum["time_step"], pendulum["horizon"]) == (0.05, 200)
    sign = next(p for p in pendulum["parameters"] if p["name"] == "sign")
    assert (sign["category"], sign["id"]) == (True, [-1.0, 1.0])
    gain = next(p for p in pendulum["parameters"] if p["name"] == "gain")
    assert (gain["id"], gain["ood"]) == ([[0.7, 1.4]], [[0.5, 0.7], [1.4, 1.8]])
    text = cli("families").out
    for name in rows:
        assert f"{name}: " in text
    assert "  episodes      at most 500 steps of 0.02 s" in text
    assert "  parameter     force: 5 to 15 N" in text


def test_a_family_of_an_installed_package_that_fails_is_named_among_the_others(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    entry = EntryPoint("lost", "tests_lost:FAMILY", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    rows = cli("families", "--json").json["families"]
    assert [row["name"] for row in rows][-2:] == ["pendulum", "lost"]
    assert "No module named 'tests_lost'" in rows[-1]["error"]
    assert "No module named 'tests_lost'" in cli("families").out


def test_check_says_what_it_found_and_fails_where_something_is_wrong(cli: Cli, plant: Path) -> None:
    passed = cli("families", "check", f"{plant}:FAMILY", "--json")
    assert (passed.code, passed.json["family"], passed.json["passed"]) == (0, "test_trolley", True)
    found = {check["check"]: check["verdict"] for check in passed.json["checks"]}
    assert (found["steps"], found["parameter motor"], found["experts"]) == ("ok", "ok", "unchecked")
    failed = cli("families", "check", f"{plant}:PAINTED")
    assert failed.code == 1
    (wrong,) = [row for row in failed.out.splitlines() if " wrong " in row]
    assert wrong.startswith("parameter colour") and "inert: no step reads it" in wrong
    assert failed.out.endswith("test_painted: 1 of 10 checks failed\n")
    assert line(Finding("a", "ok")) == "a                      ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("families check", "families check: expected FAMILY, received none"),
        ("families check nowhere", "task family: expected one of cartpole (CartPole-v1)"),
        ("families check nowhere.py:X", "family file: expected a Python file, received nowhere.py"),
        ("families check {plant}:X", "expected the name of a TaskFamily in it (such as FAMILY, "),
        ("families --jsn", "families: expected a flag that ssm-metarl families --help lists"),
        ("train --family {plant}:X", "expected the name of a TaskFamily in it"),
        ("train --mode in_context --family nowhere.py:X", "family file: expected a Python file"),
        ("train --mode policy_gradient --family nowhere.py:X", "family file: expected a Python"),
        ("evaluate --model cartpole --family nowhere.py:X", "family file: expected a Python file"),
        ("adapt --model cartpole --family nowhere.py:X", "family file: expected a Python file"),
        ("verify --model cartpole --family nowhere.py:X", "family file: expected a Python file"),
        ("rsi run --model cartpole --family nowhere.py:X --lineage x", "family file: expected a"),
        ("verify --model cartpole --family {plant}:FAMILY", "expected one for test_trolley"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(cli: Cli, plant: Path, arguments: str, message: str) -> None:
    assert message in cli(*arguments.format(plant=plant).split()).refusal()


def test_a_model_of_it_is_opened_by_every_command(
    cli: Cli, plant: Path, run: Path, tmp_path: Path
) -> None:
    family = ("--family", f"{plant}:FAMILY")
    trained = load_checkpoint(run)
    assert trained.training["family"] == "test_trolley"
    assert str(plant) not in str(trained.training)  # it names no code
    few = ("--num_tasks", 2, "--episodes_per_task", 1)
    for command in (
        ("evaluate", *few),
        ("verify",),
        ("adapt", "--out", tmp_path / "x.safetensors"),
    ):
        refusal = cli(*command, "--model", run).refusal()
        assert "received 'test_trolley'; hand it over" in refusal
        assert "--family my_plant.py:FAMILY" in refusal
        changed = cli(*command, "--model", run, "--family", f"{plant}:CHANGED").refusal()
        assert "expected 'test_trolley' as the model was trained on it" in changed
    result = cli("evaluate", "--model", run, *few, *family, "--json").json
    assert (result["family"], result["num_tasks"]) == ("test_trolley", 2)
    assert cli("verify", "--model", run, *family, "--json").json["matches_card"] is True
    compared = cli("evaluate", "--compare", run, run, *few, *family, "--json")
    assert compared.json["family"] == "test_trolley"


def test_it_adapts_from_a_log_and_from_a_task(
    cli: Cli, plant: Path, run: Path, tmp_path: Path
) -> None:
    family = ("--family", f"{plant}:FAMILY", "--no_rollback", "--json")
    place, speed = 0.5, 0.0
    with open(tmp_path / "log.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["place", "speed", "action"])
        for t in range(30):
            push = (-1) ** (t // 3)
            rows.writerow([place, speed, push])
            speed += 0.12 * push
            place += 0.1 * speed
    for what in (("--data", "log.csv"), ("--task", '{"motor": 1.2}')):
        adapted = tmp_path / f"{what[0][2:]}.safetensors"
        outcome = cli("adapt", "--model", run, *what, *family, "--out", adapted)
        assert outcome.code == 0, outcome.err
        assert outcome.json["family"] == "test_trolley"
        assert outcome.json["report"]["num_steps"] == 1
        evaluated = cli("evaluate", "--model", adapted, "--num_tasks", 2, *family[:2], "--json")
        assert evaluated.json["family"] == "test_trolley"


def test_it_resumes_and_refuses_another_declaration(cli: Cli, plant: Path, run: Path) -> None:
    before = (run / FILE_NAME).read_bytes()
    more = ("train", "--resume", run, "--num_epochs", 3)
    assert "'test_trolley'; hand it over" in cli(*more).refusal()
    assert "as it was declared" in cli(*more, "--family", f"{plant}:CHANGED").refusal()
    assert (run / FILE_NAME).read_bytes() == before
    resumed = cli(*more, "--family", f"{plant}:FAMILY", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["epochs"] == 3


def test_every_mode_trains_on_it(cli: Cli, plant: Path, tmp_path: Path) -> None:
    family = ("--family", f"{plant}:FAMILY", "--json")
    sizes = ("--num_epochs", 1, "--tasks_per_epoch", 2, "--hidden_dim", 8, "--state_dim", 8)
    trial = ("--steps_per_epoch", 16, "--sequence_steps", 16, "--minibatches", 2)
    context = cli("train", "--mode", "in_context", *family, *sizes, *trial, "--out", "context")
    assert context.code == 0, context.err
    assert context.json["family"] == "test_trolley"
    both = cli("train", "--mode", "both", *family, *TINY, "--calibration_tasks", 0, "--out", "both")
    assert both.code == 0, both.err
    plain = ("train", "--mode", "policy_gradient", *family, "--num_episodes", 4, "--out", "plain")
    assert cli(*plain).json["episodes"] == 4
    evaluated = cli("evaluate", "--model", "plain", *family, "--num_tasks", 2).json
    assert evaluated["family"] == "test_trolley"


def test_an_environment_that_breaks_is_one_line_and_nothing_is_lost(
    cli: Cli, plant: Path, run: Path
) -> None:
    family = registry.named_family(f"{plant}:FAMILY")
    kind: Any = family.plant.make  # type: ignore[union-attr]
    before = (run / FILE_NAME).read_bytes()
    kind.broken = True
    try:
        for code, *command in (
            (2, "train", "--resume", run, "--num_epochs", 5, "--family"),
            (2, "evaluate", "--model", run, "--num_tasks", 2, "--family"),
            (1, "families", "check"),
        ):
            outcome = cli(*command, f"{plant}:FAMILY")
            assert outcome.code == code
            said = outcome.out if code == 1 else outcome.err
            assert "environment Trolley: step: expected what Gymnasium's interface says, " in said
            assert "RuntimeError: the belt tore" in said and "Traceback" not in said
    finally:
        kind.broken = False
    assert (run / FILE_NAME).read_bytes() == before


@pytest.mark.slow
def test_it_improves_itself(cli: Cli, plant: Path, run: Path, tmp_path: Path) -> None:
    family = ("--family", f"{plant}:FAMILY")
    begin = ("rsi", "run", "--model", run, "--lineage", "lineage", "--cycles", 1, "--workers", 1)
    small = (
        "--num_candidates", 1, "--train_steps", 200, "--screen_pairs", 2, "--confirm_pairs", 8,
        "--attribution_pairs", 4, "--canary_pairs", 4, "--batch_pairs", 4,
    )  # fmt: skip
    assert "received 'test_trolley'" in cli(*begin, *small).refusal()
    outcome = cli(*begin, *small, *family, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["generation"] == 1
    out = (
        "rsi",
        "export",
        "--lineage",
        "lineage",
        "--calibration_tasks",
        0,
        "--out",
        "c.safetensors",
    )
    assert "--family my_plant.py:FAMILY" in cli(*out).refusal()
    assert "'test_trolley' as in the lineage" in cli(*out, "--family", "cartpole").refusal()
    assert cli(*out, *family, "--json").json["generation"] == 0


def test_words_of_a_family_that_knows_little(plant: Path) -> None:
    bare = TaskFamily.from_gymnasium("Pendulum-v1", {}, max_episode_steps=30)
    row = described(bare)
    assert (row["time_step"], row["horizon"], row["parameters"]) == (None, 30, [])
    assert in_words(row).splitlines() == [
        "Pendulum-v1: Pendulum-v1",
        "  observations  obs_0, obs_1, obs_2",
        "  actions       1 in [-2.0, 2.0]",
        "  episodes      at most 30 steps",
    ]
