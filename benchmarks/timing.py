"""Fair timing: the candidates take turns, and each repetition gives one ratio.

Place in the flow: under every row of `performance`. A machine's speed drifts with its temperature
and with who else uses it. Measured in blocks, one candidate meets the fast minutes and the other
the slow ones; in turns (A B A B ...) both meet the same, and the ratio within a pair is what the
drift cannot touch. Its spread over the repetitions says how far to trust the median.

Whatever runs first also compiles, allocates and fills caches: a warm-up comes before.

The trap: many small operations on two threads wait for each other, and where another process holds
a core, each wait lasts until that one is interrupted: a step of half a millisecond takes ninety. So
a peer of small operations runs with one thread or with all, whichever suits it better.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

Clock = Callable[[], float]
ENOUGH_FOR_TENTHS = 10
"""Repetitions from which on the spread is the range from 10 % to 90 %, not the whole range."""
MAX_CALLS = 100_000


@dataclass(frozen=True)
class Spread:
    """A median and how far the repetitions lie apart."""

    median: float
    low: float
    high: float
    repetitions: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median of the values, and their range: whole, or from 10 % to 90 % where there are many.

        Raises:
            ValueError: There are none.
        """
        if len(values) == 0:
            raise ValueError("spread: expected at least one value, received none")
        tail = 10 if len(values) >= ENOUGH_FOR_TENTHS else 0
        low, median, high = np.percentile(
            np.asarray(values, dtype=np.float64), [tail, 50, 100 - tail]
        )
        return cls(float(median), float(low), float(high), len(values))


@dataclass(frozen=True)
class Series:
    """What each candidate came to in each repetition."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    """Candidate -> one figure a repetition; the n-th ones were measured side by side."""
    failures: dict[str, str] = field(default_factory=dict)
    """Candidate -> why it is missing."""
    threads: dict[str, int] = field(default_factory=dict)
    """Candidate -> PyTorch's threads that suit it best, where there was a choice."""

    def ratio(self, over: str, under: str) -> Spread | None:
        """Figures of ``over`` divided by those of ``under``, pair by pair; None if one failed."""
        if over in self.failures or under in self.failures:
            return None
        pairs = zip(self.figures[over], self.figures[under], strict=True)
        return Spread.of([a / b for a, b in pairs])

    def median(self, name: str) -> float | None:
        """Median of one candidate; None if it failed."""
        return None if name in self.failures else Spread.of(self.figures[name]).median


def alternate(
    sources: Mapping[str, Callable[[], float]],
    repetitions: int,
    *,
    on_repetition: Callable[[int], None] | None = None,
) -> Series:
    """Ask each source in turn for a figure, ``repetitions`` times.

    Args:
        sources: Candidate -> what measures it once. One that raises is out, with its reason; the
            others go on.
        repetitions: At least 1.
        on_repetition: Called after each round with the number of rounds done.
    """
    series = Series({name: [] for name in sources})
    for done in range(repetitions):
        for name, source in sources.items():
            if name in series.failures:
                continue
            try:
                series.figures[name].append(source())
            except Exception as error:
                series.failures[name] = reason(error)
        if on_repetition is not None:
            on_repetition(done + 1)
    return series


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    repetitions: int,
    *,
    seconds: float = 0.02,
    warmup: int = 2,
    best_threads: Collection[str] = (),
    clock: Clock = time.perf_counter,
) -> Series:
    """Seconds a call of each candidate, in turns.

    Args:
        candidates: Candidate -> what is timed. One that raises is out, with its reason.
        repetitions: At least 1.
        seconds: A measurement repeats a short call until it lasts about this long.
        warmup: Calls before the first measurement; the last one tells how long a call takes.
        best_threads: Candidates that run with one thread or with all, whichever is faster; the
            others run with all.
        clock: Seconds since some moment.
    """
    failures: dict[str, str] = {}
    sources: dict[str, Callable[[], float]] = {}
    chosen: dict[str, int] = {}
    for name, call in candidates.items():
        try:
            for _ in range(max(1, warmup)):
                took = _once(call, 1, clock)
            if name in best_threads:
                chosen[name], took = suitable_threads(partial(_once, call, 1, clock))
        except Exception as error:
            failures[name] = reason(error)
            continue
        calls = min(MAX_CALLS, max(1, round(seconds / max(took, 1e-9))))
        sources[name] = _timed(call, calls, clock, chosen.get(name))
    series = alternate(sources, repetitions)
    return Series(series.figures, failures | series.failures, chosen)


def suitable_threads(measure: Callable[[], float]) -> tuple[int, float]:
    """One thread or all of PyTorch's, whichever gives the smaller figure; and the figure."""
    import torch

    figures = {}
    for threads in sorted({1, torch.get_num_threads()}):
        with limited_threads(threads):
            figures[threads] = min(measure(), measure())
    best = min(figures, key=figures.__getitem__)
    return best, figures[best]


@contextlib.contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """PyTorch with so many threads; None for as many as it has."""
    import torch

    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(
    call: Callable[[], object], calls: int, clock: Clock, threads: int | None
) -> Callable[[], float]:
    def measure() -> float:
        with limited_threads(threads):
            return _once(call, calls, clock)

    return measure


def _once(call: Callable[[], object], calls: int, clock: Clock) -> float:
    started = clock()
    for _ in range(calls):
        call()
    return (clock() - started) / calls


def reason(error: Exception) -> str:
    """Why a candidate is missing, in one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed ({error.name}): pip install 'ssm-metarl[bench]'"
    text = " ".join(str(error).split())
    return f"failed: {type(error).__name__}: {text}"[:200]
