"""What plants of a family move like: a prior over their linearised dynamics, to judge a log by.

Place in the flow: stage 4, beside the adapters; `log_check` compares explanations of a log by it.
With z the scaled observation and c the code of the action, a step of a plant is about

    z_{t+1} - z_t = W' [1, z_t, c_t] + noise

W of many simulated training tasks, each fitted by least squares, gives a normal distribution; one
for each combination of the family's categories and for each of its ranges, since the mean of
"pushes right" and "pushes left" is neither. A log is fitted under it with Student's t errors
(Lange, Little & Taylor 1989), which a few spoilt rows cannot bend.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import Split, TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import Choice
from ssm_metarl.types import Rollout

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

PURPOSE = "plant-prior"
RANGES: tuple[Split, ...] = ("train", "ood")
"""Both that a family declares; the tasks are of streams of their own."""
TASKS, STEPS, ENVS = 96, 64, 2
MOST_COMBINATIONS = 8
"""With more combinations of categories, one distribution has to do for all."""
WIDEST = 8
"""Observations up to this size are judged; W has O (1 + O + C) entries, known together."""
TOLERANCE, TOLERANCE_FLOOR = 0.05, 1e-3
"""What a plant may differ from every simulated one in an entry of W: this share of it, and this."""
NOISE_SHARE = 0.02
"""Least noise, as a share of what the family's observations move by in a step."""
FREEDOM = 4.0
"""Degrees of freedom of the errors' t distribution."""
ITERATIONS = 10
OUTLIERS, WILD = 0.05, 20.0
"""Share of rows that are taken for faults, and how far they reach, in the family's own spread."""


@dataclass(frozen=True)
class Fit:
    """A log under the component that explains it best."""

    weights: Array  # W, (F, O)
    scale: Array  # of the errors, (O,)
    residual: Array  # (T, O)
    row_score: Array  # log density of each row, (T,)
    penalty: float  # minus the log density of W under the prior, up to a constant

    @property
    def score(self) -> float:
        """Log density of the rows and W together, up to a constant."""
        return float(self.row_score.sum()) - self.penalty


