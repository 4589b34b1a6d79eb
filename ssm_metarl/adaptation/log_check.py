"""Is this log what it says? Explanations of a plant's log, compared before anything adapts to it.

Place in the flow: stage 4, in front of an adapter, where a plant's own log is given:

    findings = check_log(family, read_plant_log(...))
    adapted = StandardAdapter().adapt(policy, findings.log)

A log may be spoilt in ways that an inner loss cannot see: it is in units of the data's own spread,
and a wrong model of the actuator explains swapped actions as well as the right one explains true
ones. So the log is put to the `plant_prior` as it stands, and under each of the explanations below.
One that fits *decisively* better wins. Some are mended, for they lose nothing:

    delayed plant       an action acts some steps later; actions are moved to where they act
    old velocities      what actions move at once is one row old, as differences of positions are;
                        these columns are moved by a row

and the others are refused, by name: a late action, reversed time, another rate, a mirrored sensor,
another unit. Before that, two kinds of rows are left out: those before the plant's last change, and
single ones that no neighbour explains (a sensor that froze for a while, a lost row, a spike).

What "decisively" is was measured on the family itself: a margin for each explanation that none of
its honest, simulated logs reaches. So an explanation that the family contains, such as unknown
signs of its sensors, is never accused.

The trap: a log whose actions are coded the other way round is a log of the mirrored plant, and
nothing in it can tell. `LogFindings.effects` says what it took the actions to do, for a person to
compare.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssm_metarl.action_space import Discrete
from ssm_metarl.adaptation.log_explanations import MIRRORED, Explanation, explanations_for, kept
from ssm_metarl.adaptation.plant_prior import RANGES, Array, Fit, PlantPrior, prior_of
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
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
    """A log that no policy should adapt to.

    Args:
        reason: In a few words, such as "late action".
        message: The same as a sentence, with what to do.
    """

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
    prior, notes = prior_of(family), []
    if log.num_steps > MOST_ROWS:
        notes.append(f"the last {MOST_ROWS:,} of {log.num_steps:,} transitions are used")
        log = log.map(lambda x: x[-MOST_ROWS:])
    if prior is None:
        return LogFindings(log, tuple(notes), "")
    names = family.obs_names or tuple(f"obs_{i}" for i in range(len(prior.scale)))
    silent = _silent(prior, log)
    if silent.any():
        still = ", ".join(n for n, s in zip(names, silent, strict=True) if s)
        _refuse_without_excitation(family, prior, silent, still)
        notes.append(
            f"{still}: never changes (a frozen or missing sensor?), and carries no "
            "weight; nothing else was looked at"
        )
        return LogFindings(log, tuple(notes), "")
    log, frozen = _without_frozen_rows(prior, log)
    if log.num_steps == 0:
        raise LogRefused("no excitation", "frozen or missing sensor: nothing moves in the log")
    if frozen:
        notes.append(f"{frozen} rows in which no sensor moves are left out")
    verdict, log, changed = _explained(family, prior, log)
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
    rate = 1.0 if explanation is None else explanation.rate
    log, fit, dropped = _without_outliers(family, prior, log, rate)
    if dropped:
        notes.append(f"{dropped} rows that no plant of the family explains are left out")
    return LogFindings(log, tuple(notes), _effects(prior, fit, names))


def _silent(prior: PlantPrior, log: Rollout) -> NDArray[np.bool_]:
    """Dimensions that move in the family and stand still in a log of two or more steps, (O,)."""
    seen = torch.cat([log.obs, log.next_obs])[:, 0, 0].double().numpy() * prior.scale
    still: NDArray[np.bool_] = prior.moving & (np.ptp(seen, axis=0) < STILL) & (log.num_steps > 1)
    return still


def _refuse_without_excitation(
    family: TaskFamily, prior: PlantPrior, silent: NDArray[np.bool_], still: str
) -> None:
    moved = family.effect_dims or tuple(np.flatnonzero(prior.moving))
    if all(silent[i] for i in moved) or 2 * silent.sum() >= prior.moving.sum():
        raise LogRefused(
            "no excitation",
            f"frozen or missing sensor: {still} never changes, so the log does not tell what an "
            f"action does",
        )


def _without_frozen_rows(prior: PlantPrior, log: Rollout) -> tuple[Rollout, int]:
    """The log without the steps in which nothing moves at all, and how many those were."""
    change = (log.next_obs - log.obs)[:, 0, 0, torch.from_numpy(prior.moving)]
    moves = (change != 0).any(dim=1)
    return kept(log, moves), int((~moves).sum())


class _Verdict(NamedTuple):
    """The outcome of a comparison of explanations."""

    explanation: Explanation | None
    """The one that fits decisively better than the log as it stands."""
    gain: float
    """Its log odds."""
    doubt: str
    """What may be as well, where the log is long enough to tell and does not."""


def _explained(
    family: TaskFamily, prior: PlantPrior, log: Rollout
) -> tuple[_Verdict, Rollout, bool]:
    """The best explanation, the log as it should have been, and whether it was cut at a change.

    What explains more goes first: a spoilt log, or a plant that changed.
    """
    verdict = _best(family, prior, log)
    split, gain_of_change = _last_change(family, prior, log)
    changed = split > 0 and gain_of_change > verdict.gain
    if changed:
        log = _since_last_change(family, prior, kept(log, torch.arange(log.num_steps) >= split))
        verdict = _Verdict(None, 0.0, "")
        if log.num_steps >= LENGTHS[1]:  # a shorter one may look spoilt by coincidence
            verdict = _best(family, prior, log)
    if verdict.explanation is None:
        return verdict, log, changed
    mended, _ = verdict.explanation.undo(log)
    last = _since_last_change(family, prior, mended) if verdict.explanation.rate == 1 else mended
    return verdict, last, changed or last.num_steps < mended.num_steps


def _since_last_change(family: TaskFamily, prior: PlantPrior, log: Rollout) -> Rollout:
    """The part of a log after the plant's last change."""
    for _ in range(MOST_CHANGES):
        split, _ = _last_change(family, prior, log)
        if split == 0:
            break
        log = kept(log, torch.arange(log.num_steps) >= split)
    return log


