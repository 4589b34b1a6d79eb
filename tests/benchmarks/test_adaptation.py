"""The comparison: resumable, honest about what failed, and its arithmetic is what it says."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.adaptation import recipes, run, scoring
from benchmarks.adaptation.arms import NOTHING, SHORT, TO_GOAL, Protocol
from benchmarks.adaptation.comparison import (
    MARGIN,
    Cell,
    Table,
    differences,
    holm,
    not_worse,
    profiles,
    steps_to_goal,
    tables,
)
from benchmarks.adaptation.recipes import Pair, Recipe
from benchmarks.adaptation.run import Plan
from benchmarks.adaptation.tables import as_markdown
from ssm_metarl.app.handlers import comparing
from ssm_metarl.checkpoint import load_checkpoint
from ssm_metarl.cli import main
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.meta_rl.training_run import TrainingRun

WORK = Path("work")
ONE = Protocol(num_tasks=3, seed=3, episodes=1, long_tasks=2, long_episodes=8)


def small_models() -> dict[str, Recipe]:
    """Models of one family that train in a second."""
    sizes: dict[str, Any] = {"state_dim": 4, "hidden_dim": 4, "num_layers": 1, "num_epochs": 1}
    gradient = MetaTrainingConfig(
        calibration_tasks=0, tasks_per_epoch=2, episodes_per_task=1, horizon=20, **sizes
    )
    context = InContextConfig(
        tasks_per_epoch=4, steps_per_epoch=32, sequence_steps=32, minibatches=1, **sizes
    )
    plain = replace(gradient, adaptation_steps=0)
    return {
        "in_context": Recipe(context, "in_context"),
        "prediction": Recipe(gradient, "gradient"),
        "both_prediction": Recipe(replace(gradient, in_context=True), "both", "in_context"),
        "multi_task": Recipe(plain, "multi_task"),
        "told": Recipe(replace(plain, family="cartpole_told"), "frozen", seeds=1),
        "gru": Recipe(context, "in_context", gru=True, seeds=1),
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    models = small_models()
    monkeypatch.setitem(recipes.RECIPES, "cartpole", models)
    return models


def compute(plan: Plan, work: Path) -> dict[str, Any]:
    """The jobs in this process, as the workers would do them."""
    trained = [job() for job in plan.trainings(work)]
    for job in plan.scorings(work):
        job()
    result = run.compare(plan, plan.scorings(work))
    return {"command": "bench", "trainings": trained, "failed": [], **result}


def plan(seeds: int = 2) -> Plan:
    return Plan(families=("cartpole",), seeds=seeds, protocol=ONE)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A work folder with everything in it, and what came of it."""
    work = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(work):
        patch.setitem(recipes.RECIPES, "cartpole", small_models())
        return work, compute(plan(), WORK)


