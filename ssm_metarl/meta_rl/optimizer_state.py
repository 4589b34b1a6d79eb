"""An optimiser's moments as named tensors: what a checkpoint keeps of it.

Place in the flow: stage 5, used by both trainers. PyTorch numbers an optimiser's parameters; a file
names them, so that it says what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The moments by ``parameter.moment``.

    Args:
        optimizer: Over one group of parameters.
        names: The parameters' names, in its order.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}.{key}": torch.as_tensor(value).clone()
        for index, values in state.items()
        for key, value in values.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(names):
        prefix = f"{name}."
        values = {
            key[len(prefix) :]: value.clone()  # the optimiser would go on in the caller's
            for key, value in tensors.items()
            if key.startswith(prefix) and "." not in key[len(prefix) :]
        }
        if values:
            state[index] = values
    content = optimizer.state_dict()
    content["state"] = state
    optimizer.load_state_dict(content)
