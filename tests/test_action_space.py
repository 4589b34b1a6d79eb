"""Action spaces: codes, and random actions with their densities."""

from __future__ import annotations

import math

import pytest
import torch

from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.core.distributions import Gaussian
from ssm_metarl.seeding import TaskNoise

SPACES = [
    Discrete(2),
    Discrete(5),
    Continuous(1, -2.0, 2.0),
    Continuous(3, 0.0, 4.0),
    Continuous(2, (0.0, -9.0), (4.0, 0.5)),
]


def noise() -> TaskNoise:
    return TaskNoise(0, "test", [0, 1])


def test_two_actions_are_coded_minus_one_and_one() -> None:
    assert Discrete(2).code(torch.tensor([0, 1])).tolist() == [[-1.0], [1.0]]


@pytest.mark.parametrize("n", [3, 5])
def test_more_actions_are_coded_one_hot_and_centred(n: int) -> None:
    codes = Discrete(n).code(torch.arange(n))
    torch.testing.assert_close(codes, torch.eye(n) - 1 / n)
    torch.testing.assert_close(codes.sum(0), torch.zeros(n))


def test_continuous_actions_are_coded_to_minus_one_and_one() -> None:
    code = Continuous(2, low=-1.0, high=3.0).code(torch.tensor([[-1.0, 1.0], [3.0, 2.0]]))
    assert code.tolist() == [[-1.0, 0.0], [1.0, 0.5]]


def test_the_code_of_a_continuous_action_is_of_what_the_plant_executes() -> None:
    """It clips; the density is of the action that was drawn."""
    space = Continuous(1, low=-2.0, high=2.0)
    action = torch.tensor([[-1e6], [-3.0], [-2.0], [1.0], [2.5]])
    assert space.code(action).tolist() == [[-1.0], [-1.0], [-1.0], [0.5], [1.0]]
    mean = torch.zeros(5, 1, requires_grad=True)
    log_prob = Gaussian(mean, torch.zeros(5, 1)).log_prob(action)
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    assert torch.equal(gradient, action)


@pytest.mark.parametrize(
    ("space", "action", "message"),
    [
        (Discrete(3), torch.tensor([[0, -1]]), "whole numbers from 0 to 2, received -1"),
        (Discrete(3), torch.tensor([[0, 3]]), "whole numbers from 0 to 2, received 3"),
        (Discrete(3), torch.tensor([[0.0, 1.0]]), r"whole numbers \(int64\), received float32"),
        (Discrete(3), torch.tensor([[0]]), r"shape \(K, N\) = \(1, 2\), received \(1, 1\)"),
        (Continuous(1), torch.zeros(1, 2), r"shape \(K, N, A\) = \(1, 2, 1\), received \(1, 2"),
        (Continuous(1), torch.full((1, 2, 1), math.nan), "finite numbers, received nan"),
    ],
)
def test_what_is_no_action_is_refused(
    space: ActionSpace, action: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^action: expected {message}"):
        space.checked(action, (1, 2), "K, N")
    nowhere = torch.zeros(1, 2, dtype=torch.bool)
    if "shape" not in message and "received float32" not in message:
        space.checked(action, (1, 2), "K, N", taken=nowhere)


def test_actions_of_other_widths_are_taken() -> None:
    small = Discrete(3).checked(torch.tensor([[2, 0]], dtype=torch.uint8), (1, 2), "K, N")
    assert small.dtype is torch.int64 and small.tolist() == [[2, 0]]
    wide = Continuous(1).checked(torch.tensor([[[5], [0]]]), (1, 2), "K, N")
    assert wide.dtype is torch.float32 and wide.flatten().tolist() == [5.0, 0.0]


def test_every_dimension_may_have_bounds_of_its_own() -> None:
    space = Continuous(2, low=(-1.0, 0.0), high=(3.0, 0.5))
    code = space.code(torch.tensor([[-1.0, 0.25], [3.0, 0.5]]))
    assert code.tolist() == [[-1.0, 0.0], [1.0, 1.0]]
    middle, half = space.middle_and_half(torch.zeros(1))
    assert (middle.tolist(), half.tolist()) == ([1.0, 0.25], [2.0, 0.25])
    action, log_prob = space.draw_random(noise(), 5_000, 2)
    for dim, (low, high) in enumerate(space.bounds):
        drawn = action[..., dim]
        assert low <= drawn.min() < low + 0.01 and high - 0.01 < drawn.max() <= high
    torch.testing.assert_close(log_prob.exp(), torch.full(log_prob.shape, 1 / (4 * 0.5)))


def test_one_box_is_one_space_however_its_bounds_are_written() -> None:
    assert Continuous(2, (-1.0, -1.0), (2.0, 2.0)) == Continuous(2, -1.0, 2.0)
    assert Continuous(2, (-1.0, -2.0), 2.0) != Continuous(2, -1.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ((0.0,), 1.0, r"low: expected one number, or 2, received \(0.0,\)"),
        (-math.inf, 1.0, r"expected finite bounds, low < high, received \[-inf, 1.0\]"),
        ((0.0, 1.0), 1.0, "expected finite bounds, low < high"),
    ],
)
def test_bounds_that_are_none_are_refused(
    low: float | tuple[float, ...], high: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Continuous(2, low, high)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_shapes_are_those_promised(space: ActionSpace) -> None:
    action, log_prob = space.draw_random(noise(), 7, 3)
    tail = () if isinstance(space, Discrete) else (space.dim,)
    assert action.shape == (7, 2, 3, *tail)
    assert log_prob.shape == (7, 2, 3)
    assert space.code(action).shape == (7, 2, 3, space.code_dim)
    width = 1 if isinstance(space, Discrete) else space.dim
    assert space.draw_noise(noise(), 7, 3).shape == (7, 2, 3, width)
    assert space.logits_dim == (space.n if isinstance(space, Discrete) else space.dim)


@pytest.mark.parametrize("n", [2, 5])
def test_random_choices_are_even_and_know_their_probability(n: int) -> None:
    action, log_prob = Discrete(n).draw_random(noise(), 5_000, 2)
    share = torch.bincount(action.flatten(), minlength=n) / action.numel()
    assert share.shape == (n,)
    torch.testing.assert_close(share, torch.full((n,), 1 / n), rtol=0, atol=0.015)
    torch.testing.assert_close(log_prob.exp(), torch.full(log_prob.shape, 1 / n))


def test_random_continuous_actions_fill_the_box_and_know_their_density() -> None:
    space = Continuous(2, low=-1.0, high=3.0)
    action, log_prob = space.draw_random(noise(), 5_000, 2)
    assert -1 <= action.min() < -0.99
    assert 2.99 < action.max() <= 3
    assert action.mean().item() == pytest.approx(1.0, abs=0.03)
    oracle = torch.distributions.Uniform(torch.tensor(-1.0), torch.tensor(3.0))
    torch.testing.assert_close(log_prob, oracle.log_prob(action).sum(-1))
    assert log_prob[0, 0, 0].item() == pytest.approx(-2 * math.log(4))