@pytest.fixture
def work(
    computed: tuple[Path, dict[str, Any]], small: object, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A copy of that folder: the present one is where it lies."""
    shutil.copytree(computed[0] / WORK, tmp_path / WORK)
    monkeypatch.chdir(tmp_path)  # a checkpoint names the model that it started from
    return WORK


def test_every_arm_has_a_cell_of_all_seeds_and_tasks(work: Path) -> None:
    found, missing = tables(plan().scorings(work))
    assert missing == []
    shapes = {
        (c.model, c.arm, c.after): t.returns.shape for c, t in found.items() if c.split == "ood"
    }
    arms = ("standard", "hybrid", "hybrid_uniform")
    for arm in arms:
        for after in (SHORT, "1 episode"):
            assert shapes["prediction", arm, after] == (2, 3)
    assert shapes["prediction", "frozen", NOTHING] == (2, 3)
    for after in (NOTHING, SHORT, "1 episode"):
        assert shapes["in_context", "in_context", after] == (2, 3)
    assert shapes["both_prediction", "both", SHORT] == (2, 3)
    assert shapes["both_prediction", "without_step", NOTHING] == (2, 3)
    assert ("both_prediction", "both", NOTHING) not in shapes
    for arm in ("fine_tuned", "scratch"):
        assert shapes["multi_task", arm, "1 episode"] == (2, 3)
        assert shapes["multi_task", arm, TO_GOAL] == (2, 2)
    assert shapes["told", "frozen", NOTHING] == (1, 3)
    assert shapes["gru", "in_context", "1 episode"] == (1, 3)
    assert shapes["yardsticks", "lqr", NOTHING] == (1, 3)


def test_what_is_there_is_not_computed_again(
    work: Path, computed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(scoring.Scoring, "_scores", refuse)
    monkeypatch.setattr("ssm_metarl.meta_rl.trainer.MetaTrainer.run_epoch", refuse)
    monkeypatch.setattr("ssm_metarl.meta_rl.in_context.InContextTrainer.run_epoch", refuse)
    assert compute(plan(), work) == computed[1]


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_half_written_score_file_is_made_again(damage: str, work: Path) -> None:
    job = plan().scorings(work)[0]
    whole = job.path.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "garbage": b"\x00" * 64, "empty": b""}
    job.path.write_bytes(damaged[damage])
    assert job.read() is None
    job()
    assert job.path.read_bytes() == whole


def test_scores_of_another_protocol_or_model_do_not_count(work: Path) -> None:
    job = plan().scorings(work)[0]
    assert replace(job, protocol=replace(ONE, seed=4)).read() is None
    assert job.training is not None
    job.training.checkpoint.write_bytes(job.training.checkpoint.read_bytes() + b" ")
    assert job.read() is None


def test_scores_of_an_earlier_scorer_do_not_count(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan().scorings(work)[0]
    assert job.read() is not None
    monkeypatch.setattr(scoring, "SCORER_VERSION", scoring.SCORER_VERSION + 1)
    assert job.read() is None


def test_a_broken_training_goes_on_from_its_checkpoint(work: Path) -> None:
    job = next(j for j in plan().trainings(work) if j.model == "prediction")
    whole = load_checkpoint(job.checkpoint)
    job.checkpoint.unlink()
    TrainingRun.start(job.config(), job.folder)  # killed before its first epoch
    job()
    again = load_checkpoint(job.checkpoint)
    assert again.counters == whole.counters
    assert all(torch.equal(v, again.tensors[n]) for n, v in whole.tensors.items())


def test_a_training_by_another_recipe_is_refused(
    work: Path, small: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = next(j for j in plan().trainings(work) if j.model == "prediction")
    recipe = small["prediction"]
    other = replace(recipe, config=replace(recipe.config, num_epochs=2))
    monkeypatch.setitem(small, "prediction", other)
    with pytest.raises(ValueError, match=r"expected a training by .*--num-epochs 2.* received"):
        job()


def test_a_training_that_began_from_another_model_is_refused(work: Path) -> None:
    job = next(j for j in plan().trainings(work) if j.model == "both_prediction")
    assert job.needs is not None
    path = job.needs.checkpoint
    job()
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"expected a training that began from the model.*remove"):
        job()


def test_a_gru_by_another_recipe_is_refused(
    work: Path, small: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = next(j for j in plan().trainings(work) if j.model == "gru")
    job()
    config = replace(small["gru"].config, num_epochs=2)
    monkeypatch.setitem(small, "gru", replace(small["gru"], config=config))
    with pytest.raises(ValueError, match=r"expected a training by .*--num-epochs 2.* received"):
        job()


def test_a_job_that_fails_is_reported_and_not_dropped(tmp_path: Path) -> None:
    work = tmp_path / "work"
    broken = plan(1).trainings(work)[0].checkpoint
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"half a model")
    few = Plan(families=("cartpole",), seeds=1, protocol=ONE, size="quick")
    jobs = few.trainings(work)[:1]
    scorings = [s for s in few.scorings(work) if s.training in (*jobs, None)]

    class Few(Plan):
        def trainings(self, work: Path) -> list[Any]:
            return jobs

        def scorings(self, work: Path) -> list[Any]:
            return scorings

    seen: list[float] = []
    result = run.run(
        Few(families=("cartpole",), seeds=1, protocol=ONE, size="quick"), work, workers=1,
        report=lambda share, what: seen.append(share),
    )  # fmt: skip
    assert seen[-1] == 1.0
    assert {f["what"] for f in result["failed"]} == {jobs[0].name} | {
        s.name for s in scorings if s.training is not None
    }
    assert [f["why"] for f in result["failed"][1:]] == [f"{jobs[0].name} failed"] * 2
    assert result["not_scored"] == []
    assert result["rows"]  # the yardsticks
    text = as_markdown({"command": "bench", **result})
    assert text.count(jobs[0].name) == 5


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def table(value: float, noise: np.ndarray | float = 0.0, seeds: Sequence[int] = range(10)) -> Table:
    returns = value + np.random.default_rng(0).standard_normal((10, 200)) + noise
    return Table(returns[list(seeds)], tuple(seeds))


def cell(arm: str, after: str = SHORT, model: str = "prediction") -> Cell:
    return Cell("cartpole", "id", model, arm, after)


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "not worse"), (5.0, "better"), (-MARGIN, "open"), (-30.0, "open")]
)
def test_not_worse_says_so_only_where_it_is(shift: float, verdict: str) -> None:
    noise = np.random.default_rng(1).standard_normal((10, 200))
    found = {cell("standard"): table(400.0), cell("hybrid"): table(400.0 + shift, noise)}
    (row,) = not_worse(found, "hybrid", "standard", seed=0)
    assert row["verdict"] == verdict
    assert row["pairs"] == 2000
    low, high = row["difference"]["ci95_low"], row["difference"]["ci95_high"]
    assert low < shift + noise.mean() < high


def test_arms_that_do_the_same_are_not_worse_and_not_better() -> None:
    found = {cell("standard"): table(400.0), cell("hybrid"): table(400.0)}
    (row,) = not_worse(found, "hybrid", "standard", seed=0)
    assert (row["verdict"], row["p_better"]) == ("not worse", 1.0)


def test_a_pair_is_compared_with_a_reference_that_had_no_data() -> None:
    pair = Pair("prediction", "standard", "prediction", "frozen", NOTHING)
    found = {cell("standard"): table(480.0), cell("frozen", NOTHING): table(20.0)}
    (row,) = differences(found, [pair], seed=0)
    assert row["difference"]["mean"] == pytest.approx(460.0)
    assert row["improvement"]["mean"] == 1.0


def test_arms_are_compared_on_the_seeds_and_tasks_that_both_met() -> None:
    pair = Pair("prediction", "standard", "prediction", "frozen")
    theirs = table(300.0, np.arange(10.0)[:, None], seeds=(0, 1, 2, 4, 5, 7, 8, 9))
    found = {
        cell("standard"): table(480.0, np.arange(10.0)[:, None], seeds=(1, 2, 3, 5, 9)),
        cell("frozen"): replace(theirs, returns=theirs.returns[:, :50]),
    }
    (row,) = differences(found, [pair], seed=0)
    assert row["difference"]["mean"] == pytest.approx(180.0), "row by row of the same seed"
    assert row["pairs"] == 4 * 50


def test_a_yardstick_meets_every_seed_and_one_seed_makes_no_interval() -> None:
    pair = Pair("prediction", "standard", "yardsticks", "lqr")
    yardstick = Table(np.full((1, 200), 500.0))
    lqr = cell("lqr", model="yardsticks")
    (row,) = differences({cell("standard"): table(480.0), lqr: yardstick}, [pair], seed=0)
    assert row["pairs"] == 2000 and row["difference"]["mean"] == pytest.approx(-20.0, abs=0.1)
    assert differences({cell("standard"): table(480.0, seeds=[3]), lqr: yardstick}, [pair], 0) == []


def test_a_profile_shows_no_arm_before_it_has_any_data() -> None:
    found = {
        cell("frozen", NOTHING): table(100.0),
        cell("fine_tuned", NOTHING, "multi_task"): table(100.0),
        cell("fine_tuned", "1 episode", "multi_task"): table(200.0),
        cell("standard"): table(400.0),
    }
    assert set(profiles(found)["cartpole, id"]) == {"frozen (prediction)", "standard (prediction)"}


def test_steps_to_the_goal_have_a_median_only_where_half_get_there() -> None:
    steps = np.array([[20.0, 61.0, np.inf]])
    found = {cell("standard", TO_GOAL): Table(steps, (0,))}
    (row,) = steps_to_goal(found)
    assert (row["median_env_steps"], row["reached"]) == (61.0, pytest.approx(2 / 3))
    steps[:, 1] = np.inf
    (row,) = steps_to_goal(found)
    assert (row["median_env_steps"], row["reached"]) == (None, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("plan_of", "message"),
    [
        (
            {"families": ("pendulum",), "seeds": 1},
            "families: expected among .*, received 'pendulum'",
        ),
        ({"families": (), "seeds": 0}, "seeds: expected at least 1, received 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan_of: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(protocol=ONE, **plan_of)


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--families", "pendulum", "--work", str(tmp_path / "work")]
    assert main(["bench", "adaptation", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "families: expected among cartpole, cartpole_scrambled, received 'pendulum'" in line
    assert not (tmp_path / "work").exists()


def test_a_missing_matplotlib_is_missed_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ssm_metarl.cli.bench.find_spec", lambda _: None)
    assert main(["bench", "adaptation", "--work", str(tmp_path / "work")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "expected matplotlib" in line and not (tmp_path / "work").exists()


@pytest.mark.slow
def test_the_command_writes_its_figures_tables_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "adaptation", "--quick", "--families", "cartpole", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    out = tmp_path / "runs/adaptation/quick/results"
    assert json.loads((out / "adaptation.json").read_text()) == shown
    assert shown["failed"] == [] and shown["not_scored"] == []
    assert {t["model"] for t in shown["trainings"]} == set(recipes.RECIPES["cartpole"])
    assert shown["command"] == "ssm-metarl bench adaptation --families cartpole --quick"
    assert "| standard (prediction) |" in (out / "tables/adaptation.md").read_text()
    for picture in ("adaptation_curves", "adaptation_profiles"):
        assert (out / f"plots/{picture}.png").stat().st_size > 10_000
    tables = comparing.read("adaptation", out).tables
    assert {"differences", "hybrid_not_worse"} <= {table.title for table in tables}
