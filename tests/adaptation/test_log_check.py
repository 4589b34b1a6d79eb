"""Spoilt logs of a plant: mended or refused by their right name, and honest ones let through."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from ssm_metarl import EvaluationConfig, StandardAdapter, load_pretrained
from ssm_metarl.action_space import Discrete
from ssm_metarl.adaptation.log_check import LogFindings, LogRefused, check_log
from ssm_metarl.core.policy import Policy
from ssm_metarl.evaluation.episodes import run_arm
from ssm_metarl.experience.plant_log import open_plant_log
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import FlatParams, flatten

from .spoiled_logs import (
    HONEST,
    SPOILED,
    VALID,
    Log,
    Row,
    crossing,
    frozen_for,
    run,
    scaled,
    with_two_faults,
    write,
)

MODELS = ("cartpole", "cartpole_hybrid_real_model")
EPISODES = EvaluationConfig(episodes_per_task=4, seed=5)


@pytest.fixture(scope="module", params=MODELS)
def policy(request: pytest.FixtureRequest) -> Policy:
    return load_pretrained(request.param)


def checked(path: Path, log: Log, **options: float) -> LogFindings:
    """What the command does with a file."""
    plant = open_plant_log(
        write(path, log, **options),
        obs_dim=4,
        action_space=Discrete(2),
        obs_names=CARTPOLE.obs_names,
    )
    findings = check_log(CARTPOLE, plant.rollout, period=plant.period)
    return LogFindings(findings.log, (*plant.notes, *findings.notes), findings.effects)


@dataclass
class Outcomes:
    """What became of the logs of K plants."""

    before: np.ndarray
    after: np.ndarray = field(default_factory=lambda: np.empty(0))
    kept: np.ndarray = field(default_factory=lambda: np.empty(0))
    reasons: list[str] = field(default_factory=list)
    words: list[tuple[str, ...]] = field(default_factory=list)


def outcomes(policy: Policy, tasks: Tasks, logs: list[Log], folder: Path) -> Outcomes:
    """Adapt to the log of each plant as the command does, and run each plant."""
    actor = policy.actor(policy.meta_params(), len(tasks), EPISODES.episodes_per_task)
    result = Outcomes(before=run_arm(tasks, actor, EPISODES).mean(axis=1))
    shapes = policy.step_sizes().shapes
    unadapted = flatten(policy.meta_params(), shapes).detach()[None]
    flat, kept = [], []
    for log in logs:
        try:
            findings = checked(folder / "log.csv", log)
            params, (report,) = StandardAdapter().adapt_tasks(policy, findings.log)
            result.words.append(findings.notes)
            kept.append(report.num_steps > 0)
            flat.append(params.flat)
            if not kept[-1]:
                result.reasons.append("undone")
        except LogRefused as refused:
            result.words.append((refused.reason,))
            result.reasons.append(refused.reason)
            kept.append(False)
            flat.append(unadapted)
    params = FlatParams(torch.cat(flat), shapes)
    actor = policy.actor(params, len(tasks), EPISODES.episodes_per_task)
    result.after, result.kept = run_arm(tasks, actor, EPISODES).mean(axis=1), np.array(kept)
    return result


def judge(row: Row, found: Outcomes) -> None:
    """A kept log must have helped; a refused one must have been refused by name."""
    reasons = Counter(found.reasons)
    if found.kept.any():
        assert found.after[found.kept].mean() >= 475, reasons
    if row.reasons:
        right = sum(count for reason, count in reasons.items() if reason in row.reasons)
        assert right >= 0.9 * reasons.total(), reasons
    else:
        assert found.kept.mean() >= row.kept, reasons


ROWS = {**HONEST, **VALID, **SPOILED}


@pytest.mark.parametrize("name", ROWS)
def test_each_kind_of_log(name: str, tmp_path: Path) -> None:
    # four plants of development; the nightly run has fresh ones, and both models
    tasks = CARTPOLE.sample("id", 4, seed=77)
    logs = [
        ROWS[name].make(p, np.random.default_rng([k, 7])) for k, p in enumerate(tasks.as_dicts())
    ]
    judge(ROWS[name], outcomes(load_pretrained("cartpole"), tasks, logs, tmp_path))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ROWS)
def test_each_kind_of_log_on_fresh_plants(name: str, policy: Policy, tmp_path: Path) -> None:
    tasks = CARTPOLE.sample("id", 100 if ROWS[name].kept else 30, seed=41_000)
    logs = [
        ROWS[name].make(p, np.random.default_rng([k, 41])) for k, p in enumerate(tasks.as_dicts())
    ]
    judge(ROWS[name], outcomes(policy, tasks, logs, tmp_path))


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.nightly)])
def test_two_faults_at_once_never_harm_without_a_word(
    count: int, policy: Policy, tmp_path: Path
) -> None:
    tasks = CARTPOLE.sample("id", count, seed=77 if count < 100 else 42_000)
    logs = [
        with_two_faults(p, np.random.default_rng([k, count]))
        for k, p in enumerate(tasks.as_dicts())
    ]
    found = outcomes(policy, tasks, logs, tmp_path)
    silent = [not words for words in found.words]
    worse = found.after < found.before - 2
    assert not (worse & silent).any(), np.flatnonzero(worse & silent)
    assert worse.mean() <= 0.02  # and with a word hardly ever


def test_what_follows_a_change_is_used(tmp_path: Path) -> None:
    plant = CARTPOLE.default_task
    findings = checked(tmp_path / "a.csv", crossing(plant, np.random.default_rng(0)))
    assert findings.log.num_steps == 20
    assert any("changed within the log: the 20 transitions after it" in n for n in findings.notes)
    # and it is the new plant's
    assert "x_dot +" in findings.effects and "theta_dot -" in findings.effects
    flipped = {**plant, "sign": -1.0}
    findings = checked(tmp_path / "b.csv", crossing(flipped, np.random.default_rng(0)))
    assert "x_dot -" in findings.effects and "theta_dot +" in findings.effects


def test_an_honest_log_goes_through_as_it_is(tmp_path: Path) -> None:
    log = run(CARTPOLE.default_task, 40, np.random.default_rng(1))
    findings = checked(tmp_path / "a.csv", log)
    assert findings.notes == () and findings.log.num_steps == 40
    assert findings.effects.startswith("in this log action 1 adds x_dot +0.2, theta_dot -0.29")


def test_a_time_column_at_another_rate_is_refused(tmp_path: Path) -> None:
    log = run(CARTPOLE.default_task, 20, np.random.default_rng(1))
    assert checked(tmp_path / "a.csv", log, time_step=0.02).notes == ()
    with pytest.raises(LogRefused, match=r"expected a row every 0.02 s.*received one every 0.1 s"):
        checked(tmp_path / "b.csv", log, time_step=0.1)


def test_single_sensors_that_stand_still_are_told_of(tmp_path: Path) -> None:
    log = run(CARTPOLE.default_task, 20, np.random.default_rng(1))
    findings = checked(tmp_path / "a.csv", scaled(log, theta=0.0))
    assert [note.split(":")[0] for note in findings.notes] == ["theta"]
    with pytest.raises(LogRefused, match="frozen or missing sensor: x_dot, theta_dot") as refused:
        checked(tmp_path / "b.csv", scaled(log, x_dot=0.0, theta_dot=0.0))
    assert refused.value.reason == "no excitation"


def test_a_single_step_in_which_nothing_moves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogRefused, match="nothing moves in the log"):
        checked(tmp_path / "a.csv", [(np.full((2, 4), 0.01), np.array([1]))])


def test_rows_that_nothing_explains_are_left_out_and_split_the_log(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    log = frozen_for(run(CARTPOLE.default_task, 60, rng), rng)
    findings = checked(tmp_path / "a.csv", log)
    assert any("left out" in note for note in findings.notes)
    gone, resets = 60 - findings.log.num_steps, int(findings.log.reset.sum())
    assert 4 <= gone <= 6
    assert resets > len(log)  # what follows a gap begins anew


def test_a_family_is_not_accused_of_what_it_contains(tmp_path: Path) -> None:
    # its sensors have unknown signs, come in any order, and its actuator is late
    family = family_of_env("cartpole_scrambled")
    from ssm_metarl.evaluation.episodes import collect_support

    tasks = family.sample("id", 12, seed=78)
    logs = collect_support(load_pretrained("cartpole"), tasks, 40, "random", seed=3)
    refused = 0
    for k in range(len(tasks)):
        try:
            check_log(family, logs.task(k))
        except LogRefused:
            refused += 1
    assert refused <= 1
