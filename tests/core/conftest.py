"""A fused unroll against the same by PyTorch's operations in both precisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from float32 import assert_rounds_alike
from ssm_metarl.compiled import plain_operations

Params = Mapping[str, Tensor]
Data = tuple[Tensor, Tensor, Tensor]
Unroll = Callable[[Params, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
INPUTS, TASKS = 4, 3


@pytest.fixture
def make_params() -> Callable[..., Params]:
    """Shared parameters, or parameters of its own for each of the tasks."""

    def make(module: torch.nn.Module, shared: bool) -> Params:
        g = torch.Generator().manual_seed(1)
        return {
            name: p.detach()
            + 0.1 * torch.randn(*(() if shared else (TASKS,)), *p.shape, generator=g)
            for name, p in module.named_parameters()
        }

    return make


@pytest.fixture
def make_data() -> Callable[..., Data]:
    """Inputs (T, K, N, I), hidden (K, N, P) and reset flags (T, K, N)."""

    def make(steps: int, envs: int, hidden_size: int) -> Data:
        g = torch.Generator().manual_seed(2)
        x = torch.randn(steps, TASKS, envs, INPUTS, generator=g)
        hidden = torch.randn(TASKS, envs, hidden_size, generator=g)
        return x, hidden, torch.rand(steps, TASKS, envs, generator=g) < 0.2

    return make


@pytest.fixture
def assert_same_derivatives() -> Callable[..., None]:
    """Compare outputs, last states, first and second derivatives of two unrolls.

    ``exactly``: the plain one for float64, where it is another than the one for float32.
    """

    def compare(
        fused: Unroll, plain: Unroll, params: Params, data: Data, exactly: Unroll | None = None
    ) -> None:
        received = derivatives(fused, params, data, torch.float32)
        with plain_operations():
            usual = derivatives(plain, params, data, torch.float32)
            exact = derivatives(exactly or plain, params, data, torch.float64)
        assert_rounds_alike(received, [usual], exact)

    return compare


def derivatives(
    unroll: Unroll, params: Params, data: Data, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Of a loss that bends in the output and in the last state, along a random direction."""
    x, hidden, reset = data
    leaves = {name: p.detach().to(dtype).requires_grad_() for name, p in params.items()}
    out, last = unroll(leaves, x.to(dtype), hidden.to(dtype), reset)
    g = torch.Generator().manual_seed(3)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=g).to(dtype)

    loss = (draw(out) * out.sin()).sum() + (draw(last) * last.sin()).sum()
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    slope = sum((draw(grad) * grad).sum() for grad in first)
    second = torch.autograd.grad(slope, list(leaves.values()))
    found = {"output": out, "last state": last}
    found |= {f"gradient of {name}": v for name, v in zip(leaves, first, strict=True)}
    found |= {f"second derivative of {name}": v for name, v in zip(leaves, second, strict=True)}
    return {name: value.detach() for name, value in found.items()}
