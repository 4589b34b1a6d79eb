"""DiagonalSSM: stepping, resets, per-task parameters and second-order gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssm_metarl.core.diagonal_ssm import DiagonalSSM, normalise

STEPS, TASKS, ENVS, INPUTS = 7, 3, 2, 4


@pytest.fixture
def model() -> DiagonalSSM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiagonalSSM(INPUTS, model_dim=6, state_dim=5, num_layers=2).double()


@pytest.fixture
def data(model: DiagonalSSM) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (T, K, N, I), hidden (K, N, P) and reset flags (T, K, N)."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, TASKS, ENVS, INPUTS, generator=g, dtype=torch.float64)
    hidden = torch.randn(TASKS, ENVS, model.hidden_size, generator=g, dtype=torch.float64)
    return x, hidden, torch.rand(STEPS, TASKS, ENVS, generator=g) < 0.3


def shared(model: DiagonalSSM) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def per_task(model: DiagonalSSM) -> dict[str, Tensor]:
    return {name: p.repeat(TASKS, *(1,) * p.dim()) for name, p in shared(model).items()}


def test_shapes_and_sizes(model: DiagonalSSM, data: tuple[Tensor, Tensor, Tensor]) -> None:
    out, hidden = model.unroll(shared(model), *data)
    assert out.shape == (STEPS, TASKS, ENVS, model.output_dim)
    assert hidden.shape == (TASKS, ENVS, model.hidden_size) == (TASKS, ENVS, 2 * 5)


def test_steps_one_at_a_time_equal_the_sequence(
    model: DiagonalSSM, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, hidden, reset = data
    params = shared(model)
    whole, last = model.unroll(params, x, hidden, reset)
    for t in range(STEPS):
        out, hidden = model.unroll(params, x[t : t + 1], hidden, reset[t : t + 1])
        torch.testing.assert_close(out[0], whole[t])
    torch.testing.assert_close(hidden, last)


def test_a_reset_in_the_middle_makes_two_sequences(
    model: DiagonalSSM, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, hidden, _ = data
    params, cut = shared(model), 4
    reset = torch.zeros(STEPS, TASKS, ENVS, dtype=torch.bool)
    carried, _ = model.unroll(params, x, hidden, reset)
    none = reset[:cut]
    reset = reset.clone()
    reset[cut] = True
    whole, last = model.unroll(params, x, hidden, reset)
    first, _ = model.unroll(params, x[:cut], hidden, none)
    second, second_last = model.unroll(
        params, x[cut:], torch.zeros_like(hidden), none[: STEPS - cut]
    )
    torch.testing.assert_close(whole, torch.cat([first, second]))
    torch.testing.assert_close(last, second_last)
    assert not torch.allclose(whole[cut:], carried[cut:]), "the reset must matter"


def test_a_reset_at_the_first_step_forgets_the_given_state(
    model: DiagonalSSM, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, hidden, _ = data
    reset = torch.zeros(STEPS, TASKS, ENVS, dtype=torch.bool)
    from_zero, _ = model.unroll(shared(model), x, torch.zeros_like(hidden), reset)
    reset[0] = True
    forgot, _ = model.unroll(shared(model), x, hidden, reset)
    torch.testing.assert_close(forgot, from_zero)


def test_equal_per_task_parameters_equal_shared_ones(
    model: DiagonalSSM, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    expected = model.unroll(shared(model), *data)
    received = model.unroll(per_task(model), *data)
    torch.testing.assert_close(received, expected)


def test_tasks_do_not_leak_into_each_other(
    model: DiagonalSSM, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, hidden, reset = data
    params = per_task(model)
    before, before_last = model.unroll(params, x, hidden, reset)
    x, hidden, reset = x.clone(), hidden.clone(), reset.clone()
    params = {name: p.clone() for name, p in params.items()}
    x[:, 1], hidden[1], reset[:, 1] = 7.0, -3.0, ~reset[:, 1]
    for p in params.values():
        p[1] += 0.5
    after, after_last = model.unroll(params, x, hidden, reset)
    for k in (0, 2):
        assert torch.equal(after[:, k], before[:, k])
        assert torch.equal(after_last[k], before_last[k])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_gradient_of_a_task_stays_in_its_slice(
    model: DiagonalSSM, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    params = {name: p.requires_grad_() for name, p in per_task(model).items()}
    out, _ = model.unroll(params, *data)
    grads = torch.autograd.grad(out[:, 1].square().sum(), list(params.values()))
    for grad in grads:
        assert torch.count_nonzero(grad[[0, 2]]) == 0
        assert torch.count_nonzero(grad[1]) > 0


def test_meta_gradient_matches_finite_differences(
    model: DiagonalSSM, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    """d/d theta of L2(theta - lr * dL1/d theta), along a random direction."""
    x, hidden, reset = data
    names = list(shared(model))
    theta = list(shared(model).values())
    g = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in theta]

    def meta_loss(theta: list[Tensor], second_order: bool) -> Tensor:
        def loss(params: list[Tensor], target: float) -> Tensor:
            out, _ = model.unroll(dict(zip(names, params, strict=True)), x, hidden, reset)
            return (out - target).square().mean()

        inner = torch.autograd.grad(loss(theta, 1.0), theta, create_graph=second_order)
        return loss([p - 0.1 * g for p, g in zip(theta, inner, strict=True)], -0.5)

    def slope(second_order: bool) -> float:
        leaves = [p.clone().requires_grad_() for p in theta]
        grads = torch.autograd.grad(meta_loss(leaves, second_order), leaves)
        return sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))

    def value(step: float) -> float:
        moved = [(p + step * d).requires_grad_() for p, d in zip(theta, direction, strict=True)]
        return meta_loss(moved, False).item()

    eps = 1e-5
    numeric = (value(eps) - value(-eps)) / (2 * eps)
    assert slope(True) == pytest.approx(numeric, rel=1e-6)
    assert slope(False) != pytest.approx(numeric, rel=1e-2), "first order must differ"


def test_time_constants_span_one_to_the_slowest(model: DiagonalSSM) -> None:
    decay = torch.exp(-torch.exp(shared(model)["layers.0.log_rate"]))
    time_constants = -1 / torch.log(decay)
    assert time_constants[0].item() == pytest.approx(1.0)
    assert time_constants[-1].item() == pytest.approx(100.0)


def test_all_channels_are_normalised_by_the_mean_and_variance_of_the_first() -> None:
    x = torch.tensor([[1.0, 3.0, 5.0, 10.0], [0.0, 2.0, 4.0, -3.0]], dtype=torch.float64)
    spread = (8 / 3 + 1e-5) ** 0.5
    expected = torch.tensor([[-2.0, 0.0, 2.0, 7.0], [-2.0, 0.0, 2.0, -5.0]]).double() / spread
    torch.testing.assert_close(normalise(x, 3), expected)
    assert torch.equal(normalise(x, 4), torch.nn.functional.layer_norm(x, (4,)))
    torch.testing.assert_close(normalise(x, 3)[:, :3], normalise(x[:, :3], 3))


@pytest.mark.parametrize("norm_dim", [0, 7])
def test_a_norm_over_other_channels_than_there_are_is_refused(norm_dim: int) -> None:
    with pytest.raises(ValueError, match=f"^norm_dim: .* 1 to 6, received {norm_dim}$"):
        DiagonalSSM(INPUTS, model_dim=6, norm_dim=norm_dim)
