"""The loop under every training: gradient steps whose rate falls, whose gradient is clipped.

Place in the flow: stage 5, used by `meta_maml`, `in_context`, `single_task`, and by
`benchmarks.adaptation.fine_tuning`. Whoever trains says how a loss comes and puts its gradient in
the parameters; here it is checked, clipped, and Adam or plain descent follows it.

The trap: a loss may be finite where its gradient is not. Both are looked at *before* the step, so
that what diverged leaves the parameters as they were.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FINAL_LR_SHARE = 0.05
"""Share of the learning rate that is left at a training's end."""

Optimizer = Literal["adam", "sgd"]
"""Adam, or plain gradient descent."""


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not finite; the parameters are still those before the step."""


@dataclass(frozen=True)
class StepsTaken:
    """What some gradient steps came to, at the last one."""

    loss: float
    """Before the step."""
    grad_norm: float
    """Norm of the gradient before clipping."""


class GradientSteps:
    """Named parameters, and the optimiser that moves them.

    Args:
        parameters: Trained in place, by name.
        lr: Learning rate at a training's start.
        max_grad_norm: The gradient's norm is clipped to this.
        optimizer: Adam, or plain gradient descent.
        each_row: Parameters (K, P) of K trainings side by side: each row's gradient is clipped by
            itself, and one that is not finite is none and stops no other.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: float,
        max_grad_norm: float,
        *,
        optimizer: Optimizer = "adam",
        each_row: bool = False,
    ) -> None:
        self.parameters, self.lr, self.max_grad_norm = dict(parameters), lr, max_grad_norm
        self.each_row = each_row
        every = list(self.parameters.values())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(every, lr=lr, eps=1e-5)
            if optimizer == "adam"
            else torch.optim.SGD(every, lr=lr)
        )

    def take(
        self, backwards: Iterable[Callable[[], float | Tensor]], *, progress: float = 0.0
    ) -> StepsTaken:
        """Take one step for each loss.

        Args:
            backwards: Each puts a loss's gradient into the parameters' ``grad``, and gives the
                loss, a scalar.
            progress: Share of the training that is done, in [0, 1]: the rate falls with it to
                `FINAL_LR_SHARE`.

        Raises:
            TrainingDiverged: A loss or its gradient is not finite; that step was not taken.
            ValueError: There is no loss.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * max(FINAL_LR_SHARE, 1 - progress)
        taken: StepsTaken | None = None
        for backward in backwards:
            self.optimizer.zero_grad(set_to_none=True)
            taken = StepsTaken(float(backward()), float(self._clip()))
            if not (math.isfinite(taken.loss) and math.isfinite(taken.grad_norm)):
                raise TrainingDiverged(
                    f"expected a finite loss and gradient, received loss {taken.loss:g} and "
                    f"gradient norm {taken.grad_norm:g}"
                )
            self.optimizer.step()
        if taken is None:
            raise ValueError("backwards: expected at least one loss, received none")
        return taken

    def _clip(self) -> Tensor:
        """Clip the gradient, or each row's; its norm before that, or the largest finite one."""
        if not self.each_row:
            return torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        largest = torch.zeros(())
        for parameter in self.parameters.values():
            gradient = parameter.grad
            assert gradient is not None
            norm = gradient.norm(dim=1, keepdim=True)
            clipped = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            parameter.grad = clipped.masked_fill(~norm.isfinite(), 0.0)
            largest = torch.maximum(largest, norm.nan_to_num(posinf=0.0).max())
        return largest

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's moments by ``parameter.moment``, which PyTorch only numbers."""
        names = list(self.parameters)
        return {
            f"{names[index]}.{key}": torch.as_tensor(value).clone()
            for index, values in self.optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave; what belongs to no parameter is left out."""
        indices = {name: index for index, name in enumerate(self.parameters)}
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for place, value in tensors.items():
            name, _, key = place.rpartition(".")
            if name in indices:
                state[indices[name]][key] = value.clone()  # not to go on in the caller's
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": dict(state)})
