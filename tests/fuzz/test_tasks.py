"""A task as it is typed: adapted to, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssm_metarl.cli import main
from ssm_metarl.cli.adapt import parse_task
from ssm_metarl.tasks.registry import FAMILIES

from .junk import ODD_NUMBERS, damaged, json_value, pick, rng_of

COUNTS = [200, pytest.param(10_000, marks=pytest.mark.nightly)]
NAMES = ("force", "length", "mass", "gravity", "sign", "order", "mirror", "another", "")


def task_text(index: int) -> str:
    rng = rng_of(3, index)
    value = json_value(rng)
    if rng.random() < 0.7:
        value = {pick(rng, NAMES): pick(rng, ODD_NUMBERS) for _ in range(int(rng.integers(4)))}
    text = json.dumps(value)
    if rng.random() < 0.3:
        text = damaged(rng, text.encode()).decode(errors="replace")
    if rng.random() < 0.03:
        text = pick(rng, ("[" * 100_000, '{"a":' * 50_000, "9" * 10_000, '{"force": 1e99999}'))
    return text


@pytest.mark.parametrize("count", COUNTS)
def test_a_task_is_taken_or_refused(count: int) -> None:
    taken = 0
    for index in range(count):
        for family in FAMILIES.values():
            try:
                family.task(parse_task(task_text(index)))
                taken += 1
            except ValueError as error:
                assert "\n" not in str(error)
                assert "expected" in str(error) and "received" in str(error)
    assert taken > 0


@pytest.mark.parametrize("count", [40, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_the_command_line_says_so_in_one_line(
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, up to where the model would adapt."""
    monkeypatch.chdir(tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssm_metarl.evaluation.episodes.collect_support", stop)
    for index in range(count):
        code = main(["adapt", "--model", "cartpole", f"--task={task_text(index)}"])
        told = capsys.readouterr()
        assert code in (2, 130) and told.out == ""
        assert len(told.err.splitlines()) == 1, told.err
    assert list(tmp_path.iterdir()) == []
