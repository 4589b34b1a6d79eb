"""The check at every entrance to compiled code, which would read and write past a short array.

Place in the flow: before everything. Compiled functions know no bounds, so whoever hands tensors
to one of them, or through `ssm_metarl.core.fused` to a kernel, passes them through here, once.

What can be converted without a loss of meaning is (other widths of numbers, other strides); the
rest is a `ValueError` that names what was expected and what was received.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch
from torch import Tensor

NUMPY_TYPES = {torch.float32: np.dtype(np.float32), torch.bool: np.dtype(np.bool_)}


def fitted(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, axes: str
) -> Tensor:
    """A tensor as compiled code takes it: on the processor, contiguous, without its graph.

    Args:
        name: What to call it in an error.
        tensor: Returned itself where it fits; see `shaped` for what is converted.
        shape: Expected.
        dtype: Expected.
        axes: Names of the axes, such as "K, N".

    Raises:
        ValueError: It does not fit.
    """
    if (  # a policy's step takes ten microseconds: what fits must pass in a fraction of one
        type(tensor) is Tensor
        and tensor.shape == shape
        and tensor.dtype is dtype
        and tensor.is_contiguous()
        and tensor.is_cpu
        and not tensor.requires_grad
    ):
        return tensor
    tensor = shaped(name, tensor, shape, dtype, axes)
    if not tensor.is_cpu:
        raise ValueError(f"{name}: expected a tensor on cpu, received one on {tensor.device}")
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def array(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, axes: str
) -> np.ndarray:
    """As `fitted`, for NumPy, whose array tells sooner than a tensor what it is."""
    try:
        found: np.ndarray | None = tensor.numpy()
    except (AttributeError, RuntimeError, TypeError):  # no tensor, one elsewhere or with a graph
        found = None
    if (
        found is not None
        and found.shape == shape
        and found.dtype is NUMPY_TYPES[dtype]
        and found.flags.c_contiguous
    ):
        return found
    return fitted(name, tensor, shape, dtype, axes).numpy()


def shaped(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, axes: str
) -> Tensor:
    """A tensor of an expected shape and type, on any device and with its graph.

    Real numbers become floating-point ones of any width; whole numbers become whole or truth
    values. Fractions become neither.

    Raises:
        ValueError: It does not fit.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor, received {type(tensor).__name__}")
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: expected shape ({axes}) = {tuple(shape)}, received {tuple(tensor.shape)}"
        )
    if tensor.dtype is dtype:
        return tensor
    fractions = tensor.dtype.is_floating_point and not dtype.is_floating_point
    if fractions or tensor.dtype.is_complex:
        raise ValueError(f"{name}: expected {_word(dtype)}, received {_word(tensor.dtype)}")
    return tensor.to(dtype)


def parameters(flat: Tensor, size: int, num_tasks: int) -> Tensor:
    """Parameters one after another: shared (P,), or of each task (K, P).

    Raises:
        ValueError: They are neither.
    """
    shape = tuple(flat.shape) if isinstance(flat, Tensor) else type(flat).__name__
    if shape not in ((size,), (num_tasks, size)):
        raise ValueError(
            f"params: expected shape (P,) = ({size},) or (K, P) = ({num_tasks}, {size}), "
            f"received {shape}"
        )
    if not flat.dtype.is_floating_point:
        raise ValueError(f"params: expected floating-point numbers, received {_word(flat.dtype)}")
    return flat


def sequence(
    flat: Tensor, size: int, x: Tensor, hidden: Tensor, reset: Tensor, sizes: tuple[int, int],
    name: str = "x",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What a recurrent model runs over, in the type of its parameters: x, hidden and reset.

    Args:
        flat: Parameters, as in `parameters`.
        size: P.
        x: Inputs, shape (T, K, N, I), with at least one step.
        hidden: State before the first step, shape (K, N, H).
        reset: True where the state is cleared, shape (T, K, N).
        sizes: I and H.
        name: What to call the inputs in an error.

    Raises:
        ValueError: One of them does not fit.
    """
    inputs, states = sizes
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[3] != inputs or 0 in x.shape:
        received = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{name}: expected shape (T, K, N, {inputs}), each at least 1, received {received}"
        )
    steps, tasks, envs, _ = x.shape
    parameters(flat, size, tasks)
    dtype = flat.dtype
    if x.dtype is not dtype:
        x = shaped(name, x, x.shape, dtype, "T, K, N, I")
    shape = (tasks, envs, states)
    if not isinstance(hidden, Tensor) or hidden.shape != shape or hidden.dtype is not dtype:
        hidden = shaped("hidden", hidden, shape, dtype, "K, N, H")
    shape = (steps, tasks, envs)
    if not isinstance(reset, Tensor) or reset.shape != shape or reset.dtype is not torch.bool:
        reset = shaped("reset", reset, shape, torch.bool, "T, K, N")
    return x, hidden, reset


def counts(**named: int) -> None:
    """Raise ValueError unless each named number is a whole one of at least 1."""
    for name, value in named.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, received {value!r}")


def _word(dtype: torch.dtype) -> str:
    word = str(dtype).removeprefix("torch.")
    return {"int64": "whole numbers (int64)", "bool": "truth values (bool)"}.get(word, word)