@dataclass(frozen=True)
class PlantPrior:
    """The family's plants, as far as linear dynamics tell them: C normal distributions over W.

    W is laid out output by output, (O, F).
    """

    action_space: ActionSpace
    scale: Array  # brings an observation to about [-1, 1], (O_all,)
    moving: Bools  # the O observation dimensions that change within an episode, (O_all,)
    spread: Array  # root mean square change of them in a step, (O,)
    mean: Array  # (C, O, F)
    covariance: Array  # (C, O F, O F)
    noise: Array  # least scale of the errors, (C, O)

    def rows(self, log: Rollout) -> tuple[Array, Array]:
        """Regressors (T, F) and changes (T, O) of a log of shape (T, 1, 1), scaled."""
        z = log.obs[:, 0, 0].double().numpy() * self.scale
        after = log.next_obs[:, 0, 0].double().numpy() * self.scale
        code = self.action_space.code(log.action[:, 0, 0]).double().reshape(len(z), -1).numpy()
        x = np.concatenate([np.ones((len(z), 1)), z[:, self.moving], code], axis=1)
        return x, (after - z)[:, self.moving]

    def fit(self, x: Array, y: Array, rate: float = 1.0) -> Fit:
        """`fit_all` of one log."""
        return self.fit_all([(x, y)], [rate])[0]

    def fit_all(self, logs: Sequence[tuple[Array, Array]], rates: Sequence[float]) -> list[Fit]:
        """Fit logs, rows x (T, F) and y (T, O) of each, under every component; keep the best.

        A row of each lasts its rate's number of time steps of the family.
        """
        steps = max(len(y) for _, y in logs)
        x, y = (
            np.stack([_padded(part, steps) for part in parts]) for parts in zip(*logs, strict=True)
        )
        lengths = np.array([len(part) for _, part in logs])
        taken = (np.arange(steps) < lengths[:, None]).astype(np.float64)[:, None]  # (B, 1, T)
        flat, variance = self._robust(x, y, taken, np.array(rates))
        fits = []
        for b, (rows, changes) in enumerate(logs):
            every = []
            for c in range(len(self.mean)):
                weights, scale = flat[b, c].T, np.sqrt(variance[b, c])
                offset = (flat[b, c] - self.mean[c] * rates[b]).ravel() / rates[b]
                penalty = 0.5 * float(offset @ self._precision[c] @ offset)
                scores = self.row_scores(weights, scale, rows, changes)
                every.append(Fit(weights, scale, changes - rows @ weights, scores, penalty))
            fits.append(max(every, key=lambda fit: fit.score))
        return fits

    def row_scores(self, weights: Array, scale: Array, x: Array, y: Array) -> Array:
        """Log density of rows under a fit, shape (T,).

        A row may also be none of this plant, a fault of the sensor: by `OUTLIERS` of a uniform
        density, so that no row costs more than that, however wild it is.
        """
        dims = y.shape[1]
        distance = np.square((y - x @ weights) / scale).sum(axis=1)
        half = 0.5 * (FREEDOM + dims)
        constant = math.lgamma(half) - math.lgamma(0.5 * FREEDOM)
        constant -= 0.5 * dims * math.log(FREEDOM * math.pi) + np.log(scale).sum()
        background = math.log(OUTLIERS) - np.log(WILD * self.spread).sum()
        scores: Array = np.logaddexp(
            constant - half * np.log1p(distance / FREEDOM) + math.log1p(-OUTLIERS), background
        )
        return scores

    def _robust(self, x: Array, y: Array, taken: Array, rates: Array) -> tuple[Array, Array]:
        """Posterior modes (B, C, O, F) and error variances (B, C, O), by reweighted least squares.

        The outputs' own priors steer the weights; how the outputs' coefficients go together comes
        in at the last, whole, solution.
        """
        dims, size = self.mean.shape[1:]
        rate = rates[:, None, None, None]
        mean, floor = self.mean * rate, np.square(self.noise)  # (B, C, O, F), (C, O)
        own = self._own_precision / rate[..., None] ** 2  # (B, C, O, F, F)
        count = taken.sum(axis=2)  # (B, 1)
        variance = np.maximum(
            floor, 0.05 * (np.square(y) * taken[:, 0, :, None]).sum(1)[:, None] / count[..., None]
        )
        flat: Array = mean
        for _ in range(ITERATIONS):
            error = np.square(y[:, None] - x[:, None] @ flat.swapaxes(2, 3))  # (B, C, T, O)
            trust = (FREEDOM + dims) / (FREEDOM + (error / variance[:, :, None]).sum(axis=3))
            trust = trust * taken
            variance = np.maximum(floor, (trust[..., None] * error).sum(axis=2) / count[..., None])
            weighted = (x[:, None] * trust[..., None]).swapaxes(2, 3)  # (B, C, F, T)
            gram, cross = weighted @ x[:, None], (weighted @ y[:, None]).swapaxes(2, 3)
            left = gram[:, :, None] / variance[..., None, None] + own
            right = cross / variance[..., None] + (own @ mean[..., None])[..., 0]
            flat = np.linalg.solve(left, right[..., None])[..., 0]
        batch = flat.shape[:2]
        whole = self._precision / rates[:, None, None, None] ** 2
        right = cross / variance[..., None]
        right = right.reshape(*batch, -1) + (whole @ mean.reshape(*batch, -1, 1))[..., 0]
        left = whole.reshape(*batch, dims, size, dims, size).copy()
        for o in range(dims):
            left[:, :, o, :, o] += gram / variance[:, :, o, None, None]
        left = left.reshape(*batch, dims * size, dims * size)
        return np.linalg.solve(left, right[..., None]).reshape(*batch, dims, size), variance

    @cached_property
    def _precision(self) -> Array:
        inverse: Array = np.linalg.inv(self.covariance).astype(np.float64)
        return inverse

    @cached_property
    def _own_precision(self) -> Array:
        """Of each output by itself, shape (C, O, F, F)."""
        count, dims, size = self.mean.shape
        blocks = self.covariance.reshape(count, dims, size, dims, size)
        own: Array = np.linalg.inv(blocks[:, range(dims), :, range(dims)]).astype(np.float64)
        return own.swapaxes(0, 1)


