"""Policy-gradient losses: the ratio's gradient, the clipping, and steps that were never taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ssm_metarl.core.distributions import Categorical
from ssm_metarl.core.policy import Policy
from ssm_metarl.objectives.policy_gradient import MAX_RATIO, PolicyGradientLoss
from ssm_metarl.objectives.ppo import Guide, clipped_policy_loss
from ssm_metarl.types import Rollout

MakeRollout = Callable[..., Rollout]
Loss = Callable[[Policy, Rollout, Tensor], Tensor]


def likelihood_ratio(policy: Policy, rollout: Rollout, advantage: Tensor) -> Tensor:
    return PolicyGradientLoss(policy, rollout, advantage)(policy.meta_params())


def clipped(policy: Policy, rollout: Rollout, advantage: Tensor) -> Tensor:
    return clipped_policy_loss(
        policy, policy.meta_params(), rollout, advantage, clip_coef=0.2, entropy_coef=0.0
    )


both_losses = pytest.mark.parametrize("loss", [likelihood_ratio, clipped])


def log_probs(policy: Policy, rollout: Rollout) -> Tensor:
    """What the policy itself gives to the rollout's actions, (T, K, N)."""
    hidden = policy.init_hidden(rollout.num_tasks, rollout.num_envs)
    out, _ = policy.unroll(policy.meta_params(), rollout.obs, hidden, rollout.reset)
    return out.distribution.log_prob(rollout.action)


def gradients(policy: Policy, losses: Tensor) -> dict[str, Tensor]:
    params = policy.meta_params()
    grads = torch.autograd.grad(losses.sum(), list(params.values()), allow_unused=True)
    return {n: g for n, g in zip(params, grads, strict=True) if g is not None}


@both_losses
def test_at_the_behaviour_the_gradient_is_that_of_log_pi_times_advantage(
    loss: Loss, policy: Policy, make_rollout: MakeRollout, ends_early: Tensor
) -> None:
    rollout = make_rollout(6, 2, 2, mask=ends_early)
    rollout = replace(rollout, log_prob=log_probs(policy, rollout).detach())
    advantage = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    count = ends_early.sum(dim=(0, 2))
    weighted = log_probs(policy, rollout) * advantage * ends_early
    expected = gradients(policy, -weighted.sum(dim=(0, 2)) / count)
    losses = loss(policy, rollout, advantage)
    received = gradients(policy, losses)
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(received[name], value)
    assert any(v.abs().max() > 1e-2 for v in expected.values())
    torch.testing.assert_close(losses.detach(), -(advantage * ends_early).sum((0, 2)) / count)


def test_the_ratio_keeps_the_curvature_that_log_pi_loses(
    constant_policy: Callable[..., Policy], make_rollout: MakeRollout
) -> None:
    """d2/dz2 of pi/pi_old = p(1-p)(1-2p)/p, of log pi = -p(1-p), at p = sigmoid(z)."""
    policy = constant_policy((0.0, 1.0, 0.0, 0.0))
    rollout = make_rollout(1, action=torch.ones(1, 1, 1, dtype=torch.int64))
    rollout = replace(rollout, log_prob=log_probs(policy, rollout).detach())
    bias = policy.meta_params()["core.feedthrough.bias"]

    def curvature(loss: Tensor) -> float:
        (first,) = torch.autograd.grad(loss.sum(), bias, create_graph=True)
        return torch.autograd.grad(first[1], bias)[0][1].item()

    p = 1 / (1 + math.exp(-1.0))
    ones = torch.ones(1, 1, 1)
    ratio = curvature(-likelihood_ratio(policy, rollout, ones))
    assert ratio == pytest.approx((1 - p) * (1 - 2 * p))
    assert curvature(log_probs(policy, rollout)) == pytest.approx(-p * (1 - p))


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "pulls"),
    [
        (1.5, 1.0, 1.2, False),  # good, and already likelier: no further
        (1.5, -1.0, -1.5, True),  # bad, and likelier: back
        (0.5, 1.0, 0.5, True),  # good, and rarer: back
        (0.5, -1.0, -0.8, False),  # bad, and already rarer: no further
        (1.1, 2.0, 2.2, True),  # within the limits
    ],
)
def test_clipping_known_answers(
    constant_policy: Callable[..., Policy],
    make_rollout: MakeRollout,
    ratio: float,
    advantage: float,
    gain: float,
    pulls: bool,
) -> None:
    policy = constant_policy((0.0, 0.0, 0.0, 0.0))  # both actions have probability 1/2
    rollout = make_rollout(3, log_prob=torch.full((3, 1, 1), math.log(0.5 / ratio)))
    rollout = replace(rollout, action=torch.zeros(3, 1, 1, dtype=torch.int64))
    losses = clipped(policy, rollout, torch.full((3, 1, 1), advantage))
    assert losses.tolist() == [pytest.approx(-gain)]
    bias = gradients(policy, losses)["core.feedthrough.bias"]
    assert (torch.count_nonzero(bias).item() > 0) == pulls


