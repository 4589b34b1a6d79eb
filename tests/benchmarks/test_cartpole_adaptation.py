"""The documented benchmark: what is paired with what, what is written, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cartpole_adaptation
from benchmarks.cartpole_adaptation import main, measure
from ssm_metarl.app.handlers.comparing import read
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.evaluation.meta_evaluator import evaluate
from ssm_metarl.evaluation.opened_model import open_model

FEW = ["--num_tasks", "2", "--seed", "3"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cartpole_adaptation, "CONFIGURATIONS", ((2, 0.01), (1, 0.01), (1, None)))


def test_a_row_equals_the_evaluator_s_arms() -> None:
    opened = open_model("cartpole_hybrid_real_model")
    config = EvaluationConfig(num_tasks=3, seed=3)
    shares: list[float] = []
    result = measure(opened, config, lambda share, what: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == 1.0
    rows = {(r["split"], r["adapt_lr"], r["num_adapt_steps"]): r for r in result["configurations"]}
    row = rows["ood", "learned", 1]
    arms = evaluate(
        opened.policy, opened.family, EvaluationConfig(num_tasks=3, seed=3, split="ood"),
        model=opened.name, trained=opened.trained, buffer=opened.buffer,
    )  # fmt: skip
    for arm in ("frozen", "standard", "hybrid"):
        assert row[arm] == pytest.approx(arms["arms"][arm]["mean"])
    assert row["hybrid - standard"]["mean"] == pytest.approx(
        arms["paired"]["hybrid-standard"]["mean"]
    )
    curve = [p["mean"] for p in result["learning_curves"]
             if (p["split"], p["adapt_lr"], p["mode"]) == ("id", "0.01", "hybrid")]  # fmt: skip
    one, two = rows["id", "0.01", 1], rows["id", "0.01", 2]
    assert curve == [one["frozen"], one["hybrid"], two["hybrid"]]


def test_everything_is_written_and_the_app_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FEW, "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "benchmark_results.json").read_text())
    assert printed["command"].startswith("python benchmarks/cartpole_benchmark.py --num_tasks 2")
    table = (tmp_path / "tables" / "benchmark_results.md").read_text()
    assert table.count("\n| id |") == table.count("\n| ood |") == 3
    for name in ("adaptation_comparison", "learning_curves"):
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 1000
    shown = read("benchmark_results", tmp_path)
    assert [t.title for t in shown.tables] == ["configurations", "learning_curves"]
    assert shown.command == printed["command"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--num_tasks", "0"], "num_tasks: expected at least 1, received 0"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main([*FEW, "--out", str(tmp_path / "out"), *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_experience_is_refused() -> None:
    opened = open_model("cartpole_hybrid_real_model")
    with pytest.raises(ValueError, match="expected one with experience to replay"):
        measure(replace(opened, buffer=None), EvaluationConfig(num_tasks=2), lambda *_: None)


def test_the_committed_results_hold_together() -> None:
    content = json.loads((cartpole_adaptation.RESULTS / "benchmark_results.json").read_text())
    assert content["command"] == "python benchmarks/cartpole_benchmark.py"
    assert (content["num_tasks"], content["seed"]) == (200, 10_000)
    curves = {(p["split"], p["adapt_lr"], p["mode"], p["num_adapt_steps"]): p["mean"]
              for p in content["learning_curves"]}  # fmt: skip
    for row in content["configurations"]:
        for mode in ("standard", "hybrid"):
            key = (row["split"], row["adapt_lr"], mode, row["num_adapt_steps"])
            assert np.isclose(curves[key], row[mode])


def test_the_documented_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks/cartpole_benchmark.py"
    shown = subprocess.run(
        [sys.executable, script, "--help"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert "--num_tasks" in shown
