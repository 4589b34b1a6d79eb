"""A linear layer whose weights may differ from task to task.

Place in the flow: stage 3, used by every core and head. Many tasks at once are one tensor axis:
parameters adapted to K tasks carry a leading K axis, and one batched product serves them all.
Broadcasting ``(T, K, N, I) @ (K, I, O)`` would copy the weights T times; folding time and
environments into rows does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def task_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply ``x W^T + b``.

    Args:
        x: Task-first input, shape (K, ..., I).
        weight: Shared (O, I) or per task (K, O, I), as in ``torch.nn.Linear``.
        bias: Shared (O,) or per task (K, O).

    Returns:
        Shape (K, ..., O).
    """
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    out = torch.baddbmm(bias[:, None, :], rows, weight.transpose(1, 2))
    return out.view(*x.shape[:-1], weight.shape[1])


def task_vector(vector: Tensor, x: Tensor) -> Tensor:
    """A shared (D,) or per-task (K, D) vector, broadcastable over task-first ``x`` (K, ..., D)."""
    if vector.dim() == 1:
        return vector
    return vector.view(vector.shape[0], *(1,) * (x.dim() - 2), vector.shape[1])
