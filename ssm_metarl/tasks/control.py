"""Textbook control for many plants at once: linear models, and the linear-quadratic regulator.

Place in the flow: stage 1, what the experts of the families are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssm_metarl.compiled import plain_operations
from ssm_metarl.tasks.dynamics import Dynamics, Parameters

DOUBLINGS = 20  # 2**20 Riccati steps: 6 hours of control, far past convergence


def linearised(
    dynamics: Dynamics, values: Parameters, state: Sequence[float], action: float | Sequence[float]
) -> tuple[Tensor, Tensor]:
    """A step of K plants as ``s' = A s + B u`` around a state and an action, the same for all.

    Args:
        dynamics: The plants' equations; their plain step is differentiated.
        values: Their parameters, shape (K,) each.
        state: Shape (S,).
        action: Shape (A,), or a number between the choices of a discrete space.

    Returns:
        A, shape (K, S, S), and B, shape (K, S, A or 1), float64.
    """
    rows = len(next(iter(values.values())))
    with torch.inference_mode(False), torch.enable_grad(), plain_operations():
        around = [torch.tensor(x, dtype=torch.float64) for x in (state, action)]
        s, u = (x.expand(rows, 1, *x.shape).clone().requires_grad_() for x in around)
        after, _, _ = dynamics.step(s, u, {n: v.clone()[:, None] for n, v in values.items()})
        slopes = [
            torch.autograd.grad(
                after[..., i].sum(), (s, u), retain_graph=True, materialize_grads=True
            )
            for i in range(after.shape[-1])
        ]
    a, b = (torch.stack([x.view(rows, -1) for x in xs], dim=1) for xs in zip(*slopes, strict=True))
    return a, b


def solve_riccati(a: Tensor, b: Tensor, state_cost: Tensor, push_cost: float) -> Tensor:
    """The stabilising solution P of ``P = Q + A^T P (I + G P)^-1 A``, ``G = B B^T / r``.

    Structure-preserving doubling (Chu, Fan, Lin & Wang 2004): its n-th iterate is the 2^n-th of
    the plain recursion, which on weak actuators needs thousands. Arguments as for `lqr`; (K, n, n).
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
