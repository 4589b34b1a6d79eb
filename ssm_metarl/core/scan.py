"""The linear recurrence h_t = a_t * h_{t-1} + b_t, two ways that agree.

Place in the flow: stage 3, the inner loop of `diagonal_ssm`.

    scan             the faster of the others that the device and the derivative allow
    scan_compiled    one compiled loop on a processor; first derivative in another such loop, the
                     others as the same recurrence run backwards (Martin & Cundy 2018,
                     arXiv 1709.04057, section 2)
    scan_parallel    doubling within chunks (Hillis & Steele 1986), chunks in sequence: log-depth,
                     ordinary operations only, cost linear in T

The plain loop that both must equal is `benchmarks.scans.scan_reference`.

An episode that starts at step t needs no special case: it has a_t = 0 (`reset_decay`).
All take ``a`` broadcastable to ``b``, ``b`` of shape (..., T, N, P) and ``hidden`` (..., N, P).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ssm_metarl.compiled import compiled, kernels_apply, share
from ssm_metarl.entrance import shaped

TIME = -3
PRECISIONS = (torch.float32, torch.float64)
"""What the compiled loop knows."""


def reset_decay(decay: Tensor, reset: Tensor) -> Tensor:
    """a_t: the decay, and 0 where an episode starts, so that no state crosses over.

    Args:
        decay: Per-mode decay in (0, 1), shape (P,) or (K, P).
        reset: Shape (K, T, N), bool.

    Returns:
        Shape (K, T, N, P), or broadcastable to it.
    """
    decay = decay if decay.dim() == 1 else decay[:, None, None, :]
    return decay * ~reset[..., None]


def scan(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """All states h_1 ... h_T, shape of ``b``: compiled on a processor, else by doubling."""
    if b.device.type == "cpu" and b.dtype in PRECISIONS and kernels_apply():
        return scan_compiled(a, b, hidden)
    return scan_parallel(a, b, hidden)


def scan_compiled(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """All states, shape of ``b``, by one compiled loop.

    A decay that is the same at all steps stays one row: it is neither expanded nor read T times.

    Raises:
        ValueError: A shape does not fit.
    """
    if b.dim() < 3 or 0 in b.shape or b.dtype not in PRECISIONS:
        raise ValueError(
            f"b: expected shape (..., T, N, P), float32 or float64, received {tuple(b.shape)}, "
            f"{b.dtype}"
        )
    hidden = shaped("hidden", hidden, (*b.shape[:TIME], *b.shape[-2:]), b.dtype, "..., N, P")
    pairs = zip(reversed(a.shape), reversed(b.shape), strict=False)
    if a.dim() > b.dim() or any(i not in (1, j) for i, j in pairs):
        raise ValueError(
            f"a: expected a shape that broadcasts to {tuple(b.shape)}, received {tuple(a.shape)}"
        )
    a = shaped("a", a, a.shape, b.dtype, "")
    constant = a.dim() < -TIME or a.shape[TIME] == 1
    if constant and a.dim() >= -TIME:
        a = a.squeeze(TIME)
    a = a.expand_as(hidden).unsqueeze(TIME) if constant else a.expand_as(b)
    states = _CompiledScan.apply(a, b, hidden)  # type: ignore[no-untyped-call]
    return cast(Tensor, states)


class _CompiledScan(torch.autograd.Function):
    """Takes a decay of shape (..., T, N, P), or (..., 1, N, P) where it stays the same."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
        states = torch.empty(b.shape, dtype=b.dtype)
        _run(_scan, a, b, hidden.unsqueeze(TIME), states)
        ctx.save_for_backward(a, hidden, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, hidden, states = ctx.saved_tensors
        if torch.is_grad_enabled():  # this derivative will be differentiated
            return _adjoint(a, hidden, states, grads[0])
        g_a, g_b, g_hidden = (
            torch.empty(x.shape, dtype=x.dtype) for x in (a, states, hidden.unsqueeze(TIME))
        )
        _run(_scan_adjoint, a, states, hidden.unsqueeze(TIME), grads[0], g_a, g_b, g_hidden)
        return g_a, g_b, g_hidden.squeeze(TIME)


def _adjoint(
    a: Tensor, hidden: Tensor, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in a, b and hidden, as a scan: dL/db_t = g_t + a_{t+1} dL/db_{t+1}."""
    constant = a.shape[TIME] == 1 < states.shape[TIME]
    # In reversed time; what multiplies the zero before its first step does not matter.
    a_next = a if constant else a.roll(-1, TIME).flip(TIME)
    grad_b = scan_compiled(a_next, grad.flip(TIME), torch.zeros_like(hidden)).flip(TIME)
    grad_a = grad_b * torch.cat([hidden.unsqueeze(TIME), states[..., :-1, :, :]], TIME)
    grad_hidden = grad_b.select(TIME, 0) * a.select(TIME, 0)
    return grad_a.sum(TIME, keepdim=True) if constant else grad_a, grad_b, grad_hidden


ROW = 64
"""Numbers of a scan that take about as long as a row of a kernel."""


def _run(function: Callable[..., None], a: Tensor, b: Tensor, *others: Tensor) -> None:
    """Call a compiled function on (B, T, C), with the axes before and after time as one each."""
    batch, size = math.prod(b.shape[:TIME]), b.shape[-2] * b.shape[-1]
    rows = [
        x.detach().contiguous().view(batch, x.shape[TIME], size).numpy() for x in (a, b, *others)
    ]
    share(function, *rows, tasks=batch, rows=b.numel() // ROW)


@compiled
def _scan(a, b, hidden, states, first, last):  # type: ignore[no-untyped-def]
    for k in range(first, last):
        for t in range(b.shape[1]):
            decay = a[k, t if a.shape[1] > 1 else 0]
            before = states[k, t - 1] if t > 0 else hidden[k, 0]
            for i in range(b.shape[2]):
                states[k, t, i] = decay[i] * before[i] + b[k, t, i]


@compiled
def _scan_adjoint(  # type: ignore[no-untyped-def]
    a, states, hidden, grad, g_a, g_b, g_hidden, first, last
):
    for k in range(first, last):
        carry = g_hidden[k, 0]
        carry[:] = 0
        g_a[k] = 0
        for t in range(states.shape[1] - 1, -1, -1):
            step = t if a.shape[1] > 1 else 0
            before = states[k, t - 1] if t > 0 else hidden[k, 0]
            for i in range(carry.shape[0]):
                total = grad[k, t, i] + carry[i]
                g_b[k, t, i] = total
                g_a[k, step, i] += total * before[i]
                carry[i] = a[k, step, i] * total


def scan_parallel(a: Tensor, b: Tensor, hidden: Tensor, *, chunk: int = 32) -> Tensor:
    """All states, shape of ``b``, by doubling within chunks of ``chunk`` steps."""
    states = []
    for a_c, b_c in zip(a.expand_as(b).split(chunk, TIME), b.split(chunk, TIME), strict=True):
        states.append(_doubling(a_c, b_c, hidden))
        hidden = states[-1].select(TIME, -1)
    return torch.cat(states, TIME)


def _doubling(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """After the pass with offset d, b_t holds the sum over the last 2d steps, a_t their decay."""
    length, offset = b.shape[TIME], 1
    while offset < length:
        new_b = b[..., offset:, :, :] + a[..., offset:, :, :] * b[..., :-offset, :, :]
        new_a = a[..., offset:, :, :] * a[..., :-offset, :, :]
        b = torch.cat([b[..., :offset, :, :], new_b], TIME)
        a = torch.cat([a[..., :offset, :, :], new_a], TIME)
        offset *= 2
    return b + a * hidden.unsqueeze(TIME)
