"""The loop of gradient steps: rate, clip, divergence, rows that are trainings of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssm_metarl.meta_rl.gradient_steps import FINAL_LR_SHARE, GradientSteps, TrainingDiverged


def descends(x: Tensor, gradient: Tensor, loss: float = 2.0) -> Callable[[], float]:
    def backward() -> float:
        x.grad = gradient.clone()
        return loss

    return backward


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.97, 1.0])
def test_plain_descent_by_hand(progress: float) -> None:
    """A gradient of norm 5, clipped to 1, at a rate that falls to a twentieth."""
    x = torch.zeros(2, requires_grad=True)
    steps = GradientSteps({"x": x}, 0.1, 1.0, optimizer="sgd")
    taken = steps.take([descends(x, torch.tensor([3.0, -4.0]))] * 2, progress=progress)
    rate = 0.1 * max(FINAL_LR_SHARE, 1 - progress)
    torch.testing.assert_close(x.detach(), 2 * rate * torch.tensor([-0.6, 0.8]))
    assert (taken.loss, taken.grad_norm) == (2.0, pytest.approx(5.0))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_diverges_leaves_all_as_it_was(number: float) -> None:
    x = torch.ones(2, requires_grad=True)
    steps = GradientSteps({"x": x}, 0.1, 1.0)
    steps.take([descends(x, torch.ones(2))])
    before, moments = x.detach().clone(), steps.tensors()
    for gradient, loss in ((torch.ones(2), number), (torch.tensor([1.0, number]), 2.0)):
        with pytest.raises(TrainingDiverged, match=r"expected a finite loss and gradient, rec"):
            steps.take([descends(x, gradient, loss)])
        assert torch.equal(x.detach(), before)
        assert all(torch.equal(v, moments[n]) for n, v in steps.tensors().items())


def test_a_row_is_clipped_by_itself_and_one_that_is_no_number_stops_no_other() -> None:
    x = torch.zeros(3, 2, requires_grad=True)
    steps = GradientSteps({"x": x}, 1.0, 1.0, optimizer="sgd", each_row=True)
    rows = torch.tensor([[3.0, 4.0], [torch.nan, 1.0], [0.1, 0.0]])
    taken = steps.take([descends(x, rows)])
    expected = -torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.1, 0.0]])
    torch.testing.assert_close(x.detach(), expected)
    assert taken.grad_norm == pytest.approx(5.0)


def test_moments_are_named_and_can_be_put_back() -> None:
    x, other = (torch.zeros(2, requires_grad=True) for _ in range(2))
    steps, again = (GradientSteps({"x": p}, 0.1, 1.0) for p in (x, other))
    assert steps.tensors() == {}
    steps.take([descends(x, torch.tensor([0.5, -0.2]))])
    assert set(steps.tensors()) == {"x.step", "x.exp_avg", "x.exp_avg_sq"}
    with torch.no_grad():
        other.copy_(x)
    again.restore(steps.tensors())
    for each, p in ((steps, x), (again, other)):
        each.take([descends(p, torch.tensor([0.1, 0.3]))])
    assert torch.equal(x, other)


def test_no_loss_is_no_step() -> None:
    steps = GradientSteps({"x": torch.zeros(1, requires_grad=True)}, 0.1, 1.0)
    with pytest.raises(ValueError, match="expected at least one loss, received none"):
        steps.take([])
