"""Timing: turns, ratios of pairs, spreads; on a clock that only the test moves."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers import Stopwatch
from benchmarks.timing import (
    Series,
    Spread,
    alternate,
    interleave,
    limited_threads,
    reason,
)


class FakeClock:
    """Seconds that pass when a candidate says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float) -> None:
        self.log.append(name)
        self.now += seconds


def test_candidates_take_turns_after_a_warm_up() -> None:
    clock = FakeClock()
    series = interleave(
        {"a": lambda: clock.call("a", 1.0), "b": lambda: clock.call("b", 3.0)},
        2,
        seconds=0.1,
        warmup=1,
        clock=clock,
    )
    assert clock.log == ["a", "b", "a", "b", "a", "b"]
    assert series.figures == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
    assert series.ratio("b", "a") == Spread(3.0, 3.0, 3.0, 2)


def test_a_short_call_is_repeated_until_it_can_be_timed() -> None:
    clock = FakeClock()
    series = interleave({"a": lambda: clock.call("a", 0.25)}, 1, seconds=1.0, warmup=2, clock=clock)
    assert len(clock.log) == 2 + 4
    assert series.figures["a"] == [0.25]


def test_a_warm_up_that_compiles_is_not_measured() -> None:
    clock = FakeClock()
    costs = iter([50.0, 1.0, 1.0, 1.0])
    series = interleave({"a": lambda: clock.call("a", next(costs))}, 2, seconds=0, clock=clock)
    assert series.figures["a"] == [1.0, 1.0]


def test_a_drift_that_both_meet_leaves_the_ratio_alone() -> None:
    slowness = 0.0

    def ours() -> float:
        nonlocal slowness
        slowness += 1.0
        return 2.0 * slowness

    series = alternate({"ours": ours, "peer": lambda: 6.0 * slowness}, 5)
    assert series.figures["ours"] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert series.ratio("peer", "ours") == Spread(3.0, 3.0, 3.0, 5)


def test_the_spread_is_the_range_of_few_and_the_tenths_of_many() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([float(x) for x in range(11)]) == Spread(5.0, 1.0, 9.0, 11)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_a_candidate_that_fails_is_out_and_the_others_go_on() -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'sb3_contrib'", name="sb3_contrib")

    series = interleave({"ours": lambda: None, "peer": missing}, 3, seconds=0)
    assert len(series.figures["ours"]) == 3
    assert series.failures["peer"] == (
        "not installed (sb3_contrib): pip install 'ssm-metarl[bench]'"
    )
    assert series.ratio("peer", "ours") is None
    assert series.median("peer") is None


def test_a_candidate_that_fails_later_is_out_too() -> None:
    figures = iter([1.0])
    rounds: list[int] = []
    series = alternate(
        {"a": lambda: 1.0, "b": lambda: next(figures)}, 3, on_repetition=rounds.append
    )
    assert series.figures["a"] == [1.0] * 3
    assert series.failures == {"b": "failed: StopIteration: "}
    assert rounds == [1, 2, 3]


def test_a_reason_is_one_short_line() -> None:
    text = reason(RuntimeError("first\nsecond " + "x" * 500))
    assert text.startswith("failed: RuntimeError: first second")
    assert "\n" not in text
    assert len(text) <= 200


def test_a_peer_runs_with_the_threads_that_suit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, threads = FakeClock(), [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    series = interleave(
        {
            "ours": lambda: clock.call("ours", float(threads[0])),
            "small": lambda: clock.call("small", 10.0 * threads[0]),
            "large": lambda: clock.call("large", 10.0 / threads[0]),
        },
        1,
        seconds=0,
        best_threads=("small", "large"),
        clock=clock,
    )
    assert series.threads == {"small": 1, "large": 4}
    assert series.figures == {"ours": [4.0], "small": [10.0], "large": [2.5]}
    assert threads == [4]


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), limited_threads(before + 1):
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_ratios_are_of_pairs_not_of_medians() -> None:
    series = Series({"a": [1.0, 10.0, 100.0], "b": [2.0, 10.0, 50.0]})
    assert series.ratio("a", "b") == Spread(1.0, 0.5, 2.0, 3)


def test_a_paused_stopwatch_stands_still() -> None:
    clock = FakeClock()
    watch = Stopwatch(cap=10.0, clock=clock)
    watch.start()
    clock.now += 2
    with watch.paused():
        clock.now += 50
    clock.now += 1
    assert watch.seconds() == 3
    watch.start()
    assert watch.seconds() == 0
