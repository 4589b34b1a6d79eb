"""What the README and its pages say is run: commands, snippets, numbers."""

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from docs.update_readme import results_table
from ssm_metarl import Environment
from ssm_metarl.app.handlers.comparing import RESULTS
from ssm_metarl.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIGURES = (ROOT / "docs/figures.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

PROMISED = 475
"""Mean return in distribution after adapting, on any machine."""

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
    "rsi run": [
        *("--cycles", "1", "--num_candidates", "1", "--train_steps", "2000"),
        *("--screen_pairs", "2", "4", "--confirm_pairs", "4", "--attribution_pairs", "4"),
        *("--canary_pairs", "4", "--batch_pairs", "4"),
    ],
    "rsi audit": ["--num_tasks", "4"],
}


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a language, "" for none; by default the README's."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if kind == language]


def block_with(word: str) -> str:
    """The README's one block of commands that has a word."""
    (found,) = (block for block in blocks("") if word in block)
    return found


def commands(text: str) -> list[list[str]]:
    """The ssm-metarl commands of a text, without the program."""
    lines = [line.strip().removeprefix(".venv/bin/") for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("ssm-metarl ")]


def small(command: list[str]) -> list[str]:
    """A command whose budget a test can afford: the last of two equal flags counts."""
    if command[0] == "evaluate" and "--num_tasks" in command:
        at = command.index("--num_tasks")
        command = command[:at] + command[at + 2 :]
    name = " ".join(command[:2]) if command[0] == "rsi" else command[0]
    return [*command, *SMALL.get(name, [])]


