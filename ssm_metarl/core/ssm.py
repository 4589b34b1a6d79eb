"""StateSpaceModel: the documented nonlinear state space model, 6,744 parameters at 32/4/4/64.

Place in the flow: stage 3; `policy` reads actions and predictions from its output.

    h_t = A(h_{t-1}) + B x_t            A: Linear-ReLU-Linear, B: Linear
    y_t = C(h_t) + D x_t                C: Linear-ReLU-Linear, D: Linear

The state is a nonlinear function of the previous one, so every layer runs step by step; in
`DiagonalSSM` only the recurrence itself does. A ``.pth`` file is ``{"state_dict", "config"}`` and
is read with ``weights_only=True``: a file that carries code is refused, not run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ssm_metarl.core.fused import FusedModel
from ssm_metarl.core.pth_file import read_pth
from ssm_metarl.core.ssm_kernel import SSMKernel
from ssm_metarl.core.task_linear import task_linear
from ssm_metarl.settings import in_one_line
from ssm_metarl.types import Params

DIMENSIONS = ("state_dim", "input_dim", "output_dim", "hidden_dim")


class StateSpaceModel(FusedModel):
    """A recurrent model of one step or of a sequence.

    Args:
        state_dim: P, size of the state h.
        input_dim: Size of the input x.
        output_dim: Size of the output y.
        hidden_dim: Width of the hidden layers of A and C.
    """

    def __init__(
        self, state_dim: int = 32, input_dim: int = 4, output_dim: int = 4, hidden_dim: int = 64
    ) -> None:
        super().__init__()
        for name, value in zip(
            DIMENSIONS, (state_dim, input_dim, output_dim, hidden_dim), strict=True
        ):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, received {value}")
        self.state_dim, self.input_dim = state_dim, input_dim
        self.output_dim, self.hidden_dim = output_dim, hidden_dim
        self.hidden_size = state_dim
        self.state_transition = nn.Sequential(
            nn.Linear(state_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, state_dim)
        )
        self.input_projection = nn.Linear(input_dim, state_dim)
        self.output_network = nn.Sequential(
            nn.Linear(state_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, output_dim)
        )
        self.feedthrough = nn.Linear(input_dim, output_dim)

    def kernel(self, readouts: Sequence[tuple[int, int]] = ()) -> SSMKernel:
        """The compiled form of the model, whose output nothing else reads out.

        Raises:
            ValueError: There are readouts.
        """
        if readouts:
            raise ValueError(f"readouts: expected none, received {list(readouts)}")
        return SSMKernel(self.state_dim, self.hidden_dim, self.output_dim)

    def init_hidden(self, batch_size: int = 1) -> Tensor:
        """The state before the first step: zeros, shape (batch_size, state_dim)."""
        weight = self.feedthrough.weight
        return torch.zeros(batch_size, self.state_dim, dtype=weight.dtype, device=weight.device)

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step, or a sequence without a reset.

        Args:
            x: One step (N, input_dim) or a sequence (T, N, input_dim).
            hidden: State before it, shape (N, state_dim).

        Returns:
            Outputs, shape (N, output_dim) or (T, N, output_dim), and the state after the last
            step, shape (N, state_dim).

        Raises:
            ValueError: A shape does not fit.
        """
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_dim:
            raise ValueError(
                f"x: expected shape (N, {self.input_dim}) or (T, N, {self.input_dim}), "
                f"received {tuple(x.shape)}"
            )
        if hidden.shape != (x.shape[-2], self.state_dim):
            raise ValueError(
                f"hidden: expected shape ({x.shape[-2]}, {self.state_dim}), "
                f"received {tuple(hidden.shape)}"
            )
        sequence = x if x.dim() == 3 else x[None]
        reset = torch.zeros(
            sequence.shape[0], 1, sequence.shape[1], dtype=torch.bool, device=x.device
        )
        params = dict(self.named_parameters())
        out, hidden = self.unroll(params, sequence[:, None], hidden[None], reset)
        return (out[:, 0] if x.dim() == 3 else out[0, 0]), hidden[0]

    def unroll_plainly(
        self, params: Params, x: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`unroll` by PyTorch's own operations, on any device and in any precision."""
        x = x.transpose(0, 1)  # (K, T, N, I)
        keep = (~reset).to(x.dtype)[..., None]  # (T, K, N, 1)

        def linear(name: str, value: Tensor) -> Tensor:
            return task_linear(value, params[f"{name}.weight"], params[f"{name}.bias"])

        drive = linear("input_projection", x)
        states = []
        for t in range(x.shape[1]):
            inner = torch.relu(linear("state_transition.0", hidden * keep[t]))
            hidden = linear("state_transition.2", inner) + drive[:, t]
            states.append(hidden)
        inner = torch.relu(linear("output_network.0", torch.stack(states, dim=1)))
        out = linear("output_network.2", inner) + linear("feedthrough", x)
        return out.transpose(0, 1), hidden

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``{"state_dict", "config"}``, atomically."""
        config = {name: getattr(self, name) for name in DIMENSIONS} | {"device": "cpu"}
        state = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        temporary = Path(f"{path}.{os.getpid()}.tmp")  # two processes may save at once
        try:
            torch.save({"state_dict": state, "config": config}, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: str | os.PathLike[str]) -> StateSpaceModel:
        """Load weights in place; returns the model.

        Raises:
            ValueError: Not such a file, a file that carries code, or other dimensions.
        """
        content = read_pth(path)
        expected = {name: getattr(self, name) for name in DIMENSIONS}
        received = {name: content["config"].get(name) for name in DIMENSIONS}
        if expected != received:
            raise ValueError(f"{path}: expected dimensions {expected}, received {received}")
        self._load_checked(content["state_dict"], path)
        return self

    @classmethod
    def from_pth(cls, path: str | os.PathLike[str]) -> StateSpaceModel:
        """A model of the dimensions and weights in the file."""
        content = read_pth(path)
        try:
            sizes = {name: int(content["config"][name]) for name in DIMENSIONS}
            if min(sizes.values()) < 1:
                raise ValueError("a dimension below 1")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{path}: expected a config with {', '.join(DIMENSIONS)}, "
                f"received {in_one_line(content['config'])}"
            ) from error
        # Memory is taken for what is there, not for what a file claims.
        held = sum(v.numel() for v in content["state_dict"].values() if isinstance(v, Tensor))
        inner = sizes["hidden_dim"] * max(sizes["state_dim"], sizes["output_dim"])
        if max(inner, *sizes.values()) > held:
            raise ValueError(
                f"{path}: config: expected dimensions for the {held} numbers in it, "
                f"received {in_one_line(sizes)}"
            )
        model = cls(**sizes)
        model._load_checked(content["state_dict"], path)
        return model

    def _load_checked(self, state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
        expected = {name: tuple(v.shape) for name, v in self.state_dict().items()}
        received = {
            name: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            for name, v in state.items()
        }
        if expected != received:
            names = [*expected, *(n for n in received if n not in expected)]
            wrong = next(n for n in names if expected.get(n) != received.get(n))
            raise ValueError(
                f"{path}: {' '.join(str(wrong).split())}: expected {_described(expected, wrong)}, "
                f"received {_described(received, wrong)}"
            )
        for name, value in state.items():
            if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
                raise ValueError(
                    f"{path}: {name}: expected real numbers, received {value.dtype} "
                    f"({value.layout}, {value.device})"
                )
        self.load_state_dict(state)


def _described(shapes: Mapping[str, object], name: str) -> str:
    shape = shapes.get(name, "no such tensor")
    return f"shape {shape}" if isinstance(shape, tuple) else str(shape)
