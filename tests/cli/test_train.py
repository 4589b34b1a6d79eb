"""``train``: what it leaves behind, how it stops, how it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssm_metarl.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, load_model
from ssm_metarl.cli.outputs import free_folder
from ssm_metarl.cli.parsing import parse
from ssm_metarl.cli.train import Train
from ssm_metarl.command_line import command_line
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.meta_rl.trainer import MetaMetrics, MetaTrainer
from ssm_metarl.meta_rl.training_run import LOG_NAME
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.training import train

from .conftest import BUDGET, Cli, Trained

Start = Callable[..., subprocess.Popen[str]]
TINY = (
    "--tasks_per_epoch", 2, "--horizon", 20, "--full_horizon_every", 0, "--update_epochs", 1,
    "--calibration_tasks", 0,
)  # fmt: skip
GAMMA = MetaTrainingConfig().gamma
ENDLESS = ("--update_epochs", 1_000_000, "--max_env_steps", 1_000_000)
"""An epoch that does not end within a test."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short evaluation at the end of a training."""
    monkeypatch.setattr("ssm_metarl.training.FINAL_TASKS", 3)


def test_stdout_is_one_json_object_and_progress_goes_to_stderr(trained: Trained) -> None:
    result = trained.outcome.json
    assert {"arms", "paired", "epochs", "env_steps", "model"} <= result.keys()
    assert result["epochs"] == 4
    assert result["model"] == str(trained.folder)
    lines = trained.outcome.err.splitlines()
    assert lines[0] == f"training in {trained.folder}"
    assert any(line.startswith("meta-training 100%") for line in lines)
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_the_folder_holds_log_and_checkpoint(trained: Trained) -> None:
    rows = [json.loads(line) for line in (trained.folder / LOG_NAME).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    documented = {"meta_loss", "average_return", "recent_return", "buffer_size", "env_steps"}
    assert documented <= rows[0].keys()
    assert rows[-1]["env_steps"] == trained.outcome.json["env_steps"]
    checkpoint = load_checkpoint(trained.folder)
    assert checkpoint.counters["epoch"] == 4
    assert checkpoint.card["verification"]["seed"] == 0


def test_the_recorded_command_is_the_training(trained: Trained) -> None:
    command = load_checkpoint(trained.folder).card["command"]
    assert command.startswith("ssm-metarl train ")
    again = parse(command.split()[1:])
    assert isinstance(again, Train)
    assert again == parse(["train", *BUDGET])


@pytest.mark.usefixtures("quick")
def test_the_same_seed_gives_the_same_result(cli: Cli, trained: Trained) -> None:
    again = cli("train", "--out", "again", *BUDGET)
    assert again.code == 0
    first, second = (load_checkpoint(folder) for folder in (trained.folder, "again"))
    assert same_tensors(first, second)
    assert "adapted" in again.out and "difference" in again.out
    assert again.out.endswith("model: again\n")


def test_python_does_what_the_command_line_does(trained: Trained, tmp_path: Path) -> None:
    command = parse(["train", *BUDGET])
    assert isinstance(command, Train)
    result = train(command.settings(), tmp_path / "run").result
    one, other = load_checkpoint(trained.folder), load_checkpoint(tmp_path / "run")
    assert same_tensors(one, other)
    assert (one.card, one.training) == (other.card, other.training)
    assert one.calibration == other.calibration
    differ = {"model", "peak_memory_mb"}
    printed = {n: v for n, v in trained.outcome.json.items() if n not in differ}
    assert {n: v for n, v in json.loads(json.dumps(result)).items() if n not in differ} == printed


def same_tensors(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two checkpoints hold the same bits."""
    return first.tensors.keys() == second.tensors.keys() and all(
        torch.equal(value, second.tensors[name]) for name, value in first.tensors.items()
    )


@pytest.mark.usefixtures("quick")
def test_a_run_without_a_name_gets_a_free_one(cli: Cli, tmp_path: Path) -> None:
    flags = ("--env_name", "CartPole-v1", "--seed", 3, "--num_epochs", 1, *TINY)
    assert cli("train", *flags).code == 0
    assert cli("train", *flags).code == 0
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"cartpole-seed3", "cartpole-seed3-2"}
    assert load_checkpoint("runs/cartpole-seed3").training["family"] == "cartpole"


def test_free_folder(tmp_path: Path) -> None:
    names = [free_folder(tmp_path / "runs", "x").name for _ in range(3)]
    assert names == ["x", "x-2", "x-3"], "each is taken by making it"


@pytest.mark.usefixtures("quick")
def test_a_training_without_inner_steps_makes_one_policy_for_all_tasks(cli: Cli) -> None:
    flags = ("--adaptation_steps", 0, "--no-memory", *BUDGET)
    outcome = cli("train", *flags, "--out", "one")
    assert outcome.code == 0
    assert "\nfrozen " in outcome.out and "adapted " not in outcome.out.split("frozen ")[-1]
    checkpoint = load_checkpoint("one")
    assert checkpoint.calibration == {}
    assert not checkpoint.policy().memory
    assert "--adaptation-steps 0" in checkpoint.card["command"]
    assert "--no-memory" in checkpoint.card["command"]
    assert cli("verify", "--model", "one").code == 0
    assert cli("evaluate", "--model", "one", "--num_tasks", 3, "--json").code == 0
    for command in (
        ("adapt", "--model", "one"),
        ("evaluate", "--model", "one", "--drift", "flip"),
        ("evaluate", "--model", "one", "--safety"),
        ("evaluate", "--compare", "one", "one"),
        ("rsi", "run", "--model", "one", "--cycles", 1),
    ):
        assert "meta-trained for a gradient step" in cli(*command).refusal(), command


@pytest.mark.usefixtures("quick")
def test_a_state_space_model_comes_as_pth_with_its_step_sizes(cli: Cli) -> None:
    outcome = cli("train", "--core", "state_space", "--num_epochs", 2, *TINY, "--out", "ss")
    assert outcome.code == 0
    whole, pth = load_model("ss"), load_model("ss/model.pth")
    torch.testing.assert_close(pth.tensors["policy.step_size"], whole.tensors["policy.step_size"])
    assert cli("verify", "--model", "ss/model.pth").out.endswith("equal to the model's card\n")
    assert pth.policy().num_parameters() == 6744


def test_training_that_diverges_keeps_the_last_good_checkpoint(cli: Cli) -> None:
    outcome = cli("train", "--outer_lr", "1e30", "--out", "bad", *BUDGET, "--json")
    assert outcome.code == 3
    assert outcome.out == ""
    last = outcome.err.splitlines()[-1]
    assert "expected a finite loss" in last and last.endswith("bad")
    checkpoint = load_checkpoint("bad")
    assert checkpoint.counters["epoch"] == 0
    assert all(bool(torch.isfinite(v).all()) for v in checkpoint.tensors.values())


@pytest.mark.usefixtures("quick")
def test_a_training_that_is_through_is_evaluated_again(
    cli: Cli, trained: Trained, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (FILE_NAME, LOG_NAME):
        (copy / name).write_bytes((trained.folder / name).read_bytes())
    outcome = cli("train", "--resume", copy, "--json")
    assert outcome.json["env_steps"] == trained.outcome.json["env_steps"]
    assert load_checkpoint(copy).card == load_checkpoint(trained.folder).card
    outcome = cli("train", "--resume", copy, "--num_epochs", 5, "--json")
    assert outcome.json["epochs"] == 5
    assert "limits were changed" in load_checkpoint(copy).card["command"]


def test_a_family_beside_resume_must_be_that_of_the_training(cli: Cli, trained: Trained) -> None:
    """It is named for one that the package does not know; the known one is refused if another."""
    flags = ("train", "--resume", trained.folder, "--family", "cartpole_scrambled")
    assert "task family: expected 'cartpole' as it was declared" in cli(*flags).refusal()
    assert "received --seed" in cli(*flags, "--seed", 3).refusal()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read stderr up to a line with ``text``."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the process ended without writing {text!r}")


def test_an_interrupt_finishes_the_epoch_and_saves(start: Start, tmp_path: Path) -> None:
    process = start("train", "--out", "run", *TINY, "--num_epochs", 100_000)
    wait_for(process, "meta-training   0%")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err.startswith("stopping after this epoch")
    assert err.endswith("saved; continue with: ssm-metarl train --resume run\n")
    assert "Traceback" not in err
    reached = load_checkpoint(tmp_path / "run").counters["epoch"]
    rows = (tmp_path / "run" / LOG_NAME).read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == list(range(1, reached + 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("quick")
def test_an_interrupted_training_ends_with_the_same_bits(
    cli: Cli, trained: Trained, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    run_epoch = MetaTrainer.run_epoch

    def interrupted(self: MetaTrainer) -> MetaMetrics:
        if self.epoch == 1:
            signal.raise_signal(number)
        return run_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "run_epoch", interrupted)
        assert cli("train", "--out", "run", *BUDGET).code == 130
    assert load_checkpoint("run").counters["epoch"] == 2
    assert cli("train", "--resume", "run").code == 0
    assert same_tensors(load_checkpoint("run"), load_checkpoint(trained.folder))
    assert load_checkpoint("run").card == load_checkpoint(trained.folder).card


def test_interrupting_twice_stops_at_once(start: Start, tmp_path: Path) -> None:
    process = start("train", "--out", "run", *TINY, *ENDLESS)
    wait_for(process, "training in run")
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping after this epoch (once more to stop at once)")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, ""), err
    assert "stopped at once" in err and "--resume run" in err and "Traceback" not in err
    assert load_checkpoint(tmp_path / "run").counters["epoch"] == 0
    assert load_model(tmp_path / "run").policy().num_parameters() > 0


def test_interrupting_any_other_command_is_one_line(
    cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssm_metarl.evaluation.meta_evaluator.verify", interrupt)
    monkeypatch.setattr("ssm_metarl.training.verify", interrupt)
    outcome = cli("verify", "--model", model)
    assert (outcome.code, outcome.err) == (130, "ssm-metarl: interrupted\n")
    outcome = cli("train", "--out", "run", "--num_epochs", 1, *TINY)  # its last stage verifies
    assert outcome.code == 130
    assert outcome.err.endswith("to evaluate it: ssm-metarl train --resume run\n")


def test_policy_gradient(cli: Cli) -> None:
    flags = ("--mode", "policy_gradient", "--num_episodes", 16, "--seed", 1)
    outcome = cli("train", *flags, "--out", "pg", "--json")
    assert outcome.code == 0
    result = outcome.json
    assert result["episodes"] == 16 and result["greedy_episodes"] == 50
    assert result["min"] <= result["mean"] <= result["max"]
    assert result["model"] == "pg"
    card = load_checkpoint("pg").card
    assert card["command"] == command_line(
        "train --mode policy_gradient", parse(["train", *map(str, flags)])
    )
    assert "16 finished episodes" in cli("train", *flags).out
    assert "--resume" not in cli("train", *flags, "--out", "pg").refusal()


def test_policy_gradient_that_diverges(cli: Cli, tmp_path: Path) -> None:
    flags = ("--mode", "policy_gradient", "--num_episodes", 16, "--lr", "1e30")
    outcome = cli("train", *flags)
    assert outcome.code == 3
    assert "expected a finite loss" in outcome.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_familys_recipe_counts_where_nobody_says_otherwise(
    cli: Cli, tmp_path: Path, quick: None
) -> None:
    """What is recorded is what was done, and the command in the card repeats it."""
    small = ("--family", "pendulum", "--num_epochs", 1, "--tasks_per_epoch", 2)
    cli("train", *small, "--calibration_tasks", 0, "--gamma", GAMMA, "--out", tmp_path / "run")
    recorded, recipe = load_checkpoint(tmp_path / "run"), PENDULUM.recipes["meta_rl"]
    assert recorded.training["gamma"] == GAMMA != recipe["gamma"], "the default, but said so"
    assert recorded.training["num_epochs"] == 1
    for name in ("outer_lr", "imitation_coef", "update_epochs"):
        assert recorded.training[name] == recipe[name] != getattr(MetaTrainingConfig(), name)
        assert f"--{name.replace('_', '-')} {recipe[name]}" in recorded.card["command"]
