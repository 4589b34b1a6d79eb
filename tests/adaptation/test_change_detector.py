"""Has the plant changed? Known scores, the window, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from float32 import assert_only_rounded, double
from ssm_metarl.adaptation.change_detector import needs_adaptation, window_error
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import Checkpoint
from ssm_metarl.config import Calibration, StandardAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.objectives.prediction import prediction_loss, target_spread
from ssm_metarl.types import Rollout

MakeSupport = Callable[..., Rollout]
LIMITS = Calibration(objective="prediction", max_loss=(9.0,), max_kl=9.0, max_prediction_error=0.5)


def last_steps(rollout: Rollout, count: int) -> Rollout:
    return rollout.map(lambda x: x[-count:])


def test_the_score_is_the_windows_error_over_the_limit(
    policy: Policy, make_support: MakeSupport
) -> None:
    policy, rollout = double(policy), double(make_support(1, 50))
    policy.calibration = LIMITS
    error = prediction_loss(policy, policy.meta_params(), last_steps(rollout, 20)).item()
    report = needs_adaptation(policy, rollout)
    assert report.score == pytest.approx(error / 0.5)
    for limit, verdict in ((error * 1.01, False), (error * 0.99, True)):
        policy.calibration = replace(LIMITS, max_prediction_error=limit)
        assert needs_adaptation(policy, rollout).verdict is verdict


def test_a_limit_of_zero_is_passed_by_everything(policy: Policy, make_support: MakeSupport) -> None:
    policy.calibration = replace(LIMITS, max_prediction_error=0.0)
    assert needs_adaptation(policy, make_support(1, 20)) == (float("inf"), True)


def test_an_adapted_policy_counts_in_the_units_of_its_own_data(
    policy: Policy, make_support: MakeSupport
) -> None:
    policy.calibration = LIMITS
    support, later = make_support(1, 30), make_support(1, 40, seed=5)
    adapted = StandardAdapter(StandardAdaptationConfig(rollback=False)).adapt(policy, support)
    spread = target_spread(policy, support)
    window = last_steps(later, 20)

    def score(policy: Policy, window: Rollout, spread: Tensor) -> Tensor:
        return prediction_loss(policy, policy.meta_params(), window, spread=spread)[0] / 0.5

    expected = 0.5 * score(adapted, window, spread).item()
    reported = torch.tensor(needs_adaptation(adapted, later).score)
    assert_only_rounded(reported, score, adapted, window, spread)
    own = prediction_loss(adapted, adapted.meta_params(), window).item()
    assert own != pytest.approx(expected, rel=1e-3)
    assert policy.calibration is LIMITS


def test_steps_before_the_window_and_after_the_end_do_not_count(
    policy: Policy, make_support: MakeSupport
) -> None:
    policy, rollout = double(policy), double(make_support(3, 30))
    lengths = torch.tensor([30, 25, 21])
    cut = replace(rollout, mask=torch.arange(30)[:, None, None] < lengths[:, None])
    params = policy.meta_params()
    error = window_error(policy, params, cut, window=20, spread=None)
    for k, length in enumerate(lengths.tolist()):
        alone = rollout.map(lambda x, k=k, end=length: x[end - 20 : end, k : k + 1])
        torch.testing.assert_close(error[k : k + 1], prediction_loss(policy, params, alone))


def test_what_cannot_be_judged_is_refused(policy: Policy, make_support: MakeSupport) -> None:
    with pytest.raises(ValueError, match="expected one with a calibration"):
        needs_adaptation(policy, make_support(1, 30))
    policy.calibration = replace(LIMITS, max_prediction_error=None)
    with pytest.raises(ValueError, match="expected one with a calibration"):
        needs_adaptation(policy, make_support(1, 30))
    policy.calibration = LIMITS
    with pytest.raises(ValueError, match="expected at least 20, received 19"):
        needs_adaptation(policy, make_support(1, 19))
    with pytest.raises(ValueError, match=r"one plant.*received \(30, 2, 1\)"):
        needs_adaptation(policy, make_support(2, 30))
    broken = make_support(1, 30)
    broken.next_obs[3] = torch.nan
    with pytest.raises(ValueError, match="NaN or inf in next_obs"):
        needs_adaptation(policy, broken)


def test_limits_survive_a_checkpoint(policy: Policy) -> None:
    from dataclasses import asdict

    limits = replace(LIMITS, target_spread=(0.1, 0.2))
    assert policy.config is not None
    checkpoint = Checkpoint(
        policy_config=asdict(policy.config),
        tensors={f"policy.{n}": v for n, v in policy.state_dict().items()},
        calibration=asdict(limits),
    )
    assert checkpoint.policy().calibration == limits
    assert replace(checkpoint, calibration={}).policy().calibration is None
    with pytest.raises(ValueError, match="calibration"):
        replace(checkpoint, calibration={"max_los": 1}).policy()
