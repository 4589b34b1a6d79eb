"""``train --mode in_context``: the same folder, resume and evaluation as any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssm_metarl.checkpoint import FINGERPRINT, load_checkpoint
from ssm_metarl.cli.parsing import parse
from ssm_metarl.cli.train import TrainInContext
from ssm_metarl.meta_rl.training_run import LOG_NAME

from .conftest import Cli

TINY = (
    "--mode", "in_context", "--state_dim", 4, "--hidden_dim", 6, "--tasks_per_epoch", 4,
    "--steps_per_epoch", 32, "--sequence_steps", 16, "--horizon", 12, "--num_epochs", 3,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short evaluation at the end of a training."""
    monkeypatch.setattr("ssm_metarl.training.FINAL_TASKS", 3)


def test_a_training_its_evaluation_and_its_verification(cli: Cli) -> None:
    outcome = cli("train", *TINY, "--out", "run", "--json")
    result = outcome.json
    assert outcome.code == 0
    assert {"frozen", "in_context", "random"} <= result["arms"].keys()
    assert not {"standard", "hybrid"} & result["arms"].keys()
    assert [set(e) for e in result["arms"]["in_context"]["by_episode"]] == [
        {"mean", "iqm", "ci95", "worst10"}
    ] * 4
    assert "in_context-frozen" in result["paired"]
    rows = [json.loads(row) for row in (Path("run") / LOG_NAME).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {"entropy", "value_error", "recent_return", "eval_episode_2_mean"} <= rows[0].keys()
    assert cli("verify", "--model", "run").code == 0


def test_the_recorded_command_is_the_training(cli: Cli) -> None:
    cli("train", *TINY, "--out", "run", "--json")
    checkpoint = load_checkpoint("run")
    command = checkpoint.card["command"].split()[1:]
    parsed = parse(command)
    assert isinstance(parsed, TrainInContext)
    recorded = {k: v for k, v in checkpoint.training.items() if k != FINGERPRINT}
    assert recorded == {**vars(parsed.settings()), "mode": "in_context"}


def test_it_goes_on_from_where_it_was(cli: Cli) -> None:
    cli("train", *TINY, "--out", "run", "--json")
    outcome = cli("train", "--resume", "run", "--num_epochs", 5, "--json")
    assert outcome.json["epochs"] == 5
    assert load_checkpoint("run").card["command"].endswith("changed on resuming")


def test_its_figures_in_words(cli: Cli) -> None:
    outcome = cli("train", *TINY, "--out", "run")
    assert "in context " in outcome.out and "frozen " in outcome.out
    assert outcome.out.splitlines()[-1] == "model: run"


def test_flags_of_the_other_mode_are_refused(cli: Cli) -> None:
    assert "received --inner_lr" in cli("train", *TINY, "--inner_lr", 1).refusal()


def test_an_evaluation_of_as_many_episodes_as_one_likes(cli: Cli) -> None:
    cli("train", *TINY, "--out", "run", "--json")
    arguments = ("--num_tasks", 3, "--episodes_per_task", 6, "--json")
    result = cli("evaluate", "--model", "run", *arguments).json
    assert len(result["arms"]["in_context"]["by_episode"]) == 6


def test_a_model_trained_in_context_has_nothing_to_adapt_by_gradient(cli: Cli) -> None:
    cli("train", *TINY, "--out", "run", "--json")
    for command in (
        ("adapt", "--model", "run", "--task", '{"force": 7}', "--out", "x"),
        ("evaluate", "--model", "run", "--safety", "--num_tasks", 2),
        ("evaluate", "--compare", "run", "run"),
        ("rsi", "run", "--model", "run", "--cycles", 1, "--lineage", "lineage"),
    ):
        outcome = cli(*command)
        assert outcome.code == 2, command
        assert "in context" in outcome.err, command


def test_a_plant_changes_inside_an_episode(cli: Cli) -> None:
    cli("train", *TINY, "--out", "run", "--json")
    few = ("evaluate", "--model", "run", "--num_tasks", 2, "--drift", "flip")
    result = cli(*few, "--json").json
    assert set(result["arms"]) == {"in_context", "in_context_restarted", "random", "lqr"}
    assert result["trained_on_changes"] is False and result["control_period_ms"] == 20
    printed = cli(*few).out
    assert "in_context_restarted: up at the change" in printed
    assert "a control step, quiet" in printed and "control period 20 ms" in printed


def test_a_report_has_the_trials_curves(cli: Cli) -> None:
    cli("train", *TINY, "--out", "run", "--json")
    outcome = cli("evaluate", "--model", "run", "--num_tasks", 2, "--report", "page")
    assert outcome.code == 0, outcome.err
    text = (Path("page") / "report.html").read_text()
    assert "in context" in text and "least squares, told nothing" in text
