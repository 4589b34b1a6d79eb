"""What is read of a training's log, whatever stands in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssm_metarl.meta_rl.training_log import read_log

GOOD = b'{"epoch": 1, "env_steps": 10}'


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 300,
        b"",
        b"\xff\xfe",
        GOOD[:9],
        b"[" * 100_000,
        b"[1, 2]",
        b"null",
        b'{"epoch": 1}',
        b'{"epoch": "1", "env_steps": 2}',
        b'{"epoch": true, "env_steps": 2}',
        b'{"epoch": 1, "env_steps": NaN}',
        b'{"epoch": 1, "env_steps": ' + b"9" * 5000 + b"}",
        b'{"epoch": 1, "env_steps": ' + b"9" * 400 + b"}",
        b'"env_steps"',
    ],
    ids=lambda damage: str(damage[:30]),
)
def test_a_damaged_line_costs_itself(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "log"
    for content in (
        GOOD + b"\n" + damage + b"\n" + GOOD + b"\n",
        damage + b"\n" + GOOD + b"\n" * 1,
    ):
        path.write_bytes(content)
        log = read_log(path)
        assert log.rows == [json.loads(GOOD)] * (content.count(GOOD))
        assert log.damaged == 1


def test_a_last_line_may_lack_its_end_or_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(GOOD + b"\n" + GOOD)
    assert (len(read_log(path).rows), read_log(path).damaged) == (2, 0)
    path.write_bytes(GOOD + b"\n" + GOOD[:-1])
    assert (len(read_log(path).rows), read_log(path).damaged) == (1, 1)
    path.write_bytes(b"")
    assert (read_log(path).rows, read_log(path).damaged) == ([], 0)
