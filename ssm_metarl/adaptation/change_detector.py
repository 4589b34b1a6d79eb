"""Has the plant changed? A look at the latest transitions says whether to adapt (again).

Place in the flow: stage 4, beside the adapters. The score is the policy's prediction error on the
last ``window`` transitions, over the largest that an unchanged plant gives in 99 of 100 such
windows (the model's `Calibration`). A sensor that stands still is left out; where half of them do,
nothing is known of the plant, and the score is 0.

The trap: errors count in units of the targets' spread in the data that the policy was *adapted
to*, which an `AdaptedPolicy` carries with it. The window's own spread would not do: a pole at rest
moves ten times less than one that random actions throw about.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssm_metarl.adaptation.inner_objective import check_support
from ssm_metarl.compiled import usual_modes
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.objectives.prediction import is_uninformative, prediction_loss, silent_dims
from ssm_metarl.types import Params, Rollout


class ChangeReport(NamedTuple):
    """What the latest transitions say."""

    score: float
    """Prediction error over its limit: above 1, the plant has changed."""
    verdict: bool
    """Whether to adapt."""


@usual_modes()
def needs_adaptation(policy: Policy | StateSpaceModel, transitions: Rollout) -> ChangeReport:
    """Whether a plant is still the one that a policy is adapted to.

    Args:
        policy: An adapted policy, or a meta-trained one that has not adapted yet.
        transitions: Steps of one plant, (T, 1, 1), under any controller; the last ``window``
            count (20 by default, see `Calibration`).

    Raises:
        ValueError: The policy has no calibration, or there are fewer transitions.
    """
    policy = as_policy(policy)
    calibration = policy.calibration
    if calibration is None or calibration.max_prediction_error is None:
        raise ValueError(
            "policy: expected one with a calibration of its prediction error, as `ssm-metarl "
            "train` leaves it, received one without"
        )
    if transitions.num_tasks != 1 or transitions.num_envs != 1:
        raise ValueError(
            f"transitions: expected those of one plant, shape (T, 1, 1), received "
            f"{tuple(transitions.mask.shape)}"
        )
    check_support(policy, transitions, "prediction")
    spread = calibration.target_spread
    last = _last_steps(transitions, calibration.window)
    silent = silent_dims(policy, last)
    if bool(is_uninformative(silent)):
        return ChangeReport(0.0, False)
    with torch.no_grad():
        error = prediction_loss(
            policy,
            policy.meta_params(),
            last,
            spread=None if spread is None else policy.obs_scale.new_tensor([spread]),
            silent=silent,
        )
    limit = calibration.max_prediction_error
    score = float(error[0]) / limit if limit > 0 else math.inf
    return ChangeReport(score, not score <= 1)  # NaN, from a broken policy, is a reason to adapt


@torch.no_grad()
def window_error(
    policy: Policy, params: Params, rollout: Rollout, *, window: int, spread: Tensor | None
) -> Tensor:
    """Prediction error of the last ``window`` steps that each task took in (T, K, 1), shape (K,).

    The hidden state starts at zero with the window: what came before may be another plant. A
    ``spread`` of None takes the window's own; see `prediction_loss`.

    Raises:
        ValueError: A task took fewer steps.
    """
    return prediction_loss(policy, params, _last_steps(rollout, window), spread=spread)


def _last_steps(rollout: Rollout, window: int) -> Rollout:
    """The last ``window`` steps that each task took in one environment, (window, K, 1)."""
    if (fewest := int(rollout.steps_taken().min())) < window:
        raise ValueError(f"transitions: expected at least {window}, received {fewest}")
    return taken_last(rollout).map(lambda x: x[-window:])


def taken_last(rollout: Rollout) -> Rollout:
    """The steps of (T, K, 1) in their order, but those that were taken behind the others."""
    order = torch.argsort(rollout.mask.to(torch.int8), dim=0, stable=True)
    return rollout.map(
        lambda x: torch.take_along_dim(x, order.view(*order.shape, *(1,) * (x.dim() - 3)), 0)
    )
