"""The linear recurrence of `core.scan`, three more ways: what the product's own is compared to.

Place in the flow: peers of `sequence`; the first is the oracle of the tests as well.

    scan_reference    a Python loop under plain autograd
    scan_sequential   one loop; its backward pass is the same recurrence run backwards, hence
                      differentiable as often as one likes
    scan_associative  PyTorch's own associative scan

Arguments as in `core.scan`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ssm_metarl.core.scan import TIME


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


def scan_associative(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """The recurrence by PyTorch's own associative scan, combine_mode="generic"."""
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], left[1] * right[0] + right[1]

    decay, states = associative_scan(
        combine, (a.expand_as(b), b), b.dim() + TIME, combine_mode="generic"
    )
    out: Tensor = states + decay * hidden.unsqueeze(TIME)
    return out