def _last_change(family: TaskFamily, prior: PlantPrior, log: Rollout) -> tuple[int, float]:
    """The row from which on another plant explains a log decisively better, and its log odds.

    Two plants are fitted, and the split moved to where their scores say, in turns, from several
    first guesses. 0 where one plant will do.
    """
    x, y = prior.rows(log)
    steps, single, best, found = len(y), prior.fit(x, y).score, CHANGE_MARGIN, 0
    for guess in sorted({steps - 5, steps - 10, steps - 20, steps - 40, steps // 2, steps // 4}):
        split = guess
        for _ in range(4):
            if not SHORTEST_PART <= split <= steps - SHORTEST_PART:
                break
            parts = [(x[:split], y[:split]), (x[split:], y[split:])]
            head, tail = prior.fit_all(parts, [1.0, 1.0])
            gain = head.score + tail.score - single
            explained = (
                _explains(family, prior, fit, changes)
                for fit, (_, changes) in zip((head, tail), parts, strict=True)
            )
            if gain > best and all(explained):
                best, found = gain, split
            lead = prior.row_scores(head.weights, head.scale, x, y)
            lead = np.cumsum(lead - prior.row_scores(tail.weights, tail.scale, x, y))
            moved = int(np.argmax(lead[SHORTEST_PART - 1 : steps - SHORTEST_PART]) + SHORTEST_PART)
            if moved == split:
                break
            split = moved
    return found, best if found else 0.0


def _best(family: TaskFamily, prior: PlantPrior, log: Rollout) -> _Verdict:
    """Compare explanations with the log as it stands."""
    explanations = explanations_for(family, prior)
    gains = _gains(family, prior, explanations, log)
    if (gains > MARGIN).any():  # otherwise there is no need to know what honest logs give
        winners = np.flatnonzero(gains > least_gains(family, log.num_steps))
        if len(winners):
            best = winners[np.argmax(gains[winners])]
            return _Verdict(explanations[best], float(gains[best]), "")
    close = int(np.argmax(gains))
    in_doubt = gains[close] > -MARGIN and explanations[close].name == MIRRORED
    doubt = explanations[close].remedy if in_doubt and log.num_steps >= LENGTHS[1] else ""
    return _Verdict(None, 0.0, doubt)


def _gains(
    family: TaskFamily, prior: PlantPrior, explanations: Sequence[Explanation], log: Rollout
) -> Array:
    """Log odds of each explanation against the log as it stands."""
    undone = [explanation.undo(log) for explanation in explanations]
    possible = [i for i, (other, _) in enumerate(undone) if other.num_steps > 0]
    rows = [prior.rows(log), *(prior.rows(undone[i][0]) for i in possible)]
    plain, *fits = prior.fit_all(rows, [1.0, *(explanations[i].rate for i in possible)])
    gains = np.full(len(explanations), -math.inf)
    for i, fit in zip(possible, fits, strict=True):
        changes = rows[1 + possible.index(i)][1]
        if _explains(family, prior, fit, changes):
            same_rows = float(plain.row_score[undone[i][1].numpy()].sum())
            stretch = explanations[i].stretch * len(fit.row_score)
            gains[i] = fit.score + stretch - (same_rows - plain.penalty)
    return gains


def least_gains(family: TaskFamily, num_steps: int) -> Array:
    """The log odds that each explanation of a log must reach to be believed."""
    length = max(bisect_right(LENGTHS, num_steps) - 1, 0)
    least: Array = np.maximum(_honest(family)[0][length], 0) + MARGIN
    return least


@lru_cache(maxsize=8)
def _honest(family: TaskFamily) -> tuple[tuple[Array, ...], float]:
    """What honest, simulated logs of the family give.

    Returns:
        The largest log odds of each explanation, for each of `LENGTHS`, and the largest share of
        the movement that is left unexplained.
    """
    prior = prior_of(family)
    assert prior is not None
    explanations, largest, left = explanations_for(family, prior), [], 0.0
    for steps in LENGTHS:
        gains = []
        for split in RANGES:
            tasks = family.sample(split, HONEST_LOGS, seed=0, stream=PURPOSE)
            worlds = make_worlds(tasks, 1, seed=0, purpose=PURPOSE)
            noise = TaskNoise(0, f"{PURPOSE}-action", tasks.indices)
            actor = random_actor(worlds, noise, steps)
            logs = collect_rollout(worlds, actor, steps, autoreset=True)
            for k in range(logs.num_tasks):
                x, y = prior.rows(logs.task(k))
                left = max(left, _unexplained(family, prior, prior.fit(x, y), y))
                gains.append(_gains(family, prior, explanations, logs.task(k)))
        largest.append(np.max(gains, axis=0))
    return tuple(largest), left


def _without_outliers(
    family: TaskFamily, prior: PlantPrior, log: Rollout, rate: float
) -> tuple[Rollout, Fit, int]:
    """The log without the rows that its other rows contradict, the fit, and how many those were."""
    x, y = prior.rows(log)
    fit = prior.fit(x, y, rate)
    out = _outliers(fit)
    if out.sum() > OUTLIER_SHARE * len(out):
        raise LogRefused(
            "another plant",
            f"another plant, or several faults at once: {out.sum()} of {len(out)} transitions fit "
            f"no plant of the family",
        )
    share = _unexplained(family, prior, fit, y)
    if share > MOST_UNEXPLAINED and share > 1.5 * _honest(family)[1]:
        raise LogRefused(
            "another plant",
            f"another plant, or several faults at once: no plant of the family explains "
            f"{100 * share:.0f} % of what happened after the actions",
        )
    return kept(log, torch.from_numpy(~out)), fit, int(out.sum())


def _unexplained(family: TaskFamily, prior: PlantPrior, fit: Fit, y: Array) -> float:
    """Share of the movement, of what actions move at once, that a fit leaves over."""
    moving = np.flatnonzero(prior.moving).tolist()
    dims = [moving.index(i) for i in family.effect_dims if i in moving] or list(range(len(moving)))
    inside = ~_outliers(fit)
    left = np.square(fit.residual[inside][:, dims]).sum(axis=0)
    return float(np.mean(left / np.maximum(np.square(y[inside][:, dims]).sum(axis=0), 1e-12)))


def _outliers(fit: Fit) -> NDArray[np.bool_]:
    """Rows that the plant of the other rows does not explain, shape (T,)."""
    far = np.abs(fit.residual) > OUTLIER * fit.scale
    return np.asarray(far.any(axis=1))


def _explains(family: TaskFamily, prior: PlantPrior, fit: Fit, y: Array) -> bool:
    """Whether a fit leaves few rows out and little over: luck with some rows does not count."""
    if _outliers(fit).mean() > CLEAN_SHARE:
        return False
    return _unexplained(family, prior, fit, y) <= MOST_UNEXPLAINED


def _effects(prior: PlantPrior, fit: Fit, names: Sequence[str]) -> str:
    """What the largest action adds to each observation in a step, in words."""
    space = prior.action_space
    if space.code_dim != 1:
        return ""
    effect = fit.weights[-1] / prior.scale[prior.moving]
    felt = np.abs(fit.weights[-1]) > LEAST_EFFECT
    moving = [n for n, moves in zip(names, prior.moving, strict=True) if moves]
    parts = [f"{n} {e:+.2g}" for n, e, is_felt in zip(moving, effect, felt, strict=True) if is_felt]
    action = "action 1" if isinstance(space, Discrete) else f"action {space.high:g}"
    return f"in this log {action} adds {', '.join(parts) or 'nothing'} in a step"
