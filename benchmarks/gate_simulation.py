"""What the gate does to candidates whose truth is known: its certificate.

Place in the flow: of `recursive_self_improvement.gate`, whose own code it runs. Tests hold the
counts; to print them::

    python -m benchmarks.gate_simulation

A *lifetime* is a lineage of forty confirmations of candidates that are exactly as good as the
champion: whatever is accepted in it is a false upgrade. A gate may give one lifetime in twenty a
false upgrade; 36 in 1,000 is what a gate that keeps to 5 % stays under.

The sabotaged gates do what a gate must not: test at the same alpha for ever, leave out pairs in
which something crashed, or confirm on the very tasks that chose the candidate. Each looks
reasonable, and each must fail.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ssm_metarl import seeding
from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.gate import (
    GUARDRAILS,
    PRIMARY,
    Confirmation,
    EProcess,
    Verdict,
)

CONFIG = RSIConfig()
LIFETIMES, CONFIRMATIONS = 1000, 40
MOST_FALSE = 36
GAIN, SPREAD = 0.037, 0.25
POWER_TRIALS = 300
PAIRS_AT_ONCE = 512
QUANTILES = 2**15
"""Of a bell: to look one up is ten times as fast as to draw it."""
CRASHES = 0.02
"""Share of pairs in which something crashes, in the lifetimes that drop them."""

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
"""A generator and a number of pairs -> their differences, in [-1, 1]."""


def bell(mean: float, spread: float = SPREAD) -> Draw:
    """Differences of a bell-shaped (beta) distribution on [-1, 1], drawn from its quantiles."""
    from scipy.stats import beta

    share, variance = (1 + mean) / 2, (spread / 2) ** 2
    total = share * (1 - share) / variance - 1
    ranks = (np.arange(QUANTILES) + 0.5) / QUANTILES
    values = 2 * beta.ppf(ranks, share * total, (1 - share) * total) - 1
    values += mean - values.mean()  # what the ends of the tails would add
    return lambda rng, n: values[rng.integers(QUANTILES, size=n)]


def mostly_nothing(mean: float, spread: float = SPREAD) -> Draw:
    """Differences that are zero on most tasks and large on few, as a solved family's are."""
    size = 0.8
    chance = (spread**2 + mean**2) / size**2
    up = (1 + mean / (size * chance)) / 2

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        sign = np.where(rng.random(n) < up, size, -size)
        return np.where(rng.random(n) < chance, sign, 0.0)

    return draw


def with_crashes(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Differences of mean zero, in which a crash costs what small gains elsewhere bring."""
    return np.where(rng.random(n) < CRASHES, -1.0, BESIDE_CRASHES(rng, n))


NULL = bell(0.0)
BESIDE_CRASHES = bell(CRASHES / (1 - CRASHES))


def confirm(
    number: int,
    rng: np.random.Generator,
    primary: Draw,
    guardrails: Draw,
    config: RSIConfig = CONFIG,
) -> Verdict:
    """One confirmation by the joint gate, guardrails included."""
    gate = Confirmation(config, number, margin=0.0)
    while gate.verdict == Verdict.OPEN:
        count = min(PAIRS_AT_ONCE, gate.cap - gate.primary.num_pairs)
        gate.update(
            {PRIMARY: primary(rng, count)}
            | {name: guardrails(rng, count) for name in GUARDRAILS if name in gate.open_metrics}
        )
    return gate.verdict


def false_upgrades(draw: Draw, *, lifetimes: int = LIFETIMES, seed: int = 0) -> int:
    """Lifetimes with a false upgrade, under the gate as it is."""
    return sum(
        any(confirm(k, rng, draw, draw) == Verdict.ACCEPTED for k in range(1, CONFIRMATIONS + 1))
        for rng in (seeding.generator(seed, "gate-null", life) for life in range(lifetimes))
    )


def accepted(number: int, gain: float, *, trials: int, draw: Callable[[float], Draw] = bell) -> int:
    """Confirmations accepted of ``trials`` whose truth is ``gain``, guardrails being neutral."""
    primary = draw(gain)
    streams = (seeding.generator(number, f"gate-power-{gain}", i) for i in range(trials))
    return sum(confirm(number, rng, primary, NULL) == Verdict.ACCEPTED for rng in streams)


def constant_alpha(rng: np.random.Generator) -> bool:
    """A lifetime whose every confirmation may spend all of alpha; whether it upgraded falsely."""
    return any(_crosses(NULL(rng, CONFIG.confirm_pairs)) for _ in range(CONFIRMATIONS))


def crashes_dropped(rng: np.random.Generator) -> bool:
    """A lifetime in which pairs that crashed are left out; whether it upgraded falsely."""
    for k in range(1, CONFIRMATIONS + 1):
        d = with_crashes(rng, CONFIG.confirm_pairs)
        if _crosses(d[d > -1.0], 6 / (math.pi * k) ** 2):
            return True
    return False


def tasks_reused(rng: np.random.Generator) -> bool:
    """A lifetime that confirms on the tasks that chose the candidate; whether it upgraded falsely.

    The best of six on 64 tasks is confirmed on those 64, over and over up to the cap.
    """
    for k in range(1, CONFIRMATIONS + 1):
        screened = NULL(rng, 6 * 64).reshape(6, 64)
        best = screened[screened.mean(axis=1).argmax()]
        if _crosses(np.resize(best, CONFIG.confirm_pairs), 6 / (math.pi * k) ** 2):
            return True
    return False


SABOTAGED = {
    "constant alpha": constant_alpha,
    "crashes dropped": crashes_dropped,
    "tasks reused": tasks_reused,
}


def sabotaged_false_upgrades(
    lifetime: Callable[[np.random.Generator], bool], *, lifetimes: int = LIFETIMES
) -> int:
    """Lifetimes with a false upgrade under a sabotaged gate."""
    return sum(lifetime(seeding.generator(0, "gate-sabotage", i)) for i in range(lifetimes))


def _crosses(differences: NDArray[np.float64], share: float = 1.0) -> bool:
    """Whether the primary test alone accepts, with a share of the lineage's alpha."""
    test = EProcess(0.0, CONFIG.alpha * share)
    test.update(differences)
    return test.crossed_at is not None


def simulate() -> dict[str, object]:
    """All of it: minutes of computing."""
    return {
        "lifetimes": LIFETIMES,
        "confirmations": CONFIRMATIONS,
        "null_false_upgrades": {
            "bell": false_upgrades(NULL),
            "mostly_nothing": false_upgrades(mostly_nothing(0.0)),
            "with_crashes": false_upgrades(with_crashes),
        },
        "accepted_share_at_gain": {
            str(k): accepted(k, GAIN, trials=POWER_TRIALS) / POWER_TRIALS for k in (1, 5, 10, 40)
        },
        "accepted_at_loss": accepted(1, -GAIN, trials=LIFETIMES),
        "sabotaged_false_upgrades": {
            name: sabotaged_false_upgrades(lifetime) for name, lifetime in SABOTAGED.items()
        },
    }


if __name__ == "__main__":
    json.dump(simulate(), sys.stdout, indent=2)
    print()
