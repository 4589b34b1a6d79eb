"""Is this log what it says? Explanations of a plant's log, compared before anything adapts to it.

Place in the flow: stage 4, in front of an adapter. A wrong model of the actuator explains a spoilt
log as well as the right one a true log, and no inner loss can tell. So the log is put to the
`plant_prior` as it stands and under each of the `log_explanations`. One wins if it fits better by
more than any honest, simulated log of the family ever made it: the family is never accused of what
it contains. Rows before the plant's last change, and single ones that no neighbour explains, are
left out.

The trap: a log whose actions are coded the other way round is a log of the mirrored plant, and
nothing in it can tell. `LogFindings.effects` says what it took the actions to do, for a person to
compare.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ssm_metarl.action_space import Discrete
from ssm_metarl.adaptation.log_explanations import MIRRORED, Explanation, explanations_for, kept
from ssm_metarl.adaptation.plant_prior import (
    RANGES,
    Array,
    Bools,
    Fit,
    PlantPrior,
    prior_of,
    random_rollout,
)
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.types import Rollout

MOST_ROWS = 2000
"""The last rows of a log are looked at: a plant that changes is told by its present."""
STILL = 1e-4
"""Scaled observations that differ by less in all of a log stand still."""
PERIOD_TOLERANCE = 0.2
MARGIN = 1.0
"""By how much log odds must exceed any that honest logs of the family have given."""
CHANGE_MARGIN = 25.0
SHORTEST_PART = 3
MOST_CHANGES = 4
OUTLIER, OUTLIER_SHARE = 6.0, 0.25
"""Errors (in their own scale) beyond which a row is left out; with more such rows, nothing fits."""
MOST_UNEXPLAINED = 0.6
"""Share of the movement, of what actions move at once, above which no plant of the family fits."""
LEAST_EFFECT = 0.01
"""What an action must add to a scaled observation in a step to be told of."""
CLEAN_SHARE = 0.1
"""An explanation is believed only where it leaves at most so many rows out."""
LENGTHS = (5, 20, 40)
"""Lengths of the honest logs, and how many of each and of each range of the family."""
HONEST_LOGS = 24
PURPOSE = "log-check"


class LogRefused(ValueError):
    """A log that no policy should adapt to, for a reason in a few words, such as "late action"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class LogFindings:
    """A log that can be adapted to, and what was found in it."""

    log: Rollout
    """What to adapt to, shape (T, 1, 1)."""
    notes: tuple[str, ...]
    """A sentence for each thing that was mended, left out or is odd."""
    effects: str
    """What an action was found to do, in words; empty where the family is not judged."""


def check_log(family: TaskFamily, log: Rollout, *, period: float | None = None) -> LogFindings:
    """Compare explanations of a plant's log; mend it, or refuse it.

    Args:
        family: Of the policy that is to adapt.
        log: Shape (T, 1, 1), as `read_plant_log` gives it.
        period: Seconds between rows, where the log has a time column.

    Raises:
        LogRefused: With the explanation that fits best.
    """
    step = family.time_step
    if period is not None and step is not None and abs(period / step - 1) > PERIOD_TOLERANCE:
        raise LogRefused(
            "another rate",
            f"time: expected a row every {step:g} s, the time step of {family.name}, received one "
            f"every {period:g} s; log at that rate, or resample (hold actions, do not look ahead)",
        )
    judge, notes = _judge_of(family), []
    if log.num_steps > MOST_ROWS:
        notes.append(f"the last {MOST_ROWS:,} of {log.num_steps:,} transitions are used")
        log = log.map(lambda x: x[-MOST_ROWS:])
    if judge is None:
        return LogFindings(log, tuple(notes), "")
    if still := judge.silent(log):
        notes.append(
            f"{still}: never changes (a frozen or missing sensor?), and carries no "
            "weight; nothing else was looked at"
        )
        return LogFindings(log, tuple(notes), "")
    change = (log.next_obs - log.obs)[:, 0, 0, torch.from_numpy(judge.prior.moving)]
    moves = (change != 0).any(dim=1)
    if not moves.any():
        raise LogRefused("no excitation", "frozen or missing sensor: nothing moves in the log")
    if not moves.all():
        notes.append(f"{int((~moves).sum())} rows in which no sensor moves are left out")
    verdict, log, changed = judge.explained(kept(log, moves))
    explanation = verdict.explanation
    if explanation is not None:
        if not explanation.mended:
            raise LogRefused(explanation.name, f"{explanation.name}: {explanation.remedy}")
        notes.append(explanation.mended)
    elif verdict.doubt:
        notes.append(f"the log fits as well if {verdict.doubt}; look which it is")
    if changed:
        notes.append(
            f"the plant changed within the log: the {log.num_steps} transitions after it are used"
        )
    fit, out = judge.outliers(log, 1.0 if explanation is None else explanation.rate)
    if out.any():
        notes.append(f"{out.sum()} rows that no plant of the family explains are left out")
    return LogFindings(kept(log, torch.from_numpy(~out)), tuple(notes), judge.effects(fit))


