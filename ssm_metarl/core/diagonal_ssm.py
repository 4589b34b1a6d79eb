"""DiagonalSSM: a stack of linear, diagonal state space layers with pre-norm, gate and residual.

Place in the flow: stage 3, the default sequence model; `policy` reads actions from its output.

Each layer, in the notation of S4D (Gu et al. 2022, arXiv 2206.11893) with real modes (S4D-Real,
section 4) and the input normalisation of the LRU (Orvieto et al. 2023, arXiv 2303.06349, eq. 7)::

    u_t = LayerNorm(x_t)
    h_t = a * h_{t-1} + sqrt(1 - a^2) * (B u_t),    a = exp(-exp(log_rate))
    y_t = gelu(C h_t + D * u_t)
    x_t <- x_t + y_t * sigmoid(G y_t)

LayerNorm has no weights. A model whose width was grown takes mean and variance over its first
``norm_dim`` channels and normalises all with them, so that the old channels stay what they were.

The recurrence is linear, so a whole trajectory is one `scan`, twice differentiable at little
cost: what second-order meta-learning through hundreds of steps asks for. Inside, tensors are
task-first, (K, T, N, D), so that per-task weights are one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssm_metarl.core.diagonal_tangent import DiagonalKernel
from ssm_metarl.core.fused import FusedModel
from ssm_metarl.core.scan import reset_decay, scan
from ssm_metarl.core.task_linear import task_linear, task_vector
from ssm_metarl.types import Params


class DiagonalLayer(nn.Module):
    """Holder of one layer's parameters; the computation is `DiagonalSSM.unroll`."""

    def __init__(self, model_dim: int, state_dim: int, slowest: float) -> None:
        super().__init__()
        # Time constants from 1 to `slowest` steps, spread evenly on a log scale.
        self.log_rate = nn.Parameter(-torch.linspace(0, math.log(slowest), state_dim))
        self.B = nn.Linear(model_dim, state_dim)
        self.C = nn.Linear(state_dim, model_dim)
        self.D = nn.Parameter(torch.ones(model_dim))
        self.gate = nn.Linear(model_dim, model_dim)


class DiagonalSSM(FusedModel):
    """A recurrent sequence model, as a pure function `unroll` of its parameters.

    Args:
        input_dim: Size of the input.
        model_dim: D, the width of the residual stream and of the output.
        state_dim: P per layer.
        num_layers: Number of layers.
        slowest: Longest initial time constant, in steps.
        norm_dim: Leading channels that the normalisation takes mean and variance over, 1 to D; None
            for all.
    """

    def __init__(
        self,
        input_dim: int,
        model_dim: int = 32,
        state_dim: int = 32,
        num_layers: int = 2,
        slowest: float = 100.0,
        norm_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.norm_dim = model_dim if norm_dim is None else norm_dim
        if not 1 <= self.norm_dim <= model_dim:
            raise ValueError(f"norm_dim: expected None or 1 to {model_dim}, received {norm_dim}")
        self.input_dim, self.output_dim = input_dim, model_dim
        self.state_dim, self.num_layers = state_dim, num_layers
        self.hidden_size = num_layers * state_dim
        self.encoder = nn.Linear(input_dim, model_dim)
        self.layers = nn.ModuleList(
            DiagonalLayer(model_dim, state_dim, slowest) for _ in range(num_layers)
        )

    def kernel(self, readouts: Sequence[tuple[int, int]] = ()) -> DiagonalKernel:
        """The compiled form of the model and of linear readouts of its output."""
        model_dim, num_layers = self.output_dim, self.num_layers
        return DiagonalKernel(model_dim, self.state_dim, num_layers, self.norm_dim, readouts)

    def unroll_plainly(
        self, params: Params, x: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`unroll` by PyTorch's own operations, on any device and in any precision."""
        reset = reset.transpose(0, 1)  # (K, T, N)
        # An actor's single step and a rollout of single episodes reset at most at their start:
        # then the decay needs no time axis.
        first, later = reset[:, 0], reset[:, 1:]
        hidden = hidden * ~first[..., None]
        resets_inside = later.numel() > 0 and bool(later.any())

        stream = task_linear(x.transpose(0, 1), params["encoder.weight"], params["encoder.bias"])
        last_states = []
        for layer, state in enumerate(hidden.split(self.state_dim, dim=-1)):
            weights = {
                name: params[f"layers.{layer}.{name}"]
                for name in (
                    "log_rate", "B.weight", "B.bias", "C.weight", "C.bias", "D",
                    "gate.weight", "gate.bias",
                )
            }  # fmt: skip
            u = normalise(stream, self.norm_dim)
            decay = torch.exp(-torch.exp(weights["log_rate"]))  # (P,) or (K, P)
            # 1 - a^2, computed so that a slow mode loses no digits
            scale = torch.sqrt(-torch.expm1(-2 * torch.exp(weights["log_rate"])))
            drive = task_linear(u, weights["B.weight"], weights["B.bias"])
            drive = drive * task_vector(scale, drive)  # (K, T, N, P)
            a = reset_decay(decay, reset) if resets_inside else task_vector(decay, drive)
            states = scan(a, drive, state)
            y = task_linear(states, weights["C.weight"], weights["C.bias"])
            y = F.gelu(y + u * task_vector(weights["D"], u))
            stream = stream + y * torch.sigmoid(
                task_linear(y, weights["gate.weight"], weights["gate.bias"])
            )
            last_states.append(states[:, -1])
        return stream.transpose(0, 1), torch.cat(last_states, dim=-1)


def normalise(x: Tensor, norm_dim: int) -> Tensor:
    """Layer normalisation of (..., D) without weights, by the first ``norm_dim`` channels."""
    if norm_dim == x.shape[-1]:
        return F.layer_norm(x, (norm_dim,))
    variance, mean = torch.var_mean(x[..., :norm_dim], dim=-1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)  # as in torch's
