"""Heads: what reads actions, value and prediction from a sequence model's output.

Place in the flow: stage 3, the last part of a `policy`. Two kinds, for the two sequence models:

- `LinearHeads` (with `DiagonalSSM`): action logits, a value and a prediction, each linear in the
  model's output f. The predicted change of the observation is P0 f + P1 (f x code(action)).
- `SliceHeads` (with `StateSpaceModel`): no parameter of their own. The first outputs are the
  action logits; the others are the predicted effect of the action on chosen observation
  dimensions, ``code(action) * output`` (for two actions the code is 2a - 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.core.distributions import ActionDistribution, Categorical, Gaussian
from ssm_metarl.core.task_linear import task_linear, task_vector
from ssm_metarl.types import Params


class LinearHeads(nn.Module):
    """Heads that are linear in the sequence model's output: M = action, value and prediction.

    Args:
        feature_dim: Size of the output.
        action_space: Discrete, or continuous: Gaussian.
        obs_dim: Size of an observation, all of whose changes are predicted.
        scaled: Mean and log_std of continuous actions are those of their code (`PolicyConfig`).
    """

    action_middle: Tensor
    action_half: Tensor

    def __init__(
        self, feature_dim: int, action_space: ActionSpace, obs_dim: int, *, scaled: bool = False
    ) -> None:
        super().__init__()
        self.action_space, self.predicted_dims = action_space, tuple(range(obs_dim))
        self.action = nn.Linear(feature_dim, action_space.logits_dim)
        self.value = nn.Linear(feature_dim, 1)
        self.prediction = nn.Linear(feature_dim, obs_dim * (1 + action_space.code_dim))
        if isinstance(action_space, Continuous):
            self.log_std = nn.Parameter(torch.full((action_space.dim,), -0.5))
            middle, half = action_space.middle_and_half(self.log_std.detach())
            if not scaled:
                middle, half = torch.zeros_like(middle), torch.ones_like(half)
            self.register_buffer("action_middle", middle, persistent=False)
            self.register_buffer("action_half", half, persistent=False)
        with torch.no_grad():  # start near the uniform policy and at value zero
            for head in (self.action, self.value):
                head.weight.mul_(0.01)
                head.bias.zero_()

    @property
    def readouts(self) -> dict[str, nn.Linear]:
        """The linear maps from the core's output, in the order of `readout`."""
        return {"action": self.action, "value": self.value, "prediction": self.prediction}

    def readout(self, params: Params, features: Tensor) -> Tensor:
        """All that the heads say (K, ..., M), from the core's task-first output (K, ..., D)."""
        return torch.cat(
            [
                task_linear(features, params[f"heads.{n}.weight"], params[f"heads.{n}.bias"])
                for n in self.readouts
            ],
            dim=-1,
        )

    def actions(self, params: Params, output: Tensor) -> ActionDistribution:
        """Action distribution (K, ...) from the readout (K, ..., M)."""
        action = output[..., : self.action_space.logits_dim]
        if isinstance(self.action_space, Discrete):
            return Categorical(action)
        # the same weights say the same of an actuator in other units
        log_std = task_vector(self.log_stds(params), action).expand_as(action)
        return Gaussian(self.action_middle + self.action_half * action, log_std)

    def log_stds(self, params: Params) -> Tensor:
        """Logarithm of the spread of continuous actions, shared (A,) or per task (K, A)."""
        return params["heads.log_std"] + self.action_half.log()

    def effects(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted change without an action (K, ..., O), and of its code (K, ..., O, C)."""
        out = output[..., self.action_space.logits_dim + 1 :]
        out = out.unflatten(-1, (len(self.predicted_dims), 1 + self.action_space.code_dim))
        return out[..., 0], out[..., 1:]


class SliceHeads(nn.Module):
    """Heads that are slices of the output: action logits first, then predicted effects."""

    def __init__(
        self, output_dim: int, action_space: ActionSpace, predicted_dims: tuple[int, ...]
    ) -> None:
        super().__init__()
        if not isinstance(action_space, Discrete):
            raise ValueError(
                "SliceHeads: expected a discrete action space, received a continuous one"
            )
        needed = action_space.n + len(predicted_dims) * action_space.code_dim
        if output_dim < needed:
            raise ValueError(
                f"output_dim: expected at least {needed} ({action_space.n} action logits and "
                f"{needed - action_space.n} predicted effects), received {output_dim}"
            )
        self.action_space, self.predicted_dims = action_space, predicted_dims

    @property
    def readouts(self) -> dict[str, nn.Linear]:
        """None: the core's output is what they read."""
        return {}

    def readout(self, params: Params, features: Tensor) -> Tensor:
        """The core's output, as it is."""
        return features

    def actions(self, params: Params, output: Tensor) -> ActionDistribution:
        """Action distribution (K, ...) from the core's output (K, ..., M)."""
        return Categorical(output[..., : self.action_space.n])

    def effects(self, output: Tensor) -> tuple[None, Tensor]:
        """No change without an action, and that of its code (K, ..., len(predicted_dims), C)."""
        start, code_dim = self.action_space.n, self.action_space.code_dim
        size = len(self.predicted_dims) * code_dim
        return None, output[..., start : start + size].unflatten(-1, (-1, code_dim))
