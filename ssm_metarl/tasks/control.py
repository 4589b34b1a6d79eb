"""Textbook control for many plants at once: the linear-quadratic regulator.

Place in the flow: stage 1, what the experts of the families are made of.
"""

from __future__ import annotations

import torch
from torch import Tensor

DOUBLINGS = 20  # 2**20 Riccati steps: 6 hours of control, far past convergence


def solve_riccati(a: Tensor, b: Tensor, state_cost: Tensor, push_cost: float) -> Tensor:
    """The stabilising solution P of ``P = Q + A^T P (I + G P)^-1 A``, ``G = B B^T / r``.

    Structure-preserving doubling (Chu, Fan, Lin & Wang 2004): its n-th iterate is the 2^n-th of
    the plain recursion, which on weak actuators needs thousands.

    Args:
        a: Shape (K, n, n).
        b: Shape (K, n, 1).
        state_cost: Q, shape (n, n).
        push_cost: r > 0.

    Returns:
        Cost-to-go matrices P, shape (K, n, n).
    """
    g, h = b @ b.mT / push_cost, state_cost.expand_as(a)
    identity = torch.eye(a.shape[-1], dtype=a.dtype)
    for _ in range(DOUBLINGS):
        inverse = torch.linalg.inv(identity + g @ h)
        # The right-hand side is evaluated with the old a, g and h.
        a, g, h = a @ inverse @ a, g + a @ inverse @ g @ a.mT, h + a.mT @ h @ inverse @ a
    return h


def lqr(a: Tensor, b: Tensor, state_cost: Tensor, push_cost: float) -> Tensor:
    """The regulator's gain K for ``s' = a s + b u``: ``u = -K s`` minimises the summed cost.

    Args:
        a: Shape (K, n, n).
        b: Shape (K, n, 1).
        state_cost: Q, shape (n, n).
        push_cost: r > 0.

    Returns:
        Shape (K, n).
    """
    p = solve_riccati(a, b, state_cost, push_cost)
    return (b.mT @ p @ a / (push_cost + b.mT @ p @ b))[:, 0]
