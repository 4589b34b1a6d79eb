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

TIMES = 8.0
EPS = torch.finfo(torch.float32).eps


def assert_rounds_alike(received: Any, plain: Any, exact: Any, name: str = "value") -> None:
    """Check that a float32 result is about as near the exact one as plain float32 is.

    |received - exact| <= 8 (|plain - exact| + eps |exact|), in Euclidean norms. Both errors are
    sums of rounding errors of the same computation in two orders, so neither is a multiple of the
    other: the norms of two such vectors of a few numbers differ by a factor of 2 or 3, and of one
    may be small by luck, which the second term is for. The largest ratio was 3.7 among 16,780
    pairs: outputs, first and second derivatives of both kernels under five core types of OpenBLAS
    and two of ATen's.

    Args:
        received: Tensors: one, or a mapping or sequence of them.
        plain: The same computation by plain operations in float32, of the same structure.
        exact: The same in float64.
        name: What it is, for the message.
    """
    if isinstance(exact, Mapping):
        assert received.keys() == plain.keys() == exact.keys()
        for key, value in exact.items():
            assert_rounds_alike(received[key], plain[key], value, key)
        return
    if isinstance(exact, (list, tuple)):
        for i, parts in enumerate(zip(received, plain, exact, strict=True)):
            assert_rounds_alike(*parts, f"{name} {i}")
        return
    received, plain, exact = (torch.as_tensor(x).detach() for x in (received, plain, exact))
    assert exact.dtype == torch.float64 and received.shape == plain.shape == exact.shape, name
    size = exact.norm().item()
    error, usual = ((x.double() - exact).norm().item() for x in (received, plain))
    allowed = TIMES * (usual + EPS * size)
    assert error <= allowed, (
        f"{name}: off by {error / (size or 1):.1e} of its size, plain float32 by "
        f"{usual / (size or 1):.1e}"
    )


def assert_only_rounded(received: Any, compute: Callable[..., Any], *arguments: Any) -> None:
    """Check that a float32 result is ``compute(*arguments)`` but for rounding.

    Args:
        received: What another way to compute it gave.
        compute: A function that computes in the precision of its arguments, by plain operations.
        arguments: Policies, rollouts, tensors, and mappings of tensors, in float32; others are
            passed on.
    """
    with plain_operations():
        plain, exact = compute(*arguments), compute(*map(double, arguments))
    assert_rounds_alike(received, plain, exact)


def assert_identity(sides: Callable[..., tuple[Any, Any]], *arguments: Any) -> None:
    """Check that two ways to compute something agree: in float64 closely, in float32 by rounding.

    Args:
        sides: A function that computes both in the precision of its arguments: two of what
            `assert_rounds_alike` takes.
        arguments: As of `assert_only_rounded`.
    """
    exact, also = sides(*map(double, arguments))
    torch.testing.assert_close(also, exact)
    with plain_operations():
        plain = sides(*arguments)[0]
    for received in sides(*arguments):
        assert_rounds_alike(received, plain, exact)


def double(x: Any) -> Any:
    """The same in float64; what has no precision stays."""
    if isinstance(x, torch.nn.Module):
        return deepcopy(x).double()
    if isinstance(x, Rollout):
        return x.map(double)
    if isinstance(x, Mapping):
        return {key: double(value) for key, value in x.items()}
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
