"""The gate: a change is kept only when fresh, paired tasks have proven it.

Place in the flow: stage 8. `metrics` gives differences, `lineage` feeds them in here, and what
comes out is a verdict.

A difference D = (new - champion) / range lies in [-1, 1]; each is of a task that nobody has seen
before. Against "H0: E[D] <= m" one bets, at fair odds or worse, that D will be larger::

    W_n = mean over lambda of prod_{i <= n} (1 + lambda (D_i - m)),    0 < lambda < 1 / (1 + m)

Under H0 the wealth W is a nonnegative supermartingale that starts at 1, so it *ever* reaches
1 / alpha with probability alpha at most (Ville's inequality): one may look after every pair, stop
whenever one likes, and throw nothing away (Waudby-Smith & Ramdas 2024, arXiv 2010.09686, section
4; a fixed grid of bets in the place of a bet that adapts).

A lineage's k-th confirmation spends alpha_k = alpha * 6 / (pi^2 k^2); the sum over all k is alpha:
the chance of *any* false upgrade, ever, however long it runs.

The trap: none of this holds for differences of tasks that chose the candidate, for a mean of the
pairs that went well, or for a second test at the same alpha. `benchmarks.gate_simulation` shows
what each of these does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssm_metarl.recursive_self_improvement.config import RSIConfig

PRIMARY = "generalization"
GUARDRAILS = ("average_reward", "adaptation_speed", "meta_learning_efficiency", "stability")

BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""The grid of lambda, as shares of its limit 1 / (1 + m)."""
BLOCK = 512  # pairs: 2 ** 512 is no overflow
LARGEST = 700.0  # exp of more is one


def spent_alpha(alpha: float, number: int) -> float:
    """The part of ``alpha`` that the number-th test of a lineage (from 1) may spend."""
    return alpha * 6 / (math.pi * number) ** 2


def confirm_cap(config: RSIConfig, number: int) -> int:
    """Most pairs of a lineage's number-th confirmation: as log(1 / alpha_k) grows, so do they."""
    first, this = (math.log(1 / spent_alpha(config.alpha, k)) for k in (1, number))
    return math.ceil(config.confirm_pairs * this / first)


class EProcess:
    """Wealth of the bets against E[D] <= margin.

    Args:
        margin: m, in (-1, 1).
        alpha: H0 is rejected once the wealth has reached 1 / alpha.
    """

    def __init__(self, margin: float, alpha: float) -> None:
        self.margin, self.alpha = margin, alpha
        self._bets = BETS / (1 + margin)
        self._log_wealths = np.zeros(len(BETS))
        self.num_pairs = 0
        self.crossed_at: int | None = None
        """Pairs after which the wealth first reached 1 / alpha."""

    @property
    def threshold(self) -> float:
        """The wealth that rejects H0."""
        return 1 / self.alpha

    @property
    def wealth(self) -> float:
        """The wealth now; at most the largest number there is."""
        largest = self._log_wealths.max()
        log_wealth = math.log(np.exp(self._log_wealths - largest).mean()) + largest
        return math.exp(min(log_wealth, LARGEST))

    def update(self, differences: ArrayLike) -> NDArray[np.float64]:
        """Bet on some more pairs, in their order.

        Args:
            differences: D of each, shape (n,), in [-1, 1].

        Returns:
            The wealth after each of them, shape (n,).

        Raises:
            ValueError: One is out of bounds, or not a number: nothing is clipped.
        """
        d = checked(differences)
        blocks = [self._bet(d[i : i + BLOCK]) for i in range(0, len(d), BLOCK)]
        return np.concatenate(blocks) if blocks else d

    def _bet(self, d: NDArray[np.float64]) -> NDArray[np.float64]:
        """`update` on so few pairs that no product overflows."""
        growth = (1 + self._bets * (d[:, None] - self.margin)).cumprod(axis=0)
        largest = self._log_wealths.max()
        log_wealth = np.log(growth @ np.exp(self._log_wealths - largest) / len(BETS)) + largest
        with np.errstate(divide="ignore"):  # a bet that has lost everything stays lost
            self._log_wealths = self._log_wealths + np.log(growth[-1])
        reached = np.flatnonzero(log_wealth >= -math.log(self.alpha))
        if self.crossed_at is None and len(reached):
            self.crossed_at = self.num_pairs + int(reached[0]) + 1
        self.num_pairs += len(d)
        wealth: NDArray[np.float64] = np.exp(np.minimum(log_wealth, LARGEST))
        return wealth