class _Verdict(NamedTuple):
    """The outcome of a comparison of explanations."""

    explanation: Explanation | None = None
    """The one that fits decisively better than the log as it stands."""
    gain: float = 0.0
    """Its log odds."""
    doubt: str = ""
    """What may be as well, where the log is long enough to tell and does not."""


@dataclass(frozen=True)
class _Judge:
    """Knows what the plants of a family do, and what honest logs of them look like."""

    family: TaskFamily
    prior: PlantPrior
    explanations: list[Explanation]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the observations."""
        return self.family.obs_names or tuple(f"obs_{i}" for i in range(len(self.prior.scale)))

    @cached_property
    def honest(self) -> tuple[list[Array], float]:
        """The most that honest, simulated logs give.

        The log odds of each explanation, for each of `LENGTHS`, and the unexplained share.
        """
        largest, left = [], 0.0
        for steps in LENGTHS:
            gains = []
            for split in RANGES:
                tasks = self.family.sample(split, HONEST_LOGS, seed=0, stream=PURPOSE)
                _, logs = random_rollout(tasks, 1, steps, PURPOSE)
                for k in range(logs.num_tasks):
                    x, y = self.prior.rows(logs.task(k))
                    left = max(left, self._unexplained(self.prior.fit(x, y), y))
                    gains.append(self._gains(logs.task(k)))
            largest.append(np.max(gains, axis=0))
        return largest, left

    def silent(self, log: Rollout) -> str:
        """The dimensions that move in the family and stand still in a log of two or more steps.

        Raises:
            LogRefused: Those that actions move are among them, or half of all.
        """
        seen = torch.cat([log.obs, log.next_obs])[:, 0, 0].double().numpy() * self.prior.scale
        moving = self.prior.moving
        silent = moving & (np.ptp(seen, axis=0) < STILL) & (log.num_steps > 1)
        still = ", ".join(n for n, s in zip(self.names, silent, strict=True) if s)
        moved = self.family.effect_dims or tuple(np.flatnonzero(moving))
        if still and (all(silent[i] for i in moved) or 2 * silent.sum() >= moving.sum()):
            raise LogRefused(
                "no excitation",
                f"frozen or missing sensor: {still} never changes, so the log does not tell what "
                f"an action does",
            )
        return still

    def explained(self, log: Rollout) -> tuple[_Verdict, Rollout, bool]:
        """The best explanation, the log as it should have been, and whether it was cut at a change.

        What explains more goes first: a spoilt log, or a plant that changed.
        """
        verdict = self._best(log)
        split, gain_of_change = self._last_change(log)
        changed = split > 0 and gain_of_change > verdict.gain
        if changed:
            log = self._since_last_change(kept(log, torch.arange(log.num_steps) >= split))
            # a shorter one may look spoilt by coincidence
            verdict = self._best(log) if log.num_steps >= LENGTHS[1] else _Verdict()
        if verdict.explanation is None:
            return verdict, log, changed
        mended, _ = verdict.explanation.undo(log)
        last = self._since_last_change(mended) if verdict.explanation.rate == 1 else mended
        return verdict, last, changed or last.num_steps < mended.num_steps

    def _since_last_change(self, log: Rollout) -> Rollout:
        """The part of a log after the plant's last change."""
        for _ in range(MOST_CHANGES):
            split, _ = self._last_change(log)
            if split == 0:
                break
            log = kept(log, torch.arange(log.num_steps) >= split)
        return log

    def _last_change(self, log: Rollout) -> tuple[int, float]:
        """The row from which on another plant explains a log decisively better, and its log odds.

        Two plants are fitted, and the split moved to where their scores say, in turns, from several
        first guesses. 0 where one plant will do.
        """
        prior, (x, y) = self.prior, self.prior.rows(log)
        steps, single, best, found = len(y), prior.fit(x, y).score, CHANGE_MARGIN, 0
        for split in sorted({*(steps - n for n in (5, 10, 20, 40)), steps // 2, steps // 4}):
            for _ in range(4):
                if not SHORTEST_PART <= split <= steps - SHORTEST_PART:
                    break
                parts = [(x[:split], y[:split]), (x[split:], y[split:])]
                fits = head, tail = prior.fit_all(parts, [1.0, 1.0])
                gain = head.score + tail.score - single
                if gain > best and all(map(self._explains, fits, (y[:split], y[split:]))):
                    best, found = gain, split
                lead = prior.row_scores(head.weights, head.scale, x, y)
                lead = np.cumsum(lead - prior.row_scores(tail.weights, tail.scale, x, y))
                before = split
                split = SHORTEST_PART + int(
                    np.argmax(lead[SHORTEST_PART - 1 : steps - SHORTEST_PART])
                )
                if split == before:
                    break
        return found, best if found else 0.0

    def _best(self, log: Rollout) -> _Verdict:
        """Compare explanations with the log as it stands."""
        gains = self._gains(log)
        if (gains > MARGIN).any():  # otherwise there is no need to know what honest logs give
            length = max(bisect_right(LENGTHS, log.num_steps) - 1, 0)
            winners = np.flatnonzero(gains > np.maximum(self.honest[0][length], 0) + MARGIN)
            if len(winners):
                best = winners[np.argmax(gains[winners])]
                return _Verdict(self.explanations[best], float(gains[best]))
        close = int(np.argmax(gains))
        in_doubt = gains[close] > -MARGIN and self.explanations[close].name == MIRRORED
        if in_doubt and log.num_steps >= LENGTHS[1]:
            return _Verdict(doubt=self.explanations[close].remedy)
        return _Verdict()

    def _gains(self, log: Rollout) -> Array:
        """Log odds of each explanation against the log as it stands."""
        undone = [explanation.undo(log) for explanation in self.explanations]
        possible = [i for i, (other, _) in enumerate(undone) if other.num_steps > 0]
        rows = [self.prior.rows(other) for other in (log, *(undone[i][0] for i in possible))]
        rates = [1.0, *(self.explanations[i].rate for i in possible)]
        plain, *fits = self.prior.fit_all(rows, rates)
        gains = np.full(len(self.explanations), -math.inf)
        for i, fit, (_, changes) in zip(possible, fits, rows[1:], strict=True):
            if self._explains(fit, changes):
                same_rows = float(plain.row_score[undone[i][1].numpy()].sum())
                stretch = self.explanations[i].stretch * len(fit.row_score)
                gains[i] = fit.score + stretch - (same_rows - plain.penalty)
        return gains

    def outliers(self, log: Rollout, rate: float) -> tuple[Fit, Bools]:
        """The plant that fits a log, and the rows that it does not explain, shape (T,).

        Raises:
            LogRefused: Those are many, or it explains little.
        """
        x, y = self.prior.rows(log)
        fit = self.prior.fit(x, y, rate)
        out = _outliers(fit)
        share, what = self._unexplained(fit, y), ""
        if out.sum() > OUTLIER_SHARE * len(out):
            what = f"{out.sum()} of {len(out)} transitions fit no plant of the family"
        elif share > MOST_UNEXPLAINED and share > 1.5 * self.honest[1]:
            share_of = f"{100 * share:.0f} % of what happened after the actions"
            what = f"no plant of the family explains {share_of}"
        if what:
            raise LogRefused("another plant", f"another plant, or several faults at once: {what}")
        return fit, out

    def _unexplained(self, fit: Fit, y: Array) -> float:
        """Share of the movement, of what actions move at once, that a fit leaves over."""
        moving = np.flatnonzero(self.prior.moving).tolist()
        dims = [moving.index(i) for i in self.family.effect_dims if i in moving]
        dims, inside = dims or list(range(len(moving))), ~_outliers(fit)
        left = np.square(fit.residual[inside][:, dims]).sum(axis=0)
        return float(np.mean(left / np.maximum(np.square(y[inside][:, dims]).sum(axis=0), 1e-12)))

    def _explains(self, fit: Fit, y: Array) -> bool:
        """Whether a fit leaves few rows out and little over: luck with some rows does not count."""
        if _outliers(fit).mean() > CLEAN_SHARE:
            return False
        return self._unexplained(fit, y) <= MOST_UNEXPLAINED

    def effects(self, fit: Fit) -> str:
        """What the largest action adds to each observation in a step, in words."""
        space = self.prior.action_space
        if space.code_dim != 1:
            return ""
        last = fit.weights[-1]
        effect = last / self.prior.scale[self.prior.moving]
        names = [n for n, moves in zip(self.names, self.prior.moving, strict=True) if moves]
        felt = [i for i in range(len(names)) if abs(last[i]) > LEAST_EFFECT]
        parts = ", ".join(f"{names[i]} {effect[i]:+.2g}" for i in felt)
        action = "action 1" if isinstance(space, Discrete) else f"action {space.high:g}"
        return f"in this log {action} adds {parts or 'nothing'} in a step"


@lru_cache(maxsize=8)
def _judge_of(family: TaskFamily) -> _Judge | None:
    """None where the observations are too many to be judged together."""
    prior = prior_of(family)
    return None if prior is None else _Judge(family, prior, explanations_for(family, prior))


def _outliers(fit: Fit) -> Bools:
    """Rows that the plant of the other rows does not explain, shape (T,)."""
    far: Bools = np.abs(fit.residual) > OUTLIER * fit.scale
    return np.asarray(far.any(axis=1))
