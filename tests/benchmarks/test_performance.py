"""The benchmark as a whole: what is written, where, and what a missing peer leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import performance
from benchmarks.adapting import count_launches, counted_kernels
from benchmarks.machine import load, machine, processor
from benchmarks.meta_training import meta_training
from benchmarks.peers import Solved
from benchmarks.performance import ROWS, Row, default_folder, failed, print_table, run
from benchmarks.processes import slope
from benchmarks.results import Measurement, cells, compare
from benchmarks.sequence import prove_second_gradient, scan_candidates
from benchmarks.settings import Settings
from benchmarks.time_to_475 import rate_row, seconds_row, time_to_475
from benchmarks.timing import Series
from ssm_metarl.app.handlers.comparing import RESULTS
from ssm_metarl.cli import main
from ssm_metarl.cli.bench import Bench
from ssm_metarl.cli.parsing import parse
from ssm_metarl.config import MetaTrainingConfig


class FakeRow(Row):
    """A row that takes no time."""

    def measure(self, settings: Settings) -> list[Measurement]:
        settings.progress(0.5, "half")
        if self.function == "broken":
            raise RuntimeError("no such luck")
        series = Series({"ours": [2.0, 2.0, 4.0], "peer": [6.0, 8.0, 8.0]})
        missing = Series({"ours": [2.0], "peer": []}, {"peer": "not installed (x): pip"})
        return [
            compare(series, "fake/fast", "a case", "peer", unit="s", floor=1.0),
            compare(series, "fake/cost", "a cost", "peer", unit="MB", kind="over"),
            compare(missing, "fake/missing", "another", "peer", unit="s"),
        ]


FAKE = {"fake": FakeRow("x", "fine", "what it is", 1), "bad": FakeRow("x", "broken", "else", 3)}


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    return run(rows=FAKE, out=tmp_path / "out", targets={"fake/fast": 4.0, "fake/cost": 0.4})


def test_json_table_and_picture_are_written(result: dict[str, Any], tmp_path: Path) -> None:
    written = json.loads((tmp_path / "out/performance.json").read_text())
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert not written["quick"]
    fast, cost, missing = written["rows"][0]["measurements"]
    assert fast["ratio"] == {"median": 3.0, "low": 2.0, "high": 4.0, "repetitions": 3}
    assert (fast["ours"], fast["theirs"], fast["over_floor"]["median"]) == (2.0, 8.0, 2.0)
    assert (fast["target"], fast["target_met"]) == (4.0, False)
    assert (cost["ratio"]["median"], cost["target_met"]) == (pytest.approx(1 / 3), True)
    assert missing["ratio"] is None
    assert missing["note"] == "not installed (x): pip"
    assert written["rows"][1]["error"] == "failed: RuntimeError: no such luck"

    table = (tmp_path / "out/performance.md").read_text()
    assert "| a case | 2 s | peer | 8 s | 3x (2 to 4) | 2 | ≥ 4 missed |  |" in table
    assert "failed: RuntimeError: no such luck" in table
    picture = (tmp_path / "out/performance.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000


def test_no_host_name_and_no_path_is_published(tmp_path: Path, result: dict[str, Any]) -> None:
    import platform

    text = (tmp_path / "out/performance.json").read_text()
    assert str(Path.cwd()) not in text
    assert f'"{platform.node()}"' not in text


def test_one_row_alone(tmp_path: Path) -> None:
    (row,) = run(rows=FAKE, only=["fake"], out=tmp_path)["rows"]
    assert row["name"] == "fake"
    with pytest.raises(ValueError, match="only: expected among fake, bad, received nothing"):
        run(rows=FAKE, only=["nothing"], out=tmp_path)


def test_only_a_whole_run_writes_to_the_packages_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "package/results"
    monkeypatch.setattr(performance, "RESULTS", published)
    monkeypatch.chdir(tmp_path)
    assert run(rows=FAKE, size="quick")["out"] == "runs/bench-quick"
    assert run(rows=FAKE, only=["fake"])["out"] == "runs/bench-part"
    assert not published.exists()
    assert (tmp_path / "runs/bench-quick/performance.json").is_file()
    run(rows=FAKE)
    assert (published / "performance.json").is_file()
    assert default_folder("quick", ()) != RESULTS


def test_the_progress_ends_at_one_and_never_falls(tmp_path: Path) -> None:
    shares: list[float] = []
    run(rows=FAKE, out=tmp_path, report=lambda share, message: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_table_says_what_is_missing(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(result)
    out = capsys.readouterr().out
    assert "bad: failed: RuntimeError: no such luck" in out
    assert "fake/missing: not installed (x): pip" in out
    assert "written to" in out
    assert failed(result)


def test_a_measurement_survives_json(result: dict[str, Any]) -> None:
    for values in result["rows"][0]["measurements"]:
        measurement = Measurement.from_json(json.loads(json.dumps(values)))
        assert len(cells(measurement)) == 8


@pytest.fixture
def fake_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(performance.run, "__kwdefaults__", {
        **performance.run.__kwdefaults__, "rows": {"fake": FAKE["fake"]},
    })  # fmt: skip
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_the_command(fake_benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "runs/bench-quick"
    assert main(["bench", "--only", "fake", "--out", "here"]) == 0
    assert "written to here" in capsys.readouterr().out
    assert (fake_benchmark / "here/performance.md").is_file()
    assert main(["bench", "--only", "nothing"]) == 2
    assert "only: expected among fake, received nothing" in capsys.readouterr().err


def test_the_module_is_the_same_command(
    fake_benchmark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert performance.main(["--quick", "--json", "--only", "fake"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "runs/bench-quick"


def test_flags_of_the_command() -> None:
    assert parse(["bench", "--only", "scan", "memory"]) == Bench(only=("scan", "memory"))
    assert parse(["bench", "--quick"]) == Bench(quick=True)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_row_names_a_function(name: str) -> None:
    from importlib import import_module

    row = ROWS[name]
    assert callable(getattr(import_module(f"benchmarks.{row.module}"), row.function))


@pytest.mark.parametrize("name", ["adapt_many", "adapt_one", "policy_step", "rollout"])
def test_a_row_measures(name: str, tmp_path: Path) -> None:
    (row,) = run(size="tiny", only=[name], out=tmp_path)["rows"]
    assert row["error"] is None
    for m in row["measurements"]:
        assert m["name"].startswith(f"{name}/")
        assert m["ratio"] is None or m["ratio"]["median"] > 0


@pytest.mark.parametrize("name", sorted(scan_candidates()))
def test_every_scan_that_is_compared_has_the_second_gradient(name: str) -> None:
    prove_second_gradient(scan_candidates()[name])


def test_a_scan_with_a_wrong_gradient_is_found_out() -> None:
    def detached(a: torch.Tensor, b: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return scan_candidates()["scan_reference"](a, b.detach() + 0 * b, hidden)

    with pytest.raises(AssertionError):
        prove_second_gradient(detached)


def test_launches_are_counted() -> None:
    x = torch.ones(3, requires_grad=True)
    operations, kernels = count_launches(lambda: (x * x).sum().backward())
    assert 5 <= operations <= 15  # mul, sum, ones, expand, two mul, add ...
    assert kernels == 0


def test_counted_kernels_are_put_back() -> None:
    from ssm_metarl.tasks import cartpole

    before = dict(vars(cartpole))
    with counted_kernels():
        pass
    assert dict(vars(cartpole)) == before


def test_a_cap_gives_a_bound() -> None:
    solved = {
        "diagonal": [Solved(10.0, True, 1000), Solved(20.0, True, 2000)],
        "PPO": [Solved(30.0, False, 300), Solved(10.0, True, 100)],
    }
    series = Series({"diagonal": [10.0, 20.0], "PPO": [30.0, 10.0]})
    m = seconds_row("diagonal", "PPO", solved, series)
    assert m.at_least
    assert m.theirs is None
    assert m.ratio is not None
    assert m.ratio.median == 1.75
    assert "PPO: > 30 s (cap)" in m.note
    assert cells(m)[4].startswith("> 1.75x")
    rate = rate_row("diagonal", "PPO", solved, series)
    assert rate.ratio is not None
    assert rate.ratio.median == 10


def test_a_peer_that_is_not_installed_leaves_a_line() -> None:
    solved: dict[str, list[Solved]] = {"diagonal": [Solved(10.0, True, 1000)], "PPO": []}
    series = Series({"diagonal": [10.0], "PPO": []}, {"PPO": "not installed (stable_baselines3)"})
    for m in (
        seconds_row("diagonal", "PPO", solved, series),
        rate_row("diagonal", "PPO", solved, series),
    ):
        assert m.ratio is None
        assert m.note == "not installed (stable_baselines3)"
        assert m.ours is not None


def test_without_the_extra_the_row_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    training = MetaTrainingConfig(
        num_epochs=1, tasks_per_epoch=2, horizon=5, full_horizon_every=0, state_dim=4, hidden_dim=4
    )
    rows = time_to_475(Settings(size="tiny", training=training))
    assert len(rows) == 8
    for m in rows:
        assert m.ratio is None
        assert "pip install 'ssm-metarl[bench]'" in m.note


def test_a_meta_training_is_measured() -> None:
    training = MetaTrainingConfig(
        tasks_per_epoch=2, horizon=5, full_horizon_every=0, state_dim=4, hidden_dim=4
    )
    loops = meta_training(Settings(size="tiny", training=training))
    assert [m.name for m in loops] == [
        f"meta_training/{core}/{name}"
        for core in ("state_space", "diagonal")
        for name in ("cell_by_cell", "layer_by_layer", "floor")
    ]
    assert all(m.ratio is not None and m.ratio.median > 0 for m in loops)


def test_where_we_do_not_get_there_no_ratio_is_claimed() -> None:
    solved = {"diagonal": [Solved(10.0, False, 1000)], "PPO": [Solved(1.0, True, 100)]}
    m = seconds_row("diagonal", "PPO", solved, Series({"diagonal": [10.0], "PPO": [1.0]}))
    assert m.ours is None
    assert m.ratio is None
    assert "ours: > 10 s (cap)" in m.note


def test_a_straight_line_of_memory() -> None:
    m = slope({100: [30.0, 30.0], 200: [40.0, 40.0], 400: [60.0, 60.0]})
    assert m.ours == pytest.approx(10.0)
    assert "a line through 20 MB" in m.note
    assert "further than 0.0 MB" in m.note


@pytest.mark.parametrize(("before", "warned"), [(0.1, False), (2.0, True), (None, False)])
def test_a_busy_machine_is_told(
    before: float | None, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "load", lambda: before)
    run(rows={"fake": FAKE["fake"]}, out=tmp_path)
    text = (tmp_path / "performance.md").read_text()
    assert ("The machine was busy (2.0 cores" in text) == warned


@pytest.fixture(autouse=True)
def _no_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "load", lambda: 0.0)


def test_cores_in_use_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 100 0 100 800 0 0 0 0 0 0\ncpu0 ...\n")
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def later(seconds: float) -> None:
        stat.write_text("cpu 150 0 100 850 0 0 0 0 0 0\n")

    monkeypatch.setattr("time.sleep", later)
    assert load(stat=stat) == 1.0
    assert load(stat=tmp_path / "missing") is None


def test_the_machine_is_described(tmp_path: Path) -> None:
    summary = machine()
    assert {"processor", "cores", "threads", "python", "torch", "numba"} <= set(summary)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A Processor 9000\n")
    assert processor(cpuinfo) == "A Processor 9000"
    assert processor(tmp_path / "missing")
