"""Set a model's limits on meta-training tasks: what adapting may do, how far a plant may drift.

Place in the flow: stage 7; `train` calls it when a training ends, `adaptation.safeguard` and
`adaptation.change_detector` obey what it sets. The tasks are of the training's own distribution:
nothing here sees an evaluation's tasks, nor anything out of distribution.

- ``max_loss`` is the largest limit with which, on honest data and on data whose actions were
  shuffled alike, at most 5 % of the tasks have a kept step that lowers the return. "At most" is
  meant with 95 % confidence (Clopper & Pearson 1934): with 400 tasks, 12 that fall, not 20. Each
  length of data has its own: five steps that lie are easier to explain than forty. Where a plant
  moves by itself much more than by its actions, data that lie about these are explained as well as
  honest ones, and such a limit would undo most steps that help. There honest data alone set it, and
  the limits say so (``told_lies``).
- ``max_kl`` is twice the 99.9 % quantile of KL(adapted || meta) on honest data. The quantile itself
  refuses one honest adaptation in a hundred out of distribution, and no harmful one that the loss
  lets pass: this limit is there for what nobody has seen yet.
- ``max_prediction_error`` is the 99 % quantile of the adapted policy's prediction error on windows
  of its own episodes.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import bdtr
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.adaptation.change_detector import window_error
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import Calibration
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import PURPOSE, collect_support, shuffle_actions
from ssm_metarl.evaluation.score import score
from ssm_metarl.methods.frozen import AdaptedTo, Frozen
from ssm_metarl.methods.meta_trained import MetaTrained, can_adapt
from ssm_metarl.methods.method import Model
from ssm_metarl.objectives.prediction import target_spread
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Params, Rollout

HARM_BUDGET = 0.05
CONFIDENCE = 0.95
HELP_KEPT = 0.9
"""A limit that guards against data that lie leaves at least this share of the honest steps."""
MAX_LOSS_QUANTILE = 0.99
"""Of honest data, where they alone set the limit."""
MAX_KL_QUANTILE, MAX_KL_MARGIN = 0.999, 2.0
MAX_ERROR_QUANTILE = 0.99
FALL_SHARE = 0.004
"""A return has fallen where it is lower by more than this share of the returns that were seen."""
FIRST_WINDOWS = 5
"""The change detector's windows are taken from so many windows' steps at an episode's start."""
FIRST_TASK = 2**40
"""Meta-training tasks from here on: of training's distribution, but none that it drew."""


@usual_modes()
def calibrate(
    policy: Policy,
    family: TaskFamily,
    trained: MetaTrained,
    *,
    seed: int = 0,
    num_tasks: int = 1200,
    support_steps: tuple[int, ...] = (5, 20, 40),
) -> Calibration | None:
    """Limits for a policy, from adapting it to meta-training tasks by one step.

    Args:
        policy: Freshly meta-trained; stays untouched, its own limits are not used.
        family: Whose training tasks are drawn.
        trained: How it was meta-trained.
        seed: Names the tasks and episodes.
        num_tasks: Tasks, shared out among the lengths.
        support_steps: Lengths of the support data, ascending.

    Returns:
        The limits; None where the policy has no outputs for the inner objective.
    """
    if not can_adapt(policy, trained.objective):
        return None
    tasks = family.sample("train", num_tasks, seed=seed, start=FIRST_TASK)
    parts = np.array_split(np.arange(num_tasks), len(support_steps))
    honest = [
        collect_support(policy, tasks[part.tolist()], steps, trained.support_policy, seed=seed)
        for part, steps in zip(parts, support_steps, strict=True)
    ]
    kinds = {"honest": honest, "shuffled": [shuffle_actions(data, seed=seed) for data in honest]}
    adapted = {kind: _unguarded_step(policy, data, trained) for kind, data in kinds.items()}

    methods = [Frozen(), *(AdaptedTo(kind, params) for kind, (params, _) in adapted.items())]
    before, *rest = score(methods, Model(policy, trained), tasks, None, seed=seed).returns[..., 0]
    after = dict(zip(adapted, rest, strict=True))
    everything = np.concatenate([before, *after.values()])
    tolerance = FALL_SHARE * float(everything.max() - everything.min())
    losses = {kind: np.array([r.loss_after for r in rs]) for kind, (_, rs) in adapted.items()}
    falls = {kind: returns < before - tolerance for kind, returns in after.items()}
    limits = [
        loss_limit({k: v[part] for k, v in losses.items()}, {k: v[part] for k, v in falls.items()})
        for part in parts
    ]

    params, reports = adapted["honest"]
    max_error = None
    if trained.objective == "prediction":
        spread = torch.cat([target_spread(policy, data) for data in honest])
        errors = own_window_errors(
            policy, params, spread, tasks, window=Calibration.window, seed=seed
        )
        max_error = finite_quantile(errors, MAX_ERROR_QUANTILE)
    return Calibration(
        objective=trained.objective,
        max_loss=tuple(limit for limit, _ in limits),
        told_lies=tuple(told for _, told in limits),
        support_steps=support_steps,
        max_kl=MAX_KL_MARGIN * finite_quantile([r.kl for r in reports], MAX_KL_QUANTILE),
        max_prediction_error=max_error,
    )


