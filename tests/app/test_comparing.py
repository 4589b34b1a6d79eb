"""Tab 4: the committed results, whatever they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssm_metarl.app import charts
from ssm_metarl.app.handlers import comparing
from ssm_metarl.app.handlers.comparing import RESULTS


@pytest.mark.parametrize("name", comparing.names())
def test_every_committed_result_has_tables_and_its_command(name: str) -> None:
    result = comparing.read(name)
    assert result.command, f"{name}.json: expected the command that makes it again"
    assert result.tables and all(table.rows for table in result.tables)
    for table in result.tables:
        assert len({tuple(row) for row in table.rows}) == 1, "the same columns in every row"


def test_the_ratios_are_those_of_the_file() -> None:
    content = json.loads((RESULTS / "performance.json").read_text())
    row = next(r for r in content["rows"] if r["name"] == "rollout")
    table = next(t for t in comparing.read("performance").tables if t.title == "rollout")
    expected = [m["ratio"]["median"] for m in row["measurements"] if m["ratio"] is not None]
    assert [row.middle for row in comparing.intervals(table)] == expected
    chart = charts.ratios(comparing.intervals(table), "rollout")
    assert [r["value"] for r in chart["rows"]] == expected


def test_the_differences_are_those_of_the_file() -> None:
    content = json.loads((RESULTS / "benchmark_results.json").read_text())
    table = comparing.read("benchmark_results").tables[0]
    found = comparing.differences(table)
    rows = content["configurations"]
    assert [(i.middle, i.low, i.high) for i in found] == [
        (row[pair]["mean"], row[pair]["ci95_low"], row[pair]["ci95_high"])
        for pair in ("standard - frozen", "hybrid - standard")
        for row in rows
    ]
    assert (found[0].label, found[0].kind) == ("id, 5, 0.01", "standard - frozen")
    chart = charts.differences(found, "configurations")
    assert chart["ref"] == 0 and len({row["color"] for row in chart["rows"]}) == 2
    curves = comparing.read("benchmark_results").tables[1]
    assert comparing.intervals(table) == comparing.differences(curves) == []


def test_a_result_of_another_kind_is_shown_as_tables(tmp_path: Path) -> None:
    arms = [{"arm": "frozen", "mean": 12.5}, {"arm": "hybrid", "mean": 499, "ci": {"low": 1}}]
    (tmp_path / "adaptation.json").write_text(
        json.dumps({"command": "make figures", "version": "1", "arms": arms, "seed": 3})
    )
    result = comparing.read("adaptation", tmp_path)
    (table,) = result.tables
    assert (result.command, table.title) == ("make figures", "arms")
    assert table.rows == [
        {"arm": "frozen", "mean": 12.5, "ci.low": None},
        {"arm": "hybrid", "mean": 499, "ci.low": 1},
    ]
    assert comparing.intervals(table) == [] and charts.ratios([], "") == charts.NOTHING


@pytest.mark.parametrize("name", ["../results/performance", "/etc/passwd", "", None, 3])
def test_no_path_is_a_result(name: object) -> None:
    with pytest.raises(ValueError, match="result: expected one from the list"):
        comparing.read(name)
