"""How far results in float32 may lie from the exact ones: measured in the test, never a constant.

How large rounding errors are depends on the processor: on how wide its registers are, on which of
its kernels the linear algebra libraries choose, on whether it multiplies and adds in one rounding.
What PyTorch's plain operations in float32 make of a computation, beside the same in float64, shows
what rounding does to it, here and now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ssm_metarl.compiled import plain_operations
from ssm_metarl.types import Rollout

TIMES, NUDGES = 8.0, 3
EPS = torch.finfo(torch.float32).eps


def assert_rounds_alike(received: Any, plains: list[Any], exact: Any, name: str = "value") -> None:
    """Check that a float32 result is about as near the exact one as plain float32 is.

    |received - exact| <= 8 (|plain - exact| + eps |exact|), in Euclidean norms. Both errors are
    sums of rounding errors of the same computation in two orders, so neither is a multiple of the
    other: the norms of two such vectors of a few numbers differ by a factor of 2 or 3, and of one
    may be small by luck, which the second term is for. The largest ratio was 3.7 among 16,780
    pairs: outputs, first and second derivatives of both kernels under five core types of OpenBLAS
    and two of ATen's.

    Args:
        received: Tensors: one, or a mapping or sequence of them.
        plains: The same computation by plain operations in float32, once or several times, each of
            the same structure; the largest error counts.
        exact: The same in float64.
        name: What it is, for the message.
    """
    if isinstance(exact, Mapping):
        assert all(of.keys() == exact.keys() for of in (received, *plains)), name
        for key, value in exact.items():
            assert_rounds_alike(received[key], [plain[key] for plain in plains], value, key)
        return
    if isinstance(exact, (list, tuple)):
        assert all(len(of) == len(exact) for of in (received, *plains)), name
        for i, value in enumerate(exact):
            assert_rounds_alike(received[i], [plain[i] for plain in plains], value, f"{name} {i}")
        return
    assert exact.dtype == torch.float64
    assert all(of.shape == exact.shape for of in (received, *plains)), name
    error, *usual = ((of.detach() - exact.detach()).norm().item() for of in (received, *plains))
    size = exact.norm().item()
    assert error <= TIMES * (max(usual) + EPS * size), (
        f"{name}: off by {error / (size or 1):.1e} of its size, plain float32 by "
        f"{max(usual) / (size or 1):.1e}"
    )


def assert_only_rounded(received: Any, compute: Callable[..., Any], *arguments: Any) -> None:
    """Check that a float32 result is ``compute(*arguments)`` but for rounding.

    The error of plain float32 is taken for the arguments as they are and with their last bits
    changed: no computation in float32 can be expected to tell these apart, and the error of one
    alone may be small by luck, above all where a single number scales the whole result.

    Args:
        received: What another way to compute it gave.
        compute: A function that computes in the precision of its arguments, by plain operations.
        arguments: Policies, rollouts, tensors, and mappings of tensors, in float32; others are
            passed on.
    """
    assert_rounds_alike(received, *plain_and_exact(compute, *arguments))


def assert_identity(sides: Callable[..., tuple[Any, Any]], *arguments: Any) -> None:
    """Check that two ways to compute something agree: in float64 closely, in float32 by rounding.

    Args:
        sides: A function that computes both in the precision of its arguments: two of what
            `assert_rounds_alike` takes.
        arguments: As of `assert_only_rounded`.
    """
    torch.testing.assert_close(*sides(*map(double, arguments)))
    plains, exact = plain_and_exact(lambda *of: sides(*of)[0], *arguments)
    for received in sides(*arguments):
        assert_rounds_alike(received, plains, exact)


def plain_and_exact(compute: Callable[..., Any], *arguments: Any) -> tuple[list[Any], Any]:
    """What plain float32 makes of the arguments, as they are and nudged; and float64 of them."""
    with plain_operations():
        plains = [compute(*arguments)]
        for seed in range(NUDGES):
            rng = torch.Generator().manual_seed(seed)
            plains.append(
                compute(*(mapped(x, lambda t, rng=rng: nudged(t, rng)) for x in arguments))
            )
        return plains, compute(*map(double, arguments))


def nudged(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each number times 1 - eps, 1 or 1 + eps."""
    return x * (1 + EPS * torch.randint(-1, 2, x.shape, generator=rng))


def double(x: Any) -> Any:
    """The same in float64; what has no precision stays."""
    return mapped(x, Tensor.double)


def mapped(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every number that has a precision."""
    if isinstance(x, torch.nn.Module):
        copy = deepcopy(x)
        for tensor in (*copy.parameters(), *copy.buffers()):
            if tensor.is_floating_point():
                tensor.data = function(tensor.data)
        return copy
    if isinstance(x, Rollout):
        return x.map(lambda tensor: mapped(tensor, function))
    if isinstance(x, Mapping):
        return {key: mapped(value, function) for key, value in x.items()}
    return function(x) if isinstance(x, Tensor) and x.is_floating_point() else x