def assert_done(command: list[str]) -> None:
    """Run it, small. A model of seconds may learn no step that `adapt` keeps: exit code 4."""
    assert main(small(command)) in ((0, 4) if command[0] == "adapt" else (0,)), command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make demo` has run, and then the README's first training, both small."""
    folder = tmp_path_factory.mktemp("readme")
    recipe = commands(MAKEFILE.split("\ndemo:")[1].split("\n\n")[0])
    assert [command[0] for command in recipe] == ["train", "adapt", "evaluate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in [*recipe, commands(block_with("ssm-metarl train"))[0]]:
            assert_done(command)
    return folder


def test_the_commands_run_after_the_demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    train, *others = commands(block_with("ssm-metarl train"))
    assert train[0] == "train"
    assert {command[0] for command in others} == {"adapt", "evaluate", "verify", "models"}
    for command in others:
        assert_done(command)


def test_the_commands_with_a_shipped_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    plant = Environment("cartpole", task={"sign": -1})
    obs, _ = plant.reset(seed=0)
    rows = ["x,x_dot,theta,theta_dot,action"]
    for action in (0, 1, 1, 0, 1, 0, 0, 1):
        rows.append(",".join(map(str, [*obs.tolist(), action])))
        obs, *_ = plant.step(action)
    (folder / "episode.csv").write_text("\n".join(rows))
    shown = commands(block_with("episode.csv"))
    assert [command[0] for command in shown] == ["adapt", "evaluate"]
    assert main(shown[0]) == 0  # as it stands: no simulated episodes to shorten
    assert main(small(shown[1])) == 0


def test_the_commands_of_self_improvement(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    block = block_with("ssm-metarl rsi")
    run, audit = commands(block)
    assert [run[1], audit[1]] == ["run", "audit"]
    for command in (run, audit):
        assert main(small(command)) == 0, command
    assert "champion - generation 0: " in capfd.readouterr().out
    script, action, *flags = shlex.split(block.splitlines()[-1])
    usage = subprocess.run([ROOT / script], capture_output=True, text=True, check=False)
    assert usage.returncode == 2 and action in usage.stderr
    assert flags == ["--model", "cartpole"]


def test_the_page_on_self_improvement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = (ROOT / "docs/rsi.md").read_text()
    (snippet,) = blocks("python", page)
    exec(compile(snippet, "rsi.md", "exec"), {"__name__": "page"})
    tables = importlib.import_module("update_rsi")
    rows = json.loads((ROOT / "docs/results/rsi.json").read_text())
    gate = json.loads((ROOT / "docs/results/rsi_gate.json").read_text())
    assert tables.gate_table(gate) in page
    assert tables.lineages_table(rows) in page
    assert tables.short_table(rows) in between("self-improvement")
    assert len(rows) == 10 and all(row["num_tasks"] == 500 for row in rows)


def test_the_demo_writes_its_report(folder: Path) -> None:
    shown = re.search(r"`ssm-metarl (evaluate [^`]*)`", FIGURES)[1]
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
        before = row["id"]["arms"]["frozen"]["mean"]
        numbers = [before, arm["mean"], *signs, ood["mean"], ood["worst10"]]
        cells = [row["training_seed"], f"{row['env_steps']:,}", *(f"{x:.1f}" for x in numbers)]
        assert "| " + " | ".join(map(str, cells)) + " |" in table
        assert row["env_steps"] <= 1_500_000, "what the README promises"
        assert row["id"]["seed"] >= 10_000 and row["ood"]["seed"] >= 10_000
        assert row["processor"] in table
        assert arm["mean"] > PROMISED and 12 < before < 270, "what holds, and what does not"
    assert len(seeds) == 10
    assert f"Processor: {results['processor']}." in text
    for page in (README, FIGURES):
        assert f"more than {PROMISED} of 500 in distribution" in " ".join(page.split())
    assert results["evaluations"]["in distribution"]["arms"]["standard"]["mean"] > PROMISED


@pytest.mark.nightly
def test_the_demo_keeps_its_promise_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The adapted policy's figure; the one before adapting is another on each processor."""
    monkeypatch.chdir(tmp_path)
    train, _, evaluate = commands(MAKEFILE.split("\ndemo:")[1].split("\n\n")[0])
    assert main(train) == 0
    capfd.readouterr()
    without_report = evaluate[: evaluate.index("--report")]
    assert main([*without_report, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["arms"]["standard"]["mean"] > PROMISED


def test_the_ratios_are_those_of_the_committed_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    results = json.loads((RESULTS / "performance.json").read_text())
    assert not results["quick"] and not [row for row in results["rows"] if row["error"]]
    table = importlib.import_module("update_performance").performance_table(results)
    assert table in between("performance")


def test_the_comparison_is_the_committed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    tables = importlib.import_module("update_adaptation")
    result = json.loads((RESULTS / "adaptation.json").read_text())
    assert result["seed"] >= 10_000, "final figures come from seeds from 10,000 on"
    assert (result["seeds"], result["num_tasks"], result["size"]) == (10, 200, "whole")
    assert result["failed"] == [] and result["not_scored"] == []
    assert tables.readme_table(result) in between("comparison", README)
    page = (ROOT / "docs/adaptation.md").read_text()
    for table in (tables.returns_tables, tables.differences_table, tables.steps_table):
        assert table(result) in page
    shown = block_with("bench adaptation").strip()
    assert result["command"].startswith(shown) and "--quick" not in result["command"]


def between(name: str, page: str = FIGURES) -> str:
    """A page's text between two marks."""
    return page.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]


def test_the_pendulums_figures_are_the_committed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    figures = importlib.import_module("update_pendulum")
    rows = json.loads((ROOT / "docs/results/pendulum.json").read_text())
    assert figures.table(rows) in between("pendulum")
    for mode, arm in (("meta_rl", "standard"), ("in_context", "in_context")):
        trainings = [row for row in rows if row["mode"] == mode]
        assert len({row["training_seed"] for row in trainings}) == len(trainings)
        for row in trainings:
            assert row["id"]["seed"] >= 10_000 and row["id"]["num_tasks"] == 200
            assert figures.share(row["id"], arm) >= 0.9


def test_a_newcomer_finds_the_way() -> None:
    lines = README.splitlines()
    python = next(i for i, line in enumerate(lines) if line == "```python")
    limits = next(i for i, line in enumerate(lines) if line == "## What it is not")
    assert python < 40, "the first Python is within one screen of 40 lines"
    assert limits < 75
    assert README.count("\n|---") - README.count("| | |\n|---") <= 2, "one table, and the models"
    for word in ("IQM", "arm", "support", "split", "worst tenth", "headroom"):
        glossary = (ROOT / "docs/glossary.md").read_text()
        assert re.search(rf"\*\*[^*]*{word}[^*]*\*\*", glossary), word


def test_the_page_on_your_plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    snippets = blocks("python", (ROOT / "docs/your_plant.md").read_text())
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "your_plant.md", "exec"), names)
    assert (tmp_path / "runs/mine/checkpoint.safetensors").exists()


PAGES = sorted(
    page
    for folder in (".", "docs", "benchmarks", "examples")
    for page in (ROOT / folder).glob("*.md")
)


@pytest.mark.parametrize("page", PAGES)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
