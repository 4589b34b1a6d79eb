"""Visitors: private, bounded, forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssm_metarl.app.jobs import Busy
from ssm_metarl.app.visitors import UnknownVisitor, Visitors


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def visitors(tmp_path: Path, clock: Clock) -> Visitors:
    return Visitors(tmp_path, model="a", most=3, seconds=1000.0, clock=clock)


def test_a_token_finds_its_visitor_again(visitors: Visitors) -> None:
    visitor = visitors.arrive("")
    visitor.draws = 7
    assert visitors.arrive(visitor.token) is visitor
    assert visitors.get(visitor.token).draws == 7
    assert len(visitors) == 1


@pytest.mark.parametrize("token", ["", "x" * 43, "../../etc/passwd", None, 7, ["a"], {"a": 1}])
def test_a_token_that_the_server_did_not_give_finds_nobody(
    visitors: Visitors, token: object
) -> None:
    visitors.arrive("")
    with pytest.raises(UnknownVisitor, match="reload"):
        visitors.get(token)
    newcomer = visitors.arrive(token)
    assert newcomer.token != token and len(visitors) == 2, "tokens are chosen by the server"


def test_tokens_are_long_and_differ(visitors: Visitors) -> None:
    tokens = {visitors.arrive("").token for _ in range(3)}
    assert len(tokens) == 3 and min(map(len, tokens)) >= 43


def test_a_folder_is_private_and_does_not_tell_the_token(visitors: Visitors) -> None:
    visitor, other = visitors.arrive(""), visitors.arrive("")
    first, second = visitor.new_folder("training"), visitor.new_folder("training")
    assert first.is_dir() and second.is_dir() and first != second
    assert visitor.folder.stat().st_mode & 0o077 == 0
    assert visitor.token not in str(first)
    assert not other.folder.exists(), "made on first use"


def test_who_is_not_seen_is_forgotten_with_all_their_runs(tmp_path: Path, clock: Clock) -> None:
    left = []
    visitors = Visitors(
        tmp_path, model="a", most=3, seconds=1000.0, on_leave=left.append, clock=clock
    )
    gone, stays = visitors.arrive(""), visitors.arrive("")
    run = gone.new_folder("training")
    (run / "file").write_text("weights")
    clock.now = 600.0
    visitors.get(stays.token)
    clock.now = 1001.0
    visitors.sweep()
    assert left == [gone] and not gone.folder.exists()
    with pytest.raises(UnknownVisitor):
        visitors.get(gone.token)
    assert visitors.get(stays.token) is stays


def test_a_full_house_is_busy_until_somebody_has_been_away_for_long(
    visitors: Visitors, clock: Clock
) -> None:
    first = visitors.arrive("")
    for _ in range(2):
        visitors.arrive("")
    with pytest.raises(Busy, match="busy: 3 visitors"):
        visitors.arrive("")
    clock.now = 700.0
    newcomer = visitors.arrive("")
    assert len(visitors) == 3
    with pytest.raises(UnknownVisitor):
        visitors.get(first.token)
    assert visitors.get(newcomer.token) is newcomer


def test_closing_forgets_everybody(visitors: Visitors) -> None:
    visitor = visitors.arrive("")
    visitor.new_folder("training")
    visitors.close()
    assert len(visitors) == 0 and not visitor.folder.exists()