def test_the_entropy_bonus(
    constant_policy: Callable[..., Policy], make_rollout: MakeRollout
) -> None:
    policy = constant_policy((0.0, 0.0, 0.0, 0.0))
    rollout = make_rollout(3, mask=torch.tensor([True, True, False])[:, None, None])
    losses = clipped_policy_loss(
        policy,
        policy.meta_params(),
        rollout,
        torch.zeros(3, 1, 1),
        clip_coef=0.2,
        entropy_coef=0.5,
    )
    assert losses.tolist() == [pytest.approx(-0.5 * math.log(2))]


@pytest.mark.parametrize("log_behaviour", [math.log(0.5 / 50), -200.0])
def test_a_behaviour_far_away_neither_dominates_nor_overflows(
    constant_policy: Callable[..., Policy], make_rollout: MakeRollout, log_behaviour: float
) -> None:
    policy = constant_policy((0.0, 0.0, 0.0, 0.0))
    rollout = make_rollout(3, log_prob=torch.full((3, 1, 1), log_behaviour))
    ones = torch.ones(3, 1, 1)
    losses = likelihood_ratio(policy, rollout, ones)
    assert losses.tolist() == [pytest.approx(-MAX_RATIO)]
    assert clipped(policy, rollout, ones).tolist() == [pytest.approx(-1.2)]
    for result in (losses, clipped(policy, rollout, ones)):
        for grad in gradients(policy, result).values():
            assert torch.count_nonzero(grad) == 0  # NaN would count


@both_losses
def test_steps_never_taken_leak_neither_into_the_value_nor_into_the_gradient(
    loss: Loss,
    policy: Policy,
    make_rollout: MakeRollout,
    ends_early: Tensor,
    spoiled: Callable[[Rollout], Rollout],
) -> None:
    clean = make_rollout(6, 2, 2, mask=ends_early)
    advantage = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(1))
    expected_loss = loss(policy, clean, advantage)
    received_loss = loss(policy, spoiled(clean), torch.where(ends_early, advantage, float("nan")))
    torch.testing.assert_close(received_loss, expected_loss)
    expected, received = gradients(policy, expected_loss), gradients(policy, received_loss)
    for name, value in expected.items():
        assert received[name].isfinite().all(), name
        torch.testing.assert_close(received[name], value)


@both_losses
def test_a_tasks_loss_is_its_own(loss: Loss, policy: Policy, make_rollout: MakeRollout) -> None:
    rollout = make_rollout(6, 3, 2)
    advantage = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(1))
    together = loss(policy, rollout, advantage)
    for k in range(3):
        alone = loss(policy, rollout.task(k), advantage[:, k : k + 1])
        torch.testing.assert_close(alone[0], together[k])


# A teacher.


def taught(policy: Policy, rollout: Rollout, guide: Guide | None, advantage: float = 0.0) -> Tensor:
    return clipped_policy_loss(
        policy,
        policy.meta_params(),
        rollout,
        torch.full(rollout.mask.shape, advantage),
        clip_coef=0.2,
        entropy_coef=0.0,
        guide=guide,
    )


def test_a_guides_known_divergence(
    constant_policy: Callable[..., Policy], make_rollout: MakeRollout
) -> None:
    """The teacher takes the second action with 3/4, the policy with 1/2."""
    policy = constant_policy((0.0, 0.0, 0.0, 0.0))
    rollout = make_rollout(3, mask=torch.tensor([True, True, False])[:, None, None])
    logits = torch.tensor([0.0, math.log(3)]).double().expand(3, 1, 1, 2)
    losses = taught(policy, rollout, Guide(Categorical(logits), 0.5))
    there_to_here = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    here_to_there = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert losses.tolist() == [pytest.approx(0.5 * there_to_here)]
    assert abs(there_to_here - here_to_there) > 0.01, "the other direction is another number"


def test_a_guide_pulls_towards_the_teacher(
    constant_policy: Callable[..., Policy], make_rollout: MakeRollout
) -> None:
    policy = constant_policy((0.0, 0.0, 0.0, 0.0))
    rollout = make_rollout(3)
    for sign in (1.0, -1.0):
        logits = torch.tensor([0.0, 2.0 * sign]).double().expand(3, 1, 1, 2)
        losses = taught(policy, rollout, Guide(Categorical(logits), 2.0))
        pull = -gradients(policy, losses)["core.feedthrough.bias"][:2]
        p = logits[0, 0, 0].softmax(-1)
        torch.testing.assert_close(pull, 2.0 * (p - 0.5))  # of KL: policy - teacher
    same = torch.zeros(3, 1, 1, 2)
    losses = taught(policy, rollout, Guide(Categorical(same), 2.0))
    assert losses.tolist() == [pytest.approx(0.0, abs=1e-7)]
    assert gradients(policy, losses)["core.feedthrough.bias"].abs().max() < 1e-7


def test_a_guide_of_no_weight_is_none(policy: Policy, make_rollout: MakeRollout) -> None:
    rollout = make_rollout(6, 2, 2)
    teacher = Categorical(torch.randn(6, 2, 2, 2, generator=torch.Generator().manual_seed(2)))
    without = taught(policy, rollout, None, 1.0)
    assert torch.equal(taught(policy, rollout, Guide(teacher, 0.0), 1.0), without)
    assert (taught(policy, rollout, Guide(teacher, 1.0), 1.0) > without).all()
