"""The linear recurrence h_t = a_t * h_{t-1} + b_t, three ways that agree.

Place in the flow: stage 3, the inner loop of `diagonal_ssm`.

    scan_reference   a Python loop under plain autograd: the oracle of the tests
    scan_sequential  one fused loop; its backward pass is the same recurrence run backwards
                     (Martin & Cundy 2018, arXiv 1709.04057, section 2), hence differentiable
                     as often as one likes
    scan_parallel    doubling within chunks (Hillis & Steele 1986), chunks in sequence: log-depth,
                     ordinary operations only, cost linear in T

An episode that starts at step t needs no special case: it has a_t = 0 (`reset_decay`).
All take ``a`` broadcastable to ``b``, ``b`` of shape (..., T, N, P) and ``hidden`` (..., N, P).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

TIME = -3


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


def scan_reference(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """All states h_1 ... h_T, shape of ``b``: the plain loop that the others must equal."""
    a = a.expand_as(b)
    states = []
    for t in range(b.shape[TIME]):
        hidden = a.select(TIME, t) * hidden + b.select(TIME, t)
        states.append(hidden)
    return torch.stack(states, dim=TIME)


def scan_sequential(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """All states, shape of ``b``, by one loop with a hand-derived backward pass."""
    states = _SequentialScan.apply(a.expand_as(b), b, hidden)  # type: ignore[no-untyped-call]
    return cast(Tensor, states)


class _SequentialScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
        states = torch.empty_like(b)
        previous = hidden
        for a_t, b_t, out in zip(a.unbind(TIME), b.unbind(TIME), states.unbind(TIME), strict=True):
            torch.addcmul(b_t, a_t, previous, out=out)
            previous = out
        ctx.save_for_backward(a, hidden, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, hidden, states = ctx.saved_tensors
        # dL/db_t = g_t + a_{t+1} dL/db_{t+1}: the same recurrence in reversed time.
        a_next = torch.cat(
            [torch.zeros_like(a.narrow(TIME, 0, 1)), a[..., 1:, :, :].flip(TIME)], TIME
        )
        zero = torch.zeros_like(hidden)
        grad_b = scan_sequential(a_next, grads[0].flip(TIME), zero).flip(TIME)
        previous = torch.cat([hidden.unsqueeze(TIME), states[..., :-1, :, :]], TIME)
        return grad_b * previous, grad_b, (grad_b * a).select(TIME, 0)


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
