"""The policy of a `StateSpaceModel` in plain PyTorch, beside `plain_policy`'s diagonal one.

Place in the flow: the model of `task_loop` where a `StateSpaceModel` is meta-trained. Here too
``layer`` takes what does not depend on the previous state out of the loop over time steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_policy import PlainPolicy, Weights


@dataclass(frozen=True)
class PlainStateSpace(PlainPolicy):
    """A nonlinear policy over two actions, mirrored or not; arguments as in `PlainPolicy`."""

    @property
    def predicted_dims(self) -> tuple[int, ...]:
        """The observation dimensions whose change it predicts."""
        return self.config.predicted_dims

    def start(self, num_envs: int, like: Tensor) -> list[Tensor]:
        """The state before the first step: zeros (N or 2 N, P)."""
        return super().start(num_envs, like)[:1]

    def prediction(self, weights: Weights, features: Tensor, action: Tensor) -> Tensor:
        """Predicted effect (T, N, len(predicted_dims)) of the actions."""
        first = self.config.num_actions or 0
        effect = features[..., first : first + len(self.predicted_dims)]
        if self.config.mirror:  # the image's code is the opposite one, and so is its effect
            effect = torch.stack(effect.chunk(2, dim=1)).mean(0)
        return effect * (2.0 * action - 1.0)[..., None].to(effect.dtype)

    def _logits(self, weights: Weights, features: Tensor) -> Tensor:
        logits = features[..., : self.config.num_actions]
        if not self.config.mirror:
            return logits
        here, image = logits.chunk(2, dim=-2)
        return (here + image.flip(-1)) / 2

    def _decays(self, weights: Weights) -> list[tuple[Tensor, Tensor]]:
        return []

    def _cell(
        self,
        weights: Weights,
        x: Tensor,
        state: list[Tensor],
        decays: list[tuple[Tensor, Tensor]],
        keep: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        hidden = state[0] if keep is None else state[0] * keep
        hidden = self._next(weights, hidden, _linear(weights, "input_projection", x))
        return self._read(weights, hidden, x), [hidden]

    def _layers(
        self,
        weights: Weights,
        x: Tensor,
        state: list[Tensor],
        decays: list[tuple[Tensor, Tensor]],
        keep: Tensor,
    ) -> Tensor:
        hidden, states = state[0], []
        drive = _linear(weights, "input_projection", x)
        for drive_t, keep_t in zip(drive, keep, strict=True):
            hidden = self._next(weights, hidden * keep_t, drive_t)
            states.append(hidden)
        return self._read(weights, torch.stack(states), x)

    def _next(self, weights: Weights, hidden: Tensor, drive: Tensor) -> Tensor:
        inner = torch.relu(_linear(weights, "state_transition.0", hidden))
        return _linear(weights, "state_transition.2", inner) + drive

    def _read(self, weights: Weights, hidden: Tensor, x: Tensor) -> Tensor:
        inner = torch.relu(_linear(weights, "output_network.0", hidden))
        return _linear(weights, "output_network.2", inner) + _linear(weights, "feedthrough", x)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"core.{name}.weight"], weights[f"core.{name}.bias"])