def checked(differences: ArrayLike) -> NDArray[np.float64]:
    """Differences as float64, shape (n,); ValueError where one is no number from -1 to 1."""
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not (np.abs(d) <= 1).all():
        raise ValueError(
            f"differences: expected shape (n,) and values from -1 to 1, received shape {d.shape} "
            f"with values from {d.min(initial=0):g} to {d.max(initial=0):g}"
        )
    return d


class Verdict(StrEnum):
    """Where a confirmation stands."""

    OPEN = "open"
    ACCEPTED = "accepted"
    WORSE = "worse"
    """It would take much luck for the change to be as good as it must be."""
    INCONCLUSIVE = "inconclusive"
    """The pairs are used up. The champion stays."""


class Confirmation:
    """The joint gate: the primary metric must be proven better, each guardrail not broken.

    Guardrails need no share of alpha: a false upgrade has to pass the primary metric in any case.
    One that has passed is closed, and need not be measured any more.

    Args:
        config: Alphas, tolerances, caps.
        number: Which confirmation of the lineage this is, from 1.
        margin: What the primary metric must gain; negative for non-inferiority.
    """

    def __init__(self, config: RSIConfig, number: int, margin: float) -> None:
        self.number, self.margin = number, margin
        self.cap = confirm_cap(config, number)
        self.tests = {PRIMARY: EProcess(margin, spent_alpha(config.alpha, number))}
        for name in GUARDRAILS:
            self.tests[name] = EProcess(-config.tolerance, config.guardrail_alpha)
        self._doubts = {
            name: EProcess(-test.margin, config.give_up_alpha) for name, test in self.tests.items()
        }
        self.wealth: list[float] = []
        """Of the primary test, after every pair."""
        self._differences: list[float] = []  # of the primary metric

    @property
    def primary(self) -> EProcess:
        """The test of the primary metric."""
        return self.tests[PRIMARY]

    @property
    def open_metrics(self) -> tuple[str, ...]:
        """Metrics that the next pairs must have: the primary, and guardrails not yet passed."""
        return (PRIMARY, *(n for n in self.open_tests if n != PRIMARY))

    @property
    def open_tests(self) -> tuple[str, ...]:
        """Tests that have not passed yet."""
        return tuple(n for n, test in self.tests.items() if test.crossed_at is None)

    def update(self, differences: Mapping[str, ArrayLike]) -> Verdict:
        """Take in some more pairs, which no test and no choice has seen.

        Args:
            differences: D of each pair for each of `open_metrics`, shape (n,) each.

        Raises:
            ValueError: A metric is missing, or a difference out of bounds.
        """
        if missing := set(self.open_metrics) - set(differences):
            raise ValueError(f"differences: expected {self.open_metrics}, received no {missing}")
        d = checked(differences[PRIMARY])
        for name in self.open_metrics:
            wealth = self.tests[name].update(differences[name])
            if name == PRIMARY:
                self.wealth += wealth.tolist()
            self._doubts[name].update(-checked(differences[name]))
        self._differences += d.tolist()
        return self.verdict

    @property
    def verdict(self) -> Verdict:
        """Where it stands now."""
        if not self.open_tests:
            return Verdict.ACCEPTED
        if any(self._doubts[name].crossed_at is not None for name in self.open_tests):
            return Verdict.WORSE
        return Verdict.OPEN if self.primary.num_pairs < self.cap else Verdict.INCONCLUSIVE

    @property
    def mean(self) -> float:
        """Mean of the primary differences so far; 0 before the first."""
        return float(np.mean(self._differences or [0.0]))

    @property
    def spread(self) -> float:
        """Standard deviation of the primary differences so far; 0 before the second."""
        return float(np.std(self._differences or [0.0]))


def pairs_needed(gain: float, spread: float, alpha: float) -> int:
    """About how many pairs prove a gain: log(1 / alpha) over the best bet's growth.

    Args:
        gain: E[D] - m, above 0.
        spread: Standard deviation of D.
        alpha: Of the test.
    """
    growth = BETS * gain - BETS**2 * (spread**2 + gain**2) / 2
    return math.ceil(math.log(len(BETS) / alpha) / float(growth.max()))
