"""Environments of other packages: what their files and the page about them promise."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.environments import __main__ as runner
from ssm_metarl.experience.plant_log import open_plant_log
from ssm_metarl.tasks.registry import named_family

FILES = sorted(path.stem for path in runner.HERE.glob("[a-z]*.py"))
OWN = runner.PACKAGES["gymnasium",].split()


def rows() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(runner.RESULTS.read_text())["environments"]
    return found


def test_every_file_is_run_once_and_has_thirty_lines_at_most() -> None:
    listed = Counter(name for names in runner.PACKAGES.values() for name in names.split())
    assert sorted(listed) == FILES and set(listed.values()) == {1}
    for name in FILES:
        assert len((runner.HERE / f"{name}.py").read_text().splitlines()) <= 30, name


def test_the_page_shows_the_results_and_all_worked() -> None:
    page = runner.PAGE.read_text()
    assert {row["name"] for row in rows()} == set(FILES)
    for row in rows():
        assert runner.as_line(row) in page, row["name"]
        assert row["worked"], row["name"]
        assert row["lines"] == len((runner.HERE / f"{row['name']}.py").read_text().splitlines())


def test_an_environment_that_is_not_installed_keeps_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RESULTS", "PAGE"):
        copy = tmp_path / name
        copy.write_text(getattr(runner, name).read_text())
        monkeypatch.setattr(runner, name, copy)
    order = " ".join(str(row["name"]) for row in rows())
    monkeypatch.setattr(runner, "PACKAGES", {("no-such-package",): order})
    before, page = rows(), runner.PAGE.read_text()
    runner.main([])
    assert "no-such-package is not installed here" in capsys.readouterr().out
    assert rows() == before and runner.PAGE.read_text() == page
    runner.write(row=before[0] | {"lines": 7})
    assert rows() == [before[0] | {"lines": 7}, *before[1:]]
    assert runner.PAGE.read_text() != page


@pytest.mark.parametrize("name", OWN)
def test_a_log_is_one_that_the_package_reads(name: str, tmp_path: Path) -> None:
    family = named_family(f"{runner.HERE / name}.py:FAMILY")
    assert family.plant is not None and family.plant.spaces is not None
    obs_dim, space = family.plant.spaces
    runner.write_log(family, tmp_path / "log.csv")
    log = open_plant_log(
        tmp_path / "log.csv", obs_dim=obs_dim, action_space=space, obs_names=family.obs_names
    )
    steps = runner.LOG_EPISODES * runner.LOG_STEPS
    assert int(log.rollout.mask.sum()) == steps
    assert np.isfinite(log.rollout.obs.numpy()).all()


def test_two_families_are_one_plant_in_other_units() -> None:
    families = [named_family(f"{runner.HERE / name}.py:FAMILY") for name in runner.UNITS]
    assert [p.id for p in families[0].parameters] == [p.id for p in families[1].parameters]
    seen = []
    for family, factor in zip(families, (1, 500), strict=True):
        assert family.plant is not None
        env = family.plant.build({"m": 1.2})
        env.reset(seed=3)
        seen.append([env.step(np.float32([torque * factor]))[:2] for torque in (-2, 1, 2)])
    for (obs, reward), (other, paid) in zip(*seen, strict=True):
        np.testing.assert_allclose(other, obs * np.array([1, 1, 1000]), rtol=1e-5)
        assert reward == pytest.approx(paid)


@pytest.mark.slow
def test_a_plant_in_other_units_goes_the_whole_way() -> None:
    row = runner.brought(runner.UNITS[1], "gymnasium")
    assert row.worked and row.checks == "12 passed" and row.notes == ()
    assert row.steps_per_second > 0
