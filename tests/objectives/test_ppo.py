"""PPO by hand: each answer is checked against the code, and against the code with a fault in it.

A check that a fault passes would check nothing, so every planted fault must fail it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from planted import planted
from ssm_metarl.core.policy import Policy
from ssm_metarl.objectives import ppo
from ssm_metarl.types import Rollout

MakeRollout = Callable[..., Rollout]
MakePolicy = Callable[..., Policy]

# ratio, advantage -> gain at a clip of 0.2, and its derivative by the log-probability, ratio x A
# where the unclipped product is the smaller one
KNOWN = [
    (1.1, 2.0, 2.2, 2.2),  # inside
    (0.9, -2.0, -1.8, -1.8),  # inside
    (1.5, 1.0, 1.2, 0.0),  # above, good: likely enough
    (1.5, -1.0, -1.5, -1.5),  # above, bad: drawn back, without a limit
    (0.5, 1.0, 0.5, 0.5),  # below, good: drawn back
    (0.5, -1.0, -0.8, 0.0),  # below, bad: rare enough
]


def check_gain(module: ModuleType) -> None:
    for ratio, advantage, gain, slope in KNOWN:
        log_prob = torch.tensor(math.log(0.3 * ratio), dtype=torch.float64, requires_grad=True)
        old, size = torch.tensor(0.3).double().log(), torch.tensor(advantage).double()
        received = module.clipped_gain(log_prob, old, size, 0.2)
        assert received.item() == pytest.approx(gain)
        (gradient,) = torch.autograd.grad(received, log_prob)
        assert gradient.item() == pytest.approx(slope)


def check_far_away(module: ModuleType) -> None:
    """A log-ratio of 100, in float32, for either sign of the advantage: the gradient is finite."""
    for advantage in (1.0, -1.0):
        log_prob = torch.tensor([0.0], requires_grad=True)
        gain = module.clipped_gain(log_prob, torch.tensor([-100.0]), torch.tensor(advantage), 0.2)
        (gradient,) = torch.autograd.grad(gain.sum(), log_prob)
        assert gain.isfinite().all() and gradient.tolist() == [0.0]


def check_value_loss(module: ModuleType) -> None:
    value = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    loss = module.value_loss(value, torch.tensor([3.0, -1.0]).double())
    assert loss.item() == pytest.approx((4 + 1) / 2)
    (gradient,) = torch.autograd.grad(loss, value)
    assert gradient.tolist() == [pytest.approx(-2.0), pytest.approx(-1.0)]


def check_loss(module: ModuleType, make_rollout: MakeRollout, policy: Policy) -> None:
    """Two steps taken of three: ratios 1.5 and 0.5, gains 1.2 and -0.8, entropy ln 2."""
    ratios = torch.tensor([1.5, 0.5, 7.0])[:, None, None]
    rollout = make_rollout(
        3,
        action=torch.zeros(3, 1, 1, dtype=torch.int64),
        log_prob=(0.5 / ratios).log(),
        mask=torch.tensor([True, True, False])[:, None, None],
    )
    advantage = torch.tensor([1.0, -1.0, 50.0]).double()[:, None, None]
    losses = module.clipped_policy_loss(
        policy, policy.meta_params(), rollout, advantage, clip_coef=0.2, entropy_coef=0.1
    )
    assert losses.tolist() == [pytest.approx(-(1.2 - 0.8) / 2 - 0.1 * math.log(2))]


@pytest.fixture
def even(constant_policy: MakePolicy) -> Policy:
    """Both actions have probability 1/2."""
    return constant_policy((0.0, 0.0, 0.0, 0.0))


@pytest.fixture
def checks(make_rollout: MakeRollout, even: Policy) -> dict[str, Callable[[ModuleType], None]]:
    return {
        "gain": check_gain,
        "far away": check_far_away,
        "value": check_value_loss,
        "loss": lambda module: check_loss(module, make_rollout, even),
    }


@pytest.mark.parametrize("name", ["gain", "far away", "value", "loss"])
def test_known_answers(name: str, checks: dict[str, Callable[[ModuleType], None]]) -> None:
    checks[name](ppo)


FAULTS = {
    "ratio upside down": ("gain", "(log_prob - old)", "(old - log_prob)"),
    "advantage negated": ("gain", "torch.minimum(ratio * adv", "torch.minimum(-ratio * adv"),
    "max for min": ("gain", "torch.minimum(", "torch.maximum("),
    "no limit above": ("gain", "clamp(1 - clip_coef, 1 + clip_coef)", "clamp(min=1 - clip_coef)"),
    "no limit below": ("gain", "clamp(1 - clip_coef, 1 + clip_coef)", "clamp(max=1 + clip_coef)"),
    "always clipped": ("gain", "minimum(ratio * advantage,", "minimum(clipped * advantage,"),
    "log-ratio free": ("far away", ".clamp(max=MAX_LOG_RATIO).exp()", ".exp()"),
    "wrong target": ("value", "(value - target)", "(value + target)"),
    "gain descended": ("loss", "return -task_mean(gain", "return task_mean(gain"),
    "entropy punished": ("loss", "gain + entropy_coef", "gain - entropy_coef"),
    "mask ignored": ("loss", "(gain, rollout.mask)", "(gain, torch.ones_like(rollout.mask))"),
    "mask inverted": ("loss", "(gain, rollout.mask)", "(gain, ~rollout.mask)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(
    fault: str,
    checks: dict[str, Callable[[ModuleType], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check, right, wrong = FAULTS[fault]
    with pytest.raises(AssertionError):
        checks[check](planted(monkeypatch, ppo, right, wrong))


def test_the_gain_of_many_steps_is_that_of_each() -> None:
    ratio, advantage, gain, _ = (
        torch.tensor(x, dtype=torch.float64) for x in zip(*KNOWN, strict=True)
    )
    received: Tensor = ppo.clipped_gain(ratio.log(), torch.zeros_like(ratio), advantage, 0.2)
    torch.testing.assert_close(received, gain)
