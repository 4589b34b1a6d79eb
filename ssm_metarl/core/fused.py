"""A compiled kernel as an operation that PyTorch differentiates twice.

Place in the flow: stage 3, between the cores' `unroll` and their kernels (`diagonal_kernel`,
`ssm_kernel`). A kernel is three functions over a block of tasks::

    forward    parameters -> output, and activations that the other two read
    gradient   cotangent of the output -> cotangent of the parameters
    tangent    a direction in parameter space -> derivatives of both along it

With J the Jacobian of the output in the parameters, backward is g -> J' g; for a cotangent v of
*that*, its own backward is v -> (J v, d/dparams (v . J' g)): what `tangent` gives. That is all a
second-order meta-gradient asks for; a third derivative is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssm_metarl.compiled import kernels_apply, share, threads_worth
from ssm_metarl.entrance import sequence
from ssm_metarl.types import Kernel, Params, flatten

MOST_FREE, SMALLEST_FREE = 8, 2**16
"""At most so many pieces of memory, each of at least so many numbers, wait to be used again."""


def can_fuse(flat: Tensor, x: Tensor, hidden: Tensor) -> bool:
    """Whether the kernels apply: float32 on a processor, and only parameters to differentiate."""
    kind = torch.float32
    fits = flat.is_cpu and flat.dtype is kind and x.is_cpu and x.dtype is kind
    fits = fits and hidden.is_cpu and hidden.dtype is kind
    watched = (x.requires_grad or hidden.requires_grad) and torch.is_grad_enabled()
    return fits and not watched and kernels_apply()


def fused_unroll(
    kernel: Kernel, flat: Tensor, x: Tensor, hidden: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a core over time; shapes are for the caller to check (`ssm_metarl.entrance.sequence`).

    Args:
        kernel: The core's.
        flat: Its parameters one after another, shared (P,) or per task (K, P).
        x: Inputs, task-first (K, T, N, I).
        hidden: State before the first step, (K, N, H).
        reset: True where an episode starts, (K, T, N).

    Returns:
        Output (K, T, N, M) and the state after the last step (K, N, H).
    """
    if flat.dim() == 2:
        out, last = _Forward.apply(flat, kernel, x, hidden, reset)  # type: ignore[no-untyped-call]
        return out, last
    # Under shared parameters environments are as independent as tasks: one task's may be taken for
    # several tasks, for as many threads. Their gradients are then added up in another order: here,
    # and only here, the last bit depends on the number of threads.
    tasks, _, envs = x.shape[:3]
    groups = math.gcd(envs, threads_worth(reset.numel())) if tasks == 1 else 1

    def split(y: Tensor) -> Tensor:
        return y if groups == 1 else torch.cat(y.chunk(groups, dim=-2 if y.dim() > 3 else -1))

    flat = flat.expand(tasks * groups, -1)
    out, last = _Forward.apply(  # type: ignore[no-untyped-call]
        flat,
        kernel,
        split(x),
        hidden.view(groups, -1, hidden.shape[-1]) if groups > 1 else hidden,
        split(reset),
    )
    if groups > 1:
        out, last = torch.cat(out.chunk(groups), dim=2), last.view(1, envs, -1)
    return out, last


