"""Command lines: which command, which flags, and what a mistake is told."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ssm_metarl.cli.adapt import Adapt
from ssm_metarl.cli.evaluate import Evaluate
from ssm_metarl.cli.parsing import COMMANDS, parse
from ssm_metarl.cli.policy_gradient import TrainPolicyGradient
from ssm_metarl.cli.train import Train
from ssm_metarl.command_line import changed, command_line
from ssm_metarl.version import __version__

from .conftest import Cli

MISTAKES = {
    "trian": "command: expected one of train, adapt, evaluate, families, verify, models, bench, "
    "app, rsi, received 'trian'",
    "--json": "command: expected one of train, adapt, evaluate, families, verify, models, bench, "
    "app, rsi, received '--json'",
    "train --tasks_per_epoc 3": "train: expected a flag that ssm-metarl train --help lists, "
    "received --tasks_per_epoc; did you mean --tasks-per-epoch?",
    "verify --num_tasks=3": "verify: expected a flag that ssm-metarl verify --help lists, "
    "received --num_tasks=3",
    "train extra": "arguments: expected flags only, received extra",
    "train --json=yes": "arguments: expected flags only, received yes",
    "evaluate": "--model: expected a value, received none (or --compare A B)",
    "evaluate --model": "--model: expected a value, received none",
    "train --num_epochs": "--num-epochs: expected a value, received none",
    "train --num_epochs abc": "--num-epochs: expected a whole number or None, received 'abc'",
    "train --seed 1.5": "--seed: expected a whole number, received '1.5'",
    "train --outer_lr=fast": "--outer-lr: expected a number, received 'fast'",
    "evaluate --model m --adapt_lr x": "--adapt-lr: expected a number or None, received 'x'",
    "train --core lstm": "--core: expected one of 'diagonal', 'state_space', received 'lstm'",
    "train --mode rl": (
        "--mode: expected one of 'meta_rl', 'in_context', 'both', 'policy_gradient', received 'rl'"
    ),
    "train --mode": "--mode: expected a value, received none",
    "train --seed --json": "--seed: expected a value, received none",
    "train --seed 3 4": "arguments: expected flags only, received 4",
    "adapt": "--model: expected a value, received none",
    "evaluate --compare one": "--compare: expected 2 of: text or None, received 'one'",
    "train --tasks_per_epoch 0": "tasks_per_epoch: expected at least 1, received 0",
    "train --outer_lr nan": "outer_lr: expected a number above 0, received nan",
    "train --mode policy_gradient --lr -1": "lr: expected a number above 0, received -1.0",
    "evaluate --model m --num_tasks 0": "num_tasks: expected at least 1, received 0",
    "adapt --model m --support_steps 0": "support_steps: expected at least 1, received 0",
}


@pytest.mark.parametrize("columns", [40, 300])
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli(*line.split()).refusal() == MISTAKES[line]


def test_a_long_word_is_not_cut_on_a_narrow_terminal(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    word = "wrong-" * 25
    assert cli("train", "--core", word).refusal().endswith(f"received '{word}'")
    assert cli("train", "--seed", word).refusal().endswith(f"received '{word}'")


def test_mistakes_leave_the_terminal_width_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with pytest.raises(ValueError):
        parse(["train", "--core", "lstm"])
    assert "COLUMNS" not in os.environ


def test_underscores_and_hyphens_are_the_same() -> None:
    underscores = parse(["train", "--num_epochs", "3", "--env_name", "CartPole-v1", "--seed=4"])
    assert underscores == parse(["train", "--num-epochs=3", "--family", "CartPole-v1", "--seed=4"])
    assert underscores == Train(num_epochs=3, family="CartPole-v1", seed=4)


def test_values_have_the_types_that_are_declared() -> None:
    line = "--seed -1 --gamma 1 --no_memory --memory --horizon=9 --max_env_steps None --out None"
    train = parse(["train", *line.split()])
    assert train == Train(seed=-1, gamma=1.0, horizon=9)
    assert (type(train.seed), type(train.gamma)) == (int, float)
    evaluated = parse(["evaluate", "--seed", "1", "--compare", "1", "None", "--seed", "2"])
    assert evaluated == Evaluate(compare=("1", "None"), seed=2), "the last one counts"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ("", Train),
        ("--mode meta_rl", Train),
        ("--mode policy_gradient", TrainPolicyGradient),
        ("--seed 1 --mode=policy_gradient", TrainPolicyGradient),
        ("--mode meta_rl --mode policy_gradient", TrainPolicyGradient),
        ("--mode policy_gradient --mode meta_rl", Train),
    ],
)
def test_the_mode_chooses_the_training(arguments: str, kind: type) -> None:
    assert type(parse(["train", *arguments.split()])) is kind


def test_documented_commands_parse() -> None:
    meta = "--mode meta_rl --env_name CartPole-v1 --num_epochs 100 --tasks_per_epoch 5"
    train = parse(["train", *meta.split(), "--inner_lr", "0.01", "--outer_lr", "0.001"])
    assert isinstance(train, Train)
    assert (train.num_epochs, train.inner_lr, train.outer_lr) == (100, 0.01, 0.001)
    sizes = "--state_dim 16 --hidden_dim 24 --adaptation_steps 2 --adaptation_mode hybrid"
    train = parse(["train", *sizes.split()])
    assert isinstance(train, Train)
    assert (train.state_dim, train.hidden_dim, train.adaptation_steps) == (16, 24, 2)
    single_task = "--mode policy_gradient --env_name CartPole-v1 --num_episodes 200"
    single = parse(["train", *single_task.split()])
    assert single == TrainPolicyGradient(env_name="CartPole-v1", num_episodes=200)


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("train", Train(num_epochs=3, first_order=True, out=Path("a folder/x"))),
        ("adapt", Adapt(model="m", task='{"force": 7, "sign": -1}', adapt_lr=0.5)),
        ("evaluate", Evaluate(model="it's", split="ood", num_adapt_steps=0, report=Path("r"))),
        ("train --mode policy_gradient", TrainPolicyGradient(lr=0.5)),
    ],
)
def test_a_recorded_command_means_the_same_again(command: str, settings: object) -> None:
    program, *arguments = shlex.split(command_line(command, settings))
    assert program == "ssm-metarl"
    assert parse(arguments) == settings


def test_json_is_no_part_of_a_recorded_command() -> None:
    assert command_line("train", Train(seed=1, json=True)) == "ssm-metarl train --seed 1"
    assert changed(Train(seed=1, json=True)) == {"seed": 1, "json": True}


def test_the_overview_names_every_command(cli: Cli) -> None:
    overview = cli()
    assert overview.code == 0 and overview.err == ""
    for name in COMMANDS:
        assert f"\n  {name} " in overview.out
    assert "policy_gradient" in overview.out and '{"force": 7, "sign": -1}' in overview.out
    assert cli("--help") == cli("-h") == overview


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_flags(cli: Cli, name: str) -> None:
    outcome = cli(name, "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert f"usage: ssm-metarl {name}" in outcome.out
    assert "--json " in outcome.out and "--no-json" not in outcome.out


def test_each_mode_has_its_own_help(cli: Cli) -> None:
    assert "--num-episodes" in cli("train", "--mode", "policy_gradient", "--help").out
    assert "--num-episodes" not in cli("train", "--help").out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"ssm-metarl {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--bogus"]])
def test_reading_a_command_line_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom ssm_metarl.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'matplotlib', 'safetensors'} & set(sys.modules)\n"
        "assert 'tyro' in sys.modules\nassert not heavy, heavy\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_main_py_is_train() -> None:
    main_py = Path(__file__).parents[2] / "main.py"
    process = subprocess.run(
        [sys.executable, str(main_py), "--mode", "meta_rl", "--num_epoch", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.endswith("received --num_epoch; did you mean --num-epochs?\n")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ssm_metarl.cli", "train", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
