"""``adapt``, ``evaluate``, ``verify`` and ``models`` on a model that was just trained."""

from __future__ import annotations

import html
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ssm_metarl.checkpoint import (
    FILE_NAME,
    Checkpoint,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
)
from ssm_metarl.cli.console import print_json
from ssm_metarl.methods.fixed_policy import Effort

from .conftest import Cli

TASK = '{"force": 7, "sign": -1}'
DOCUMENTED = {"model", "family", "split", "num_tasks", "seed", "version", "arms", "paired"}


def evaluate(cli: Cli, model: object, *flags: object) -> dict[str, Any]:
    outcome = cli("evaluate", "--model", model, "--num_tasks", 4, *flags, "--json")
    assert outcome.code == 0, outcome.err
    result: dict[str, Any] = json.loads(outcome.out, parse_constant=pytest.fail)
    return result


def test_evaluate_prints_the_documented_object(cli: Cli, model: Path) -> None:
    result = evaluate(cli, model, "--seed", 5, "--split", "ood")
    assert result.keys() >= DOCUMENTED | {"definitions", "by_sign", "adaptation"}
    assert (result["model"], result["family"]) == (str(model), "cartpole")
    assert (result["split"], result["num_tasks"], result["seed"]) == ("ood", 4, 5)
    assert set(result["arms"]) == {"frozen", "standard", "hybrid", "random", "lqr", "sign_probe"}
    for arm in result["arms"].values():
        assert arm.keys() == {"mean", "iqm", "ci95", "worst10", "env_steps"}
        assert arm["ci95"][0] <= arm["iqm"] <= arm["ci95"][1]
    assert set(result["paired"]) == {"standard-frozen", "hybrid-frozen", "hybrid-standard"}
    for pair, difference in result["paired"].items():
        first, second = pair.split("-")
        expected = result["arms"][first]["mean"] - result["arms"][second]["mean"]
        assert difference["mean"] == pytest.approx(expected)
    assert set(result["arms"]) <= set(result["definitions"])


def test_evaluate_says_the_same_again(cli: Cli, model: Path) -> None:
    first = evaluate(cli, model)
    assert evaluate(cli, model) == first
    assert evaluate(cli, model, "--seed", 1)["arms"] != first["arms"]


def test_evaluate_takes_its_settings_from_the_flags(cli: Cli, model: Path) -> None:
    default = evaluate(cli, model)
    assert (default["support_policy"], default["objective"]) == ("random", "prediction")
    changed = evaluate(
        cli, model, "--support_policy", "policy", "--objective", "policy_gradient",
        "--adapt_lr", 0.3, "--support_steps", 11, "--episodes_per_task", 2,
    )  # fmt: skip
    assert (changed["support_policy"], changed["objective"]) == ("policy", "policy_gradient")
    assert (changed["adapt_lr"], changed["support_steps"]) == (0.3, 11)
    assert changed["arms"]["standard"]["env_steps"] == 11
    assert changed["adaptation"] != default["adaptation"]


def test_evaluate_prints_a_table_that_says_the_same(cli: Cli, model: Path) -> None:
    result = evaluate(cli, model)
    lines = cli("evaluate", "--model", model, "--num_tasks", 4).out.splitlines()
    cells = [line.split() for line in lines if line.strip() and " - " not in line]
    rows = {row[0]: row for row in cells}
    for arm, scores in result["arms"].items():
        assert rows[arm][1] == f"{scores['iqm']:.1f}"
        assert rows[arm][-3:-1] == [f"{scores['mean']:.1f}", f"{scores['worst10']:.1f}"]
        assert rows[arm][-1] == str(scores["env_steps"])
    difference = result["paired"]["standard-frozen"]["mean"]
    assert any(line.startswith(f"standard - frozen: {difference:+.1f} (") for line in lines)


def test_evaluate_writes_a_report_on_both_splits(cli: Cli, model: Path, tmp_path: Path) -> None:
    outcome = cli("evaluate", "--model", model, "--num_tasks", 2, "--report", "a report", "--json")
    assert outcome.json["split"] == "id"  # one object, of the split that was asked for
    assert outcome.err.endswith("report: a report/report.html\n")
    names = {path.name for path in (tmp_path / "a report").iterdir()}
    assert names >= {"report.html", "results.json", "adaptation.png", "before_after.gif"}
    assert "training_curve.png" in names  # the model's run has a log
    text = html.unescape((tmp_path / "a report" / "report.html").read_text())
    assert "<h2>in distribution" in text and "<h2>out of distribution" in text
    assert f"ssm-metarl evaluate --num-tasks 2 --model {model} --report 'a report'" in text