def _padded(rows: Array, steps: int) -> Array:
    return np.concatenate([rows, np.zeros((steps - len(rows), rows.shape[1]))])


@lru_cache(maxsize=8)
def prior_of(family: TaskFamily) -> PlantPrior | None:
    """The prior over a family's plants, simulated once in a process.

    Returns:
        None where the observations are too many to be judged together (`WIDEST`).
    """
    drawn = [
        tasks.changed(**{n: torch.full((TASKS,), v, dtype=torch.float64) for n, v in given.items()})
        for tasks in (family.sample(split, TASKS, seed=0, stream=PURPOSE) for split in RANGES)
        for given in _combinations(family)
    ]
    spaces, groups = zip(*(random_rollout(t, ENVS, STEPS, PURPOSE) for t in drawn), strict=True)
    changes = [(r.next_obs - r.obs).double().numpy() for r in groups]
    spread = np.sqrt(np.mean([np.square(c).mean(axis=(0, 1, 2)) for c in changes], axis=0))
    moving = spread > 0
    if not moving.any() or int(moving.sum()) > WIDEST:
        return None
    if family.obs_scale is not None:
        scale = np.array(family.obs_scale, dtype=np.float64)
    else:
        size = np.max([r.obs.abs().amax(dim=(0, 1, 2)).double().numpy() for r in groups], axis=0)
        scale = 1 / np.maximum(size, 1e-12)
    empty = np.zeros(0)
    shell = PlantPrior(spaces[0], scale, moving, (spread * scale)[moving], empty, empty, empty)
    parts = [_component(shell, rollout) for rollout in groups]
    mean, covariance, noise = (np.stack(part) for part in zip(*parts, strict=True))
    return replace(shell, mean=mean, covariance=covariance, noise=noise)


def _combinations(family: TaskFamily) -> list[dict[str, float]]:
    """Every combination of the categories' values; one empty one where there are too many."""
    choices = {p.name: p.id.values for p in family.parameters if isinstance(p.id, Choice)}
    every = [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]
    return every if len(every) <= MOST_COMBINATIONS else [{}]


def random_rollout(
    tasks: Tasks, num_envs: int, steps: int, purpose: str
) -> tuple[ActionSpace, Rollout]:
    """Random actions in every task, from streams of their own, (steps, K, num_envs)."""
    worlds = make_worlds(tasks, num_envs, seed=0, purpose=purpose)
    actor = random_actor(worlds, TaskNoise(0, f"{purpose}-action", tasks.indices), steps)
    return worlds.action_space, collect_rollout(worlds, actor, steps, autoreset=True)


def _component(prior: PlantPrior, rollout: Rollout) -> tuple[Array, Array, Array]:
    """Mean (O, F) and covariance of W over simulated tasks, and their noise (O,)."""
    tasks = []
    for k in range(rollout.num_tasks):
        steps = rollout.task(k).map(lambda v: v.flatten(0, 2)[:, None, None])
        tasks.append(prior.rows(steps))
    x, y = (np.stack(part) for part in zip(*tasks, strict=True))  # (K, T, F), (K, T, O)
    gram, cross = x.swapaxes(1, 2) @ x, x.swapaxes(1, 2) @ y
    ridge = np.eye(x.shape[2])
    pooled = np.linalg.solve(gram.sum(axis=0) + 1e-6 * ridge, cross.sum(axis=0))
    # drawn to the mean where a task's own data do not tell
    own = pooled + np.linalg.solve(gram + 1e-3 * ridge, cross - gram @ pooled)  # (K, F, O)
    every = own.swapaxes(1, 2).reshape(len(own), -1)
    mean = every.mean(axis=0)
    allowed = np.square(TOLERANCE * np.abs(mean) + TOLERANCE_FLOOR)
    errors = (y - x @ own).std(axis=1)
    noise = np.maximum(np.quantile(errors, 0.9, axis=0), NOISE_SHARE * prior.spread)
    return mean.reshape(y.shape[2], -1), np.cov(every.T) + np.diag(allowed), noise
