"""Five metrics of a policy, task by task, on tasks that nobody has seen.

Place in the flow: stage 8. A `Measurement` is a job that `executor` runs; `lineage` pairs the
scores of two policies on the same tasks and feeds their differences into the `gate`.

All five are returns after adapting by one gradient step; both sides of a pair meet the same task,
the same support data's random actions and the same initial states:

    generalization            return on an out-of-range task, from all the support data (primary)
    stability                 min(that, c), c being the champion's 10 % quantile in screening
    average_reward            return on a task of the training's range, from all the support data
    meta_learning_efficiency  the same from the shortest data: what the first steps of data buy
    adaptation_speed          area under the curve of return over length of data, on the same task

The gain per step of data is counted from a reference that both sides share, which therefore cancels
in their difference. Counted from a policy's *own* unadapted return it would fall whenever that
rises: a change that makes the unadapted policy better would look like a loss.

The trap: a side that crashes or is not a number must not vanish. Its score is NaN here, and the
pair counts as -1, the worst there is, whichever side it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssm_metarl.recursive_self_improvement.config import RSIConfig
from ssm_metarl.recursive_self_improvement.gate import PRIMARY

CRASHED = -1.0
STABILITY_QUANTILE = 0.1
CURVE_METRICS = ("average_reward", "adaptation_speed", "meta_learning_efficiency")
"""Metrics that run episodes of their own, all on the same task."""


@dataclass(frozen=True)
class Measured:
    """What a measurement found."""

    scores: dict[str, list[float]]
    """Of each metric, every task's score in the family's own units; NaN where it crashed."""
    env_steps: int
    """Environment steps it took, support and episodes."""
    failure: str | None = None
    """Why there are no numbers, where the measurement crashed or hung."""


def lost(count: int, with_curve: bool, failure: str | None = None) -> Measured:
    """No number for any of so many tasks."""
    names = (PRIMARY, *CURVE_METRICS) if with_curve else (PRIMARY,)
    return Measured({name: [float("nan")] * count for name in names}, 0, failure)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measure one policy on some tasks of a stream: a pure function of its fields."""

    weights: bytes
    """A checkpoint (`checkpoint.pack`)."""
    family: Any
    """The `TaskFamily`."""
    stream: str
    """Which sequence of tasks: ``confirm``, ``vault``, ..."""
    seed: int
    """Of the lineage; with the stream and the task's index it names every random number."""
    start: int
    """Index of the first task."""
    count: int
    """Tasks."""
    with_curve: bool
    """Whether to measure `CURVE_METRICS` too, at three more episodes a task."""
    support_steps: int
    curve_steps: tuple[int, ...]

    def __call__(self) -> Measured:
        """All tasks at once; one by one where that fails, so that only the culprits are lost."""
        try:
            return self._measure(self.start, self.count)
        except Exception:  # an environment may raise anything
            if self.count == 1:
                return lost(1, self.with_curve)
            parts = [replace(self, start=self.start + i, count=1)() for i in range(self.count)]
            scores = {name: [p.scores[name][0] for p in parts] for name in parts[0].scores}
            return Measured(scores, sum(p.env_steps for p in parts))

    def _measure(self, start: int, count: int) -> Measured:
        from ssm_metarl.checkpoint import unpack
        from ssm_metarl.evaluation.episodes import collect_support
        from ssm_metarl.evaluation.score import score
        from ssm_metarl.methods.meta_trained import MetaTrained
        from ssm_metarl.methods.method import Model
        from ssm_metarl.methods.standard import Standard

        checkpoint = unpack(self.weights, "candidate")
        trained = MetaTrained.from_training(checkpoint.training)
        model = Model(checkpoint.policy(), trained)
        # A step is kept whatever it does: the limits of adaptation are set when a champion is
        # exported, and a candidate without them must not look better for it.
        method = Standard(trained.adaptation(rollback=False))
        env_steps = 0

        def returns(split: Any, num_steps: int) -> NDArray[np.float64]:
            nonlocal env_steps
            purpose = f"rsi-{self.stream}-{split}"
            tasks = self.family.sample(
                split, count, seed=self.seed, start=start, stream=f"rsi-{self.stream}"
            )
            support = collect_support(
                model.policy, tasks, num_steps, trained.support_policy,
                seed=self.seed, purpose=purpose,
            )  # fmt: skip
            (row,) = score((method,), model, tasks, support, seed=self.seed, purpose=purpose).scores
            env_steps += int(row.env_steps.sum() + row.episodes.steps.sum())
            # Parameters that are no numbers leave neither a loss nor a distance.
            sound = np.isfinite([[r.loss_after, r.kl] for r in row.reports]).all(axis=1)
            return np.where(sound, row.returns[:, 0], np.nan)

        scores = {PRIMARY: returns("ood", self.support_steps)}
        if self.with_curve:
            curve = np.stack([returns("id", n) for n in self.curve_steps])
            scores["average_reward"] = curve[-1]
            scores["adaptation_speed"] = area(curve, self.curve_steps)
            scores["meta_learning_efficiency"] = curve[0]
        return Measured({name: values.tolist() for name, values in scores.items()}, env_steps)


def area(curve: NDArray[np.float64], lengths: Sequence[int]) -> NDArray[np.float64]:
    """Area under each task's curve by the trapezoid rule, over the curve's length.

    Args:
        curve: Return for each length of data, shape (len(lengths), K).
        lengths: Ascending.

    Returns:
        Shape (K,), between the least and the greatest return of the task.
    """
    result: NDArray[np.float64] = curve[0]
    if len(lengths) > 1:
        under = np.trapezoid(curve, np.array(lengths, float), axis=0)
        result = under / (lengths[-1] - lengths[0])
    return result


def differences(
    new: Mapping[str, Sequence[float | None]],
    old: Mapping[str, Sequence[float | None]],
    bounds: tuple[float, float],
    *,
    stability_cap: float | None = None,
) -> dict[str, list[float]]:
    """D of every pair for every metric that both sides have, as a share of the range.

    Args:
        new: Scores of the candidate; None or NaN where it crashed.
        old: Scores of the champion on the same tasks.
        bounds: Least and greatest return possible.
        stability_cap: c of the metric ``stability``; without it there is none.

    Raises:
        ValueError: A score is out of bounds: nothing is clipped.
    """
    low, high = bounds
    pairs = {name: np.array([new[name], old[name]], float) for name in old if name in new}
    if stability_cap is not None:
        pairs["stability"] = np.minimum(pairs[PRIMARY], stability_cap)
    result = {}
    for name, sides in pairs.items():
        outside = (sides < low) | (sides > high)  # False for NaN
        if outside.any():
            raise ValueError(
                f"{name}: expected returns from {low:g} to {high:g}, received "
                f"{sides[outside][0]:g}; declare the family's return_bounds"
            )
        crashed = np.isnan(sides).any(axis=0)
        result[name] = np.where(crashed, CRASHED, (sides[0] - sides[1]) / (high - low)).tolist()
    return result


def bounds_of(family: Any, config: RSIConfig) -> tuple[float, float]:
    """The bounds of an episode's return; ValueError where nobody declares them."""
    bounds: tuple[float, float] | None = config.return_bounds or family.return_bounds
    if bounds is None:
        raise ValueError(
            f"return_bounds: expected the least and the greatest return of {family.name!r}, "
            f"which declares none, received None"
        )
    return bounds
