"""What the compiled physics of every batched family ask of the tensors that they are given.

Place in the flow: stage 1, at the entrance of `Dynamics.step` and `Dynamics.observe`: compiled code
knows no bounds (see `ssm_metarl.entrance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

PRECISIONS = (torch.float32, torch.float64)


def leading(state: Tensor, size: int) -> tuple[tuple[int, int], torch.dtype]:
    """(K, N) of a state (K, N, size) of floating-point numbers, and their type.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(state, Tensor):
        raise ValueError(f"state: expected a tensor, received {type(state).__name__}")
    shape, kind = state.shape, state.dtype
    if len(shape) != 3 or shape[2] != size or kind not in PRECISIONS:
        raise ValueError(
            f"state: expected shape (K, N, {size}), float32 or float64, received {tuple(shape)}, "
            f"{str(kind).removeprefix('torch.')}"
        )
    return (shape[0], shape[1]), kind


def spread(
    names: Sequence[str], parameters: Mapping[str, Tensor], lead: tuple[int, int], kind: torch.dtype
) -> list[np.ndarray]:
    """Parameters of each environment, (K, N) each, from some that broadcast to it.

    Raises:
        ValueError: One is missing, or does not broadcast.
    """
    arrays = []
    for name in names:
        value = parameters.get(name)
        if not isinstance(value, Tensor) or value.shape != lead or value.dtype is not kind:
            try:
                if not isinstance(value, Tensor) or value.dtype.is_complex:
                    raise RuntimeError
                value = value.to(kind).expand(lead)
            except RuntimeError:
                received = tuple(value.shape) if isinstance(value, Tensor) else value
                raise ValueError(
                    f"{name}: expected real numbers that broadcast to (K, N) = {tuple(lead)}, "
                    f"received {received}"
                ) from None
        arrays.append(value.detach().numpy() if value.requires_grad else value.numpy())
    return arrays
