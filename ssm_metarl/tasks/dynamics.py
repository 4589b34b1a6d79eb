"""Batched physics: what a family of equations must offer, and how a compiled step is called.

Place in the flow: stage 1, under `task_family`; `env_runner.task_batch` steps them.

Compiled code knows no bounds (`ssm_metarl.entrance`): every tensor is checked before it gets there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import ActionSpace, Continuous
from ssm_metarl.compiled import kernels_apply
from ssm_metarl.entrance import fitted

Parameters = Mapping[str, Tensor]
Stepped = tuple[Tensor, Tensor, Tensor]
"""Next state (K, N, S), reward (K, N) and terminated (K, N)."""


class Dynamics(Protocol):
    """Batched physics: pure functions of state, action and parameters, each (K, N, ...)."""

    obs_dim: int
    max_episode_steps: int
    push_scale: Sequence[float]
    """Standard deviation of a random push on each state dimension (0: never pushed)."""
    start_spread: Sequence[float]
    """How far from an initial state a training episode may start, on each state dimension."""

    @property
    def action_space(self) -> ActionSpace:
        """What `step` takes; it clips continuous actions itself."""

    def initial_state(self, uniform: Tensor) -> Tensor:
        """States (..., S) from uniform numbers (..., S) in [0, 1)."""

    def step(self, state: Tensor, action: Tensor, parameters: Parameters) -> Stepped:
        """Next state (K, N, S), reward (K, N) and terminated (K, N)."""

    def observe(self, state: Tensor, parameters: Parameters) -> Tensor:
        """Observations (K, N, O) of states (K, N, S) in tasks of these parameters."""


class CompiledDynamics:
    """Equations that are written twice: for the compiler, and plainly, for any device."""

    kernel: Callable[..., None]
    """``kernel(state, action, *parameters, after, reward, terminated)``, a static method; the last
    three arrays are filled: the reward is 1 and no episode ends where it says nothing else."""
    names: tuple[str, ...]
    """The parameters that it takes, in its order."""
    action_space: ActionSpace
    push_scale: Sequence[float]

    def step(self, state: Tensor, action: Tensor, parameters: Parameters) -> Stepped:
        """See `Dynamics`; the state is float32 or float64, the parameters broadcast to (K, N).

        Raises:
            ValueError: A shape does not fit.
        """
        lead, kind = leading(state, len(self.push_scale))
        if not (state.is_cpu and kernels_apply()):
            return self.step_plainly(state, action, parameters)
        state = fitted("state", state, state.shape, kind, "K, N, S")
        if isinstance(self.action_space, Continuous):
            action = fitted("action", action, (*lead, self.action_space.dim), kind, "K, N, A")
        else:
            action = fitted("action", action, lead, torch.int64, "K, N")
        values = spread(self.names, parameters, lead, kind)
        after, reward, terminated = (
            torch.empty_like(state),
            state.new_ones(lead),
            np.zeros(lead, bool),
        )
        self.kernel(
            state.numpy(), action.numpy(), *values, after.numpy(), reward.numpy(), terminated
        )
        return after, reward, torch.from_numpy(terminated)

    def step_plainly(self, state: Tensor, action: Tensor, parameters: Parameters) -> Stepped:
        """The same by PyTorch's own operations, on any device."""
        raise NotImplementedError


def leading(state: Tensor, size: int) -> tuple[tuple[int, int], torch.dtype]:
    """(K, N) of a state (K, N, size) of floating-point numbers, and their type.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(state, Tensor):
        raise ValueError(f"state: expected a tensor, received {type(state).__name__}")
    shape, kind = state.shape, state.dtype
    if len(shape) != 3 or shape[2] != size or kind not in (torch.float32, torch.float64):
        raise ValueError(
            f"state: expected shape (K, N, {size}), float32 or float64, received {tuple(shape)}, "
            f"{str(kind).removeprefix('torch.')}"
        )
    return (shape[0], shape[1]), kind


def spread(
    names: Sequence[str], parameters: Parameters, lead: tuple[int, int], kind: torch.dtype
) -> list[np.ndarray[Any, Any]]:
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
