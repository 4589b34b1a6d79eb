"""Everything that the README says is run: its commands, its snippets, its numbers."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from ssm_metarl import Environment
from ssm_metarl.benchmarks.results import RESULTS
from ssm_metarl.cli import main
from ssm_metarl.evaluation.report import results_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

# The same commands, with budgets that a test can afford.
SMALL = {
    "train": [
        "--max_env_steps",
        "2000",
        "--tasks_per_epoch",
        "4",
        "--horizon",
        "50",
        "--calibration_tasks",
        "180",
    ],
    "adapt": ["--episodes", "1"],
    "evaluate": ["--num_tasks", "5"],
}


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, "" for none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The ssm-metarl commands of a text, without the program."""
    lines = [line.strip().removeprefix(".venv/bin/") for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("ssm-metarl ")]


def small(command: list[str]) -> list[str]:
    """A command whose budget a test can afford: the last of two equal flags counts."""
    if command[0] == "evaluate" and "--num_tasks" in command:
        at = command.index("--num_tasks")
        command = command[:at] + command[at + 2 :]
    return [*command, *SMALL.get(command[0], [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make demo` has run, and then the README's first training, both small."""
    folder = tmp_path_factory.mktemp("readme")
    recipe = commands(MAKEFILE.split("\ndemo:")[1].split("\n\n")[0])
    assert [command[0] for command in recipe] == ["train", "adapt", "evaluate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in [*recipe, commands(blocks("")[1])[0]]:
            assert main(small(command)) == 0, command
    return folder


def test_the_commands_run_after_the_demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    train, *others = commands(blocks("")[1])
    assert train[0] == "train"
    assert {command[0] for command in others} == {"adapt", "evaluate", "verify", "models"}
    for command in others:
        assert main(small(command)) == 0, command


def test_the_commands_with_a_shipped_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    plant = Environment("cartpole", task={"sign": -1})
    obs, _ = plant.reset(seed=0)
    rows = ["x,x_dot,theta,theta_dot,action"]
    for action in (0, 1, 1, 0, 1, 0, 0, 1):
        rows.append(",".join(map(str, [*obs.tolist(), action])))
        obs, *_ = plant.step(action)
    (folder / "episode.csv").write_text("\n".join(rows))
    shown = commands(blocks("")[2])
    assert [command[0] for command in shown] == ["adapt", "evaluate"]
    assert main(shown[0]) == 0  # as it stands: no simulated episodes to shorten
    assert main(small(shown[1])) == 0


def test_the_demo_writes_its_report(folder: Path) -> None:
    shown = re.search(r"`ssm-metarl (evaluate [^`]*)`", README)[1]
    assert shown in MAKEFILE, "the figures' command is the demo's"
    assert {path.name for path in (folder / "runs/demo/report").iterdir()} >= {
        "report.html",
        "adaptation.png",
        "before_after.gif",
        "training_curve.png",
        "results.json",
    }


def test_the_snippets_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    snippets = blocks("python")
    assert len(snippets) == 2
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})


def test_every_make_target_exists() -> None:
    pages = README + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", pages, flags=re.MULTILINE))
    assert {"demo", "test", "check", "fix"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target


def test_the_numbers_are_those_of_the_committed_results() -> None:
    results = json.loads((ROOT / "docs/results/demo.json").read_text())
    text = between("results: make demo")
    for title, evaluation in results["evaluations"].items():
        assert evaluation["seed"] >= 10_000, "final figures come from seeds from 10,000 on"
        assert f"**{title.capitalize()}**" in text
        assert results_table(evaluation) in text
    seeds = json.loads((ROOT / "docs/results/seeds.json").read_text())
    table = between("seeds")
    for row in seeds:
        arm, ood = (row[split]["arms"]["standard"] for split in ("id", "ood"))
        signs = [row["id"]["by_sign"][sign]["standard"]["worst10"] for sign in ("+1", "-1")]
        numbers = [arm["mean"], *signs, ood["mean"], ood["worst10"]]
        cells = [row["training_seed"], f"{row['env_steps']:,}", *(f"{x:.1f}" for x in numbers)]
        assert "| " + " | ".join(map(str, cells)) + " |" in table
        assert row["env_steps"] <= 1_500_000, "what the README promises"
        assert row["id"]["seed"] >= 10_000 and row["ood"]["seed"] >= 10_000
    assert len(seeds) == 10


def test_the_ratios_are_those_of_the_committed_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    results = json.loads((RESULTS / "performance.json").read_text())
    assert not results["quick"] and not [row for row in results["rows"] if row["error"]]
    table = importlib.import_module("update_performance").performance_table(results)
    assert table in between("performance")


def between(name: str) -> str:
    """The README's text between two marks."""
    return README.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]))
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