def loss_limit(losses: dict[str, np.ndarray], falls: dict[str, np.ndarray]) -> tuple[float, bool]:
    """The limit on the loss, and whether it guards against data that lie, too (`harm_limit`)."""
    honest, guarding = losses["honest"], harm_limit(losses, falls)
    alone = min(harm_limit({"honest": honest}, falls), finite_quantile(honest, MAX_LOSS_QUANTILE))
    if (honest <= guarding).sum() >= HELP_KEPT * (honest <= alone).sum():
        return guarding, True
    return alone, False


def harm_limit(losses: dict[str, np.ndarray], falls: dict[str, np.ndarray]) -> float:
    """The largest limit on the loss with which no kind of data has too many falls.

    Args:
        losses: Inner loss after the step, for each kind of data, shape (K,).
        falls: Whether the return fell, likewise, bool.

    Returns:
        A loss that was seen; below all where even the lowest are too often followed by a fall.
    """
    allowed = {kind: most_falls(len(values)) for kind, values in losses.items()}
    every = np.sort(np.concatenate([v[np.isfinite(v)] for v in losses.values()]))
    limit = float(np.nextafter(every[0], -math.inf)) if len(every) else 0.0
    for candidate in every:
        if any(falls[k][v <= candidate].sum() > allowed[k] for k, v in losses.items()):
            break
        limit = float(candidate)
    return limit


def finite_quantile(values: ArrayLike, quantile: float) -> float:
    """A quantile of the values that are finite; 0, which keeps nothing, where none is."""
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    return float(np.quantile(finite, quantile)) if finite.size else 0.0


def most_falls(num_tasks: int) -> int:
    """How many of ``num_tasks`` may fall for the true share to be within the budget, surely.

    The one-sided Clopper-Pearson bound: the largest k with P(Binomial(n, budget) <= k) at most
    1 - confidence; -1 where so few tasks could prove nothing.
    """
    chances = bdtr(np.arange(num_tasks + 1), num_tasks, HARM_BUDGET)
    return int((chances <= 1 - CONFIDENCE).sum()) - 1


def _unguarded_step(
    policy: Policy, supports: list[Rollout], trained: MetaTrained
) -> tuple[Params, list[AdaptationReport]]:
    """One step on every part's data, kept whatever it does, as parameters of all tasks."""
    adapter = StandardAdapter(trained.adaptation(rollback=False))
    parts, reports = zip(*(adapter.adapt_tasks(policy, data) for data in supports), strict=True)
    params = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return params, [report for part in reports for report in part]


def own_window_errors(
    policy: Policy, params: Params, spread: Tensor, tasks: Tasks, *, window: int, seed: int
) -> np.ndarray:
    """Prediction error of each adapted policy on a window of its own steps.

    Args:
        policy: What was adapted.
        params: Adapted parameters, shape (K, ...) each.
        spread: Scale of the prediction targets in the data adapted to, shape (K, D).
        tasks: The plants that are run now: those adapted to, or changed ones.
        window: Transitions in a window; it ends anywhere in the first `FIRST_WINDOWS` windows.
        seed: Names episodes and windows.

    Returns:
        Shape (K,).
    """
    with closing(make_worlds(tasks, 1, seed=seed, purpose=f"{PURPOSE}-window")) as worlds:
        num_steps = FIRST_WINDOWS * window
        actor = policy.actor(params, len(tasks), 1)
        rollout = collect_rollout(worlds, actor, num_steps, autoreset=True)
    rng = seeding.generator(seed, f"{PURPOSE}-window")
    end = rng.integers(window, num_steps, size=len(tasks), endpoint=True)
    until = torch.arange(num_steps)[:, None, None] < torch.from_numpy(end)[:, None]
    seen = replace(rollout, mask=rollout.mask & until)
    error = window_error(policy, params, seen, window=window, spread=spread)
    return error.double().numpy()
