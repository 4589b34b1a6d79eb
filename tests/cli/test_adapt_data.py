"""``adapt --data``: a plant's own log in, an adapted policy out, no environment in between."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssm_metarl import (
    Environment,
    StandardAdapter,
    load_pretrained,
    needs_adaptation,
    read_plant_log,
)
from ssm_metarl.checkpoint import load_checkpoint

from .conftest import Cli

STEPS = 60


def write_log(path: Path, steps: int = STEPS) -> Path:
    """A flipped plant under alternating actions, as its owner would have logged it."""
    plant = Environment("cartpole", task={"sign": -1})
    with open(path, "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["t", "episode", "x", "x_dot", "theta", "theta_dot", "action"])
        episode, taken = 0, 0
        obs, _ = plant.reset(seed=0)
        while taken < steps:
            action = (taken // 2) % 2
            log.writerow([taken, episode, *obs.tolist(), action])
            obs, _, terminated, _, _ = plant.step(action)
            taken += 1
            if terminated:
                log.writerow([taken, episode, *obs.tolist(), ""])
                episode += 1
                obs, _ = plant.reset()
        log.writerow([taken, episode, *obs.tolist(), ""])
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "episode.csv")


def test_the_file_says_what_the_python_interface_says(
    cli: Cli, model: Path, log: Path, tmp_path: Path
) -> None:
    outcome = cli("adapt", "--model", model, "--data", log, "--no_rollback", "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert result["data"] == str(log) and not {"task", "before", "after"} & set(result)
    assert result["report"]["env_steps"] == STEPS
    policy = load_pretrained(model)
    support = read_plant_log(
        log,
        obs_dim=4,
        action_space=policy.action_space,
        obs_names=("x", "x_dot", "theta", "theta_dot"),
    )
    from ssm_metarl import StandardAdaptationConfig

    config = StandardAdaptationConfig(rollback=False)
    expected = StandardAdapter(config).adapt(policy, support)
    saved = load_pretrained(tmp_path / "adapted.safetensors")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], value)
    # what was saved can tell whether the plant is still the same
    assert saved.calibration == expected.calibration
    assert needs_adaptation(saved, support) == needs_adaptation(expected, support)
    card = load_checkpoint(tmp_path / "adapted.safetensors").card
    assert card["adapted_to"] == {"data": str(log)}


def test_what_it_prints_and_that_nothing_is_overwritten(cli: Cli, log: Path) -> None:
    outcome = cli("adapt", "--model", "cartpole", "--data", log)
    assert outcome.code == 0
    assert "in this log action 1 adds x_dot -0.19, theta_dot +0.29 in a step" in outcome.out
    assert f"from {STEPS} environment steps: inner loss" in outcome.out
    assert "return" not in outcome.out
    again = cli("adapt", "--model", "cartpole", "--data", log)
    assert "received adapted.safetensors" in again.refusal()


def rewritten(log: Path, change: Callable[[list[list[str]]], None]) -> Path:
    """The log with other cells; its header stands first."""
    rows = [line.split(",") for line in log.read_text().splitlines()]
    change(rows)
    log.write_text("\n".join(map(",".join, rows)) + "\n")
    return log


def test_a_spoilt_log_is_refused_by_name_and_nothing_is_written(
    cli: Cli, log: Path, tmp_path: Path
) -> None:
    def one_row_late(rows: list[list[str]]) -> None:
        actions = [row[-1] or "0" for row in rows[1:]]
        for row, action in zip(rows[2:], actions, strict=False):
            row[-1] = action

    late = rewritten(log, one_row_late)
    outcome = cli("adapt", "--model", "cartpole", "--data", late, "--out", "plant.safetensors")
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.count("\n") == 1 and "late action" in outcome.err
    assert outcome.err.endswith("; nothing was written\n")
    refused = cli("adapt", "--model", "cartpole", "--data", late, "--json")
    assert refused.code == 4
    assert refused.json["refused"] == "late action" and "row" in refused.json["message"]
    assert not list(tmp_path.glob("*.safetensors"))
    # whoever wants it all the same can have it
    forced = cli("adapt", "--model", "cartpole", "--data", late, "--no_rollback")
    assert forced.code == 0 and (tmp_path / "adapted.safetensors").is_file()


def test_a_log_at_another_rate_is_refused_by_its_time_column(cli: Cli, log: Path) -> None:
    def every_tenth_of_a_second(rows: list[list[str]]) -> None:
        rows[0][0] = "time"
        for number, row in enumerate(rows[1:]):
            row[0] = f"{number / 10:g}"

    outcome = cli("adapt", "--model", "cartpole", "--data", rewritten(log, every_tenth_of_a_second))
    assert outcome.code == 4
    assert "expected a row every 0.02 s, the time step of cartpole, received one" in outcome.err


@pytest.mark.parametrize(
    "flags", [("--task", '{"sign": -1}'), ("--support_steps", 30), ("--episodes", 9)]
)
def test_flags_of_a_simulated_task_are_refused_beside_it(
    cli: Cli, model: Path, log: Path, flags: tuple[object, ...]
) -> None:
    refusal = cli("adapt", "--model", model, "--data", log, *flags).refusal()
    assert refusal.startswith("data: expected no flags of a simulated task")
    assert str(flags[0]).replace("_", "-") in refusal


def test_a_log_without_log_probabilities_cannot_adapt_by_policy_gradient(
    cli: Cli, model: Path, log: Path
) -> None:
    flags = ("--data", log, "--objective", "policy_gradient")
    assert "expected 'prediction'" in cli("adapt", "--model", model, *flags).refusal()


def test_a_mistake_in_the_log_is_one_line_and_saves_nothing(
    cli: Cli, model: Path, log: Path, tmp_path: Path
) -> None:
    def refusal(path: Path) -> str:
        return cli("adapt", "--model", model, "--data", path).refusal()

    broken = tmp_path / "broken.csv"
    broken.write_text(log.read_text().replace("theta_dot", "thetadot"))
    assert "theta_dot, action, received t, episode, x, x_dot, theta, thetadot" in refusal(broken)
    lines = log.read_text().splitlines()
    lines[3] = "oops".join(lines[3].rsplit(lines[3].split(",")[2], 1))
    broken.write_text("\n".join(lines))
    assert "line 4: x: expected a finite number, received 'oops'" in refusal(broken)
    assert "expected a CSV file, received no such file" in refusal(tmp_path / "no.csv")
    assert not (tmp_path / "adapted.safetensors").exists()


def test_the_columns_are_named_in_the_help(cli: Cli) -> None:
    shown = " ".join(cli("adapt", "--help").out.split())
    columns = ("obs_0", "action", "reward", "episode", "time")
    for word in (*columns, "ssm-metarl families", "Exit code 4"):
        assert word in shown
    listed = cli("families").out
    for word in ("x m, x_dot m/s, theta rad, theta_dot rad/s", "steps of 0.02 s"):
        assert word in listed