def test_the_film_is_adapted_with_the_evaluations_settings(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    for name, steps in (("a", 0), ("b", 1)):
        settings = ("--num_adapt_steps", steps, "--adapt_lr", 30, "--objective", "policy_gradient")
        flags = ("--num_tasks", 1, *settings, "--no_rollback", "--seed", 2, "--report", name)
        assert cli("evaluate", "--model", model, *flags).code == 0
    caption = (tmp_path / "a" / "report.html").read_text().split("the episode lasts ")[1]
    before, after = caption.split(").")[0].split("), after adapting ")
    assert before.replace(" steps", "") == after  # no step: nothing changes
    films = [(tmp_path / name / "before_after.gif").read_bytes() for name in "ab"]
    assert films[0] != films[1]


def test_adapt_saves_a_policy_that_does_what_it_says(cli: Cli, model: Path) -> None:
    flags = ("--task", TASK, "--out", "flipped.safetensors", "--episodes", 3, "--json")
    flags += ("--no_rollback",)  # a model of seconds learns no step worth keeping
    result = cli("adapt", "--model", model, *flags).json
    assert result["task"]["force"] == 7 and result["task"]["sign"] == -1
    assert result["task"]["gravity"] == 9.8  # not named: the default
    assert result["report"]["env_steps"] == 20 and result["report"]["num_steps"] == 1
    assert len(result["before"]) == len(result["after"]) == 3
    card = load_checkpoint("flipped.safetensors").card
    assert card["adapted_to"] == result["task"]
    assert f"--task '{TASK}'" in card["command"]
    # Adapted by no step, the saved policy repeats the episodes that the first one ended with.
    again = ("--task", TASK, "--num_adapt_steps", 0, "--episodes", 3, "--json")
    repeated = cli("adapt", "--model", "flipped.safetensors", *again).json
    assert repeated["before"] == repeated["after"] == result["after"]


def test_adapt_in_words(cli: Cli, tmp_path: Path) -> None:
    model = "cartpole"  # its step is worth keeping
    outcome = cli("adapt", "--model", model, "--task", TASK)
    assert outcome.code == 0
    assert "force 7 N" in outcome.out and "sign -1" in outcome.out
    assert outcome.out.endswith("saved: adapted.safetensors\n")
    assert (tmp_path / "adapted.safetensors").is_file()
    assert "received adapted.safetensors" in cli("adapt", "--model", model).refusal()
    assert ".safetensors file" in cli("adapt", "--model", model, "--out", "a.pth").refusal()


def test_a_step_that_was_undone_is_said_and_nothing_is_written(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    flags = ("adapt", "--model", model, "--task", TASK, "--adapt_lr", "1e30")
    outcome = cli(*flags)
    assert (outcome.code, outcome.out) == (4, "")
    assert "the first step was undone: the inner loss did not fall; nothing was" in outcome.err
    result = cli(*flags, "--json")
    assert result.code == 4
    assert result.json["refused"] == "the inner loss did not fall" and result.json["out"] is None
    assert result.json["before"] == result.json["after"]
    assert not list(tmp_path.glob("*.safetensors"))


def test_evaluate_measures_safety(cli: Cli, model: Path) -> None:
    safety = evaluate(cli, model, "--safety")["safety"]
    assert [row["num_adapt_steps"] for row in safety["more_steps"]] == [1, 2, 3, 5, 10]
    assert 0 <= safety["shuffled_actions"]["harmless"] <= 1
    assert set(safety["change_detector"]) == {"false_alarms", "flips_found"}
    printed = cli("evaluate", "--model", model, "--num_tasks", 4, "--safety").out
    assert "10 step(s): mean" in printed and "change detector: false alarms" in printed


def test_evaluate_lets_plants_change_inside_an_episode(cli: Cli, model: Path) -> None:
    few = ("evaluate", "--model", model, "--num_tasks", 2, "--drift", "parameters")
    result = cli(*few, "--json").json
    assert set(result["arms"]) == {"frozen", "standard", "online", "random", "lqr"}
    assert result["drift"] == "parameters" and result["trained_on_changes"] is False
    printed = cli(*few).out
    assert "the physics move inside an episode" in printed and "control period 20 ms" in printed
    assert "--safety" in cli(*few, "--safety").refusal()
    refused = cli(*few[:-1], "break").refusal()
    assert "drift: expected one of flip, parameters for 'cartpole', received 'break'" in refused


def test_evaluate_on_shuffled_actions_and_without_rollback(cli: Cli, model: Path) -> None:
    honest = evaluate(cli, model, "--no_rollback")
    lied = evaluate(cli, model, "--no_rollback", "--shuffle_actions")
    assert (honest["rollback"], lied["shuffle_actions"]) == (False, True)
    assert honest["adaptation"] != lied["adaptation"]
    assert honest["arms"]["frozen"] == lied["arms"]["frozen"]
    assert honest["adaptation"]["standard"]["rolled_back"] == 0


def test_adapt_leaves_the_model_alone(cli: Cli, model: Path) -> None:
    before = (model / FILE_NAME).read_bytes()
    assert cli("adapt", "--model", model, "--task", TASK, "--no_rollback").code == 0
    assert (model / FILE_NAME).read_bytes() == before
    weights, adapted = (
        load_pretrained(path).state_dict() for path in (model, "adapted.safetensors")
    )
    assert any(not torch.equal(weights[name], adapted[name]) for name in weights)
    assert torch.equal(weights["step_size"], adapted["step_size"])


def test_hybrid_adaptation_needs_experience(cli: Cli, model: Path) -> None:
    whole = load_checkpoint(model)
    weights = {n: v for n, v in whole.tensors.items() if not n.startswith("experience.")}
    save_checkpoint("bare.safetensors", replace(whole, tensors=weights))
    flags = ("--model", "bare.safetensors", "--mode", "hybrid", "--no_rollback")
    assert "without experience" in cli("adapt", *flags).refusal()
    assert "hybrid" not in evaluate(cli, "bare.safetensors")["arms"]
    beside = cli("adapt", *flags, "--experience", model, "--json").json
    assert 0 < beside["report"]["replay_trust"] <= 1


def test_evaluate_says_what_adapting_is_worth(
    cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effort = Effort(starts=1, generations=1, population=4, elites=2, tasks=2, judged_on=2)
    monkeypatch.setattr("ssm_metarl.methods.fixed_policy.BATCHED", effort)
    result = evaluate(cli, model, "--worth")
    worth = result["worth"]
    assert worth.keys() >= {"gap", "arms", "best", "worth_it", "verdict", "definitions"}
    assert worth["best"] in ("standard", "hybrid") and "fixed" in result["arms"]
    assert {"gap", "share", "over_fixed", "worth_it"} <= worth["definitions"].keys()
    outcome = cli("evaluate", "--model", model, "--num_tasks", 4, "--worth")
    lines = outcome.out.splitlines()
    assert lines[-1] == worth["verdict"]
    assert any(line.startswith("best fixed policy found: ") for line in lines)
    assert any(line.startswith("standard: ") and "of the gap" in line for line in lines)
    assert "searching" in outcome.err
    for others in (("--model", model, "--drift", "flip"), ("--compare", model, model)):
        assert "--worth" in cli("evaluate", "--worth", *others).refusal()


def test_uniform_replay_is_evaluated_on_demand(cli: Cli, model: Path) -> None:
    by_fit, alike = (
        evaluate(cli, model, *flags)["adaptation"]["hybrid"]["replay_trust"]
        for flags in ((), ("--replay", "uniform"))
    )
    assert 0 < by_fit < 1 and alike == 1


def test_verify_compares_with_the_card(cli: Cli, model: Path, tmp_path: Path) -> None:
    outcome = cli("verify", "--model", model, "--json")
    assert outcome.code == 0 and outcome.json["matches_card"] is True
    assert outcome.json["episodes"] == len(outcome.json["steps"]) == 10
    assert outcome.json["mean"] == sum(outcome.json["steps"]) / 10  # CartPole: 1 a step
    assert "equal to the model's card" in cli("verify", "--model", model).out
    other = cli("verify", "--model", model, "--seed", 7)
    assert other.code == 0 and "no figures for this seed" in other.out

    checkpoint = load_checkpoint(model)
    card = {**checkpoint.card, "verification": {**checkpoint.card["verification"], "mean": 499.0}}
    values = {n: getattr(checkpoint, n) for n in checkpoint.__dataclass_fields__} | {"card": card}
    save_checkpoint(tmp_path / "boast.safetensors", Checkpoint(**values))
    outcome = cli("verify", "--model", "boast.safetensors")
    assert outcome.code == 1 and "NOT equal to the model's card" in outcome.out


def test_models_lists_what_is_shipped(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model / FILE_NAME
    monkeypatch.setattr("ssm_metarl.checkpoint.shipped_models", lambda: {"cartpole": path})
    (row,) = cli("models", "--json").json["models"]
    assert row["name"] == row["family"] == "cartpole"
    assert row["core"] == "DiagonalSSM"
    assert row["parameters"] == load_pretrained(model).num_parameters()
    assert row["path"] == str(path)
    assert row["command"].startswith("ssm-metarl train ")
    assert f"{row['parameters']:,} parameters" in cli("models").out
    monkeypatch.setattr("ssm_metarl.checkpoint.shipped_models", dict)
    assert cli("models", "--json").json == {"models": []}
    assert "no models" in cli("models").out
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    monkeypatch.setattr(
        "ssm_metarl.checkpoint.shipped_models", lambda: {"x": tmp_path / "other.safetensors"}
    )
    assert "other.safetensors" in cli("models").refusal()


@pytest.mark.parametrize("columns", [40, 120])
def test_on_a_terminal_there_is_a_bar_and_no_number_is_cut(
    cli: Cli, model: Path, columns: int
) -> None:
    result = evaluate(cli, model)
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ssm_metarl.cli", "evaluate", "--model", model, "--num_tasks", "4"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(main_end, 65536)
        except OSError:  # the other end was closed
            break
    os.close(main_end)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "evaluating" in text and "100 %" in text
    assert ("━" in text) == (columns == 120)  # the narrow one has no room for a bar
    for arm in ("frozen", "random"):
        for name in ("iqm", "mean", "worst10"):
            assert f"{result['arms'][arm][name]:.1f}" in text
    assert "…" not in text


def test_nan_never_becomes_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        print_json({"mean": float("nan")})