class FusedModel(nn.Module):
    """A sequence model that runs compiled where that applies, else by its `unroll_plainly`."""

    input_dim: int
    hidden_size: int

    def kernel(self, readouts: Sequence[tuple[int, int]] = ()) -> Kernel:
        """See `SequenceModel.kernel`."""
        raise NotImplementedError

    @cached_property
    def _compiled(self) -> tuple[dict[str, torch.Size], int, Kernel]:
        """Shapes of the parameters, their numbers in all, and the kernel."""
        shapes = {name: p.shape for name, p in self.named_parameters()}
        return shapes, sum(shape.numel() for shape in shapes.values()), self.kernel()

    def unroll(
        self, params: Params, x: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run over time, as a pure function; shapes as in `SequenceModel.unroll`."""
        shapes, size, kernel = self._compiled
        flat = flatten(params, shapes)
        sizes = (self.input_dim, self.hidden_size)
        x, hidden, reset = sequence(flat, size, x, hidden, reset, sizes)
        if not can_fuse(flat, x, hidden):
            return self.unroll_plainly(params, x, hidden, reset)
        rows = x.transpose(0, 1), hidden, reset.transpose(0, 1)
        out, last = fused_unroll(kernel, flat, *rows)
        return out.transpose(0, 1), last

    def unroll_plainly(
        self, params: Params, x: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same by PyTorch's own operations."""
        raise NotImplementedError


class KernelRun:
    """A kernel and what it reads: everything but the cotangents.

    Args:
        kernel: The core's.
        flat: Parameters (K, P), expanded where they are shared.
        x: Inputs (K, R, I), R = T N rows in the order of time.
        hidden: State before the first step (K, N, H).
        reset: True where an episode starts (K, R).
    """

    def __init__(
        self, kernel: Kernel, flat: Tensor, x: np.ndarray, hidden: np.ndarray, reset: np.ndarray
    ) -> None:
        flat = flat.detach()
        rows = (flat[:1] if flat.stride(0) == 0 else flat).contiguous().numpy()
        self._prepared = kernel.prepare(rows, x.shape[2])
        self.kernel, self.x, self.hidden, self.reset = kernel, x, hidden, reset
        shapes = kernel.activations(*reset.shape)
        sizes = [math.prod(shape) for shape in shapes]
        self._memory = _memory(sum(sizes))
        ends = list(accumulate(sizes, initial=0))
        self.kept = [
            self._memory[start:end].reshape(shape)
            for shape, (start, end) in zip(shapes, pairwise(ends), strict=True)
        ]

    def __del__(self) -> None:
        if (
            hasattr(self, "_memory")
            and len(_FREE) < MOST_FREE
            and self._memory.size >= SMALLEST_FREE
        ):
            _FREE.append(self._memory)

    def forward(self, out: np.ndarray, last: np.ndarray) -> None:
        """Fill the output (K, R, D) and the state after the last step (K, N, H)."""
        self._share(self.kernel.forward, *self._prepared, *self._data, out, last, *self.kept)

    def gradient(self, g_out: np.ndarray, g_last: np.ndarray, g_flat: np.ndarray) -> None:
        """Fill g_flat (K, P), from cotangents of both; g_last becomes that of the first state."""
        self._share(
            self.kernel.gradient, *self._prepared, *self._data, *self.kept,
            g_out, g_last, g_flat,
        )  # fmt: skip

    def tangent(
        self,
        direction: np.ndarray,
        g_out: np.ndarray,
        g_last: np.ndarray,
        out: np.ndarray,
        last: np.ndarray,
        g_flat: np.ndarray,
    ) -> None:
        """Fill the derivatives of `forward` (out, last) and of `gradient` (g_flat)."""
        self._share(
            self.kernel.tangent, *self._prepared, direction, *self._data,
            *self.kept,
            g_out, g_last, out, last, g_flat,
        )  # fmt: skip

    @property
    def _data(self) -> tuple[np.ndarray, ...]:
        return self.x, self.hidden, self.reset

    def _share(self, function: Callable[..., None], *args: np.ndarray) -> None:
        share(function, *args, tasks=self.reset.shape[0], rows=self.reset.size)


def _memory(size: int) -> np.ndarray:
    """Memory for activations, used before where possible.

    New memory costs more than the arithmetic on it: the system hands it out page by page, at the
    first touch of each.
    """
    for index, memory in enumerate(_FREE):
        if size <= memory.size < 4 * size:
            return _FREE.pop(index)
    return np.empty(size, np.float32)


_FREE: list[np.ndarray] = []


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, kernel: Kernel, x: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = (_array(x.flatten(1, 2)), _array(hidden), _array(reset.flatten(1, 2)))
        ctx.run = KernelRun(kernel, flat, *rows)
        out, last = (
            x.new_empty(*x.shape[:3], kernel.output_dim),
            hidden.new_empty(hidden.shape),
        )
        ctx.run.forward(out.flatten(1, 2).numpy(), last.numpy())
        ctx.save_for_backward(flat)
        return out, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (flat,) = ctx.saved_tensors
        gradient = _Gradient.apply(flat, *grads, ctx.run)  # type: ignore[no-untyped-call]
        return gradient, None, None, None, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, g_out: Tensor, g_last: Tensor, run: KernelRun) -> Tensor:
        g_flat = flat.new_zeros(flat.shape)
        run.gradient(_array(g_out.flatten(1, 2)), _array(g_last).copy(), g_flat.numpy())
        ctx.run = run
        ctx.save_for_backward(flat, g_out, g_last)
        return g_flat

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        flat, g_out, g_last = ctx.saved_tensors
        out, last, g_flat = (g_out.new_empty(g_out.shape), g_last.new_empty(g_last.shape),
                             flat.new_zeros(flat.shape))  # fmt: skip
        ctx.run.tangent(
            _array(direction), _array(g_out.flatten(1, 2)), _array(g_last).copy(),
            out.flatten(1, 2).numpy(), last.numpy(), g_flat.numpy(),
        )  # fmt: skip
        return g_flat, out, last, None


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array
