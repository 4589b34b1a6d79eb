"""The diagonal policy as one would write it in plain PyTorch: one task, a loop over time steps.

Place in the flow: the model of `task_loop` and of `acting`'s eager peer. Same parameters, same
numbers as `core.policy` (a test holds them to it), ordinary operations only. Parameters are a
dictionary of tensors by the policy's own names, without a task axis.

Two styles. ``cell`` calls the whole cell once a time step, as a recurrent policy that also acts is
usually written. ``layer`` runs each layer's linear maps over the whole sequence and loops over
nothing but the recurrence: the most that a loop in Python can be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_metarl.config import PolicyConfig

Style = Literal["cell", "layer"]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class PlainPolicy:
    """A diagonal policy over discrete actions, mirrored or not.

    Args:
        config: Its architecture.
        style: See the module.
    """

    config: PolicyConfig
    style: Style = "cell"

    @property
    def predicted_dims(self) -> tuple[int, ...]:
        """The observation dimensions whose change it predicts: all."""
        return tuple(range(len(self.config.obs_scale)))

    def start(self, num_envs: int, like: Tensor) -> list[Tensor]:
        """The state before the first step: zeros (N or 2 N, P) for each layer."""
        rows = num_envs * (2 if self.config.mirror else 1)
        shape = (rows, self.config.state_dim)
        return [like.new_zeros(shape) for _ in range(self.config.num_layers)]

    def act(
        self, weights: Weights, obs: Tensor, state: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """One step: action logits (N, A) of observations (N, O), and the state after it."""
        x = self._input(obs)
        features, state = self._cell(weights, x, state, self._decays(weights), None)
        return self._logits(weights, features), state

    def unroll(self, weights: Weights, obs: Tensor, reset: Tensor) -> Tensor:
        """Features (T, N or 2 N, D) of observations (T, N, O), episodes starting at ``reset``."""
        x = self._input(obs)
        keep = ~reset[..., None]
        keep = torch.cat([keep, keep], dim=1) if self.config.mirror else keep
        state, decays = self.start(obs.shape[1], obs), self._decays(weights)
        if self.style == "layer":
            return self._layers(weights, x, state, decays, keep)
        features = []
        for x_t, keep_t in zip(x, keep, strict=True):
            out, state = self._cell(weights, x_t, state, decays, keep_t)
            features.append(out)
        return torch.stack(features)

    def log_probs(self, weights: Weights, features: Tensor) -> Tensor:
        """Log-probabilities (..., N, A) of the actions."""
        return self._logits(weights, features).log_softmax(-1)

    def prediction(self, weights: Weights, features: Tensor, action: Tensor) -> Tensor:
        """Predicted change (T, N, O) of the observations, two actions only."""
        raw = F.linear(
            features, weights["heads.prediction.weight"], weights["heads.prediction.bias"]
        )
        alone, effect = raw.unflatten(-1, (-1, 2)).unbind(-1)
        code = (2.0 * action - 1.0)[..., None].to(raw.dtype)
        if not self.config.mirror:
            unmirrored: Tensor = alone + effect * code
            return unmirrored
        (alone, image_alone), (effect, image_effect) = alone.chunk(2, dim=1), effect.chunk(2, dim=1)
        change: Tensor = ((alone + effect * code) - (image_alone - image_effect * code)) / 2
        return change

    def _logits(self, weights: Weights, features: Tensor) -> Tensor:
        logits = F.linear(features, weights["heads.action.weight"], weights["heads.action.bias"])
        if not self.config.mirror:
            return logits
        here, image = logits.chunk(2, dim=-2)
        return (here + image.flip(-1)) / 2

    def _input(self, obs: Tensor) -> Tensor:
        scale = torch.tensor(self.config.obs_scale).to(
            obs
        )  # in float32 first, as the policy has it
        if self.config.obs_limit:
            limit = torch.tensor(self.config.obs_limit).to(obs)
            obs = obs.clamp(-limit, limit)
        x = obs * scale
        return torch.cat([x, -x], dim=-2) if self.config.mirror else x

    def _decays(self, weights: Weights) -> list[tuple[Tensor, Tensor]]:
        """Decay and input scale of each layer: they do not depend on the time step."""
        rates = [weights[f"core.layers.{i}.log_rate"].exp() for i in range(self.config.num_layers)]
        return [(torch.exp(-r), torch.sqrt(-torch.expm1(-2 * r))) for r in rates]

    def _cell(
        self,
        weights: Weights,
        x: Tensor,
        state: list[Tensor],
        decays: list[tuple[Tensor, Tensor]],
        keep: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        stream = F.linear(x, weights["core.encoder.weight"], weights["core.encoder.bias"])
        after = []
        for layer, ((decay, scale), hidden) in enumerate(zip(decays, state, strict=True)):
            u, drive = self._drive(weights, layer, stream, scale)
            hidden = torch.addcmul(drive, decay, hidden if keep is None else hidden * keep)
            after.append(hidden)
            stream = self._mix(weights, layer, stream, u, hidden)
        return stream, after

    def _layers(
        self,
        weights: Weights,
        x: Tensor,
        state: list[Tensor],
        decays: list[tuple[Tensor, Tensor]],
        keep: Tensor,
    ) -> Tensor:
        stream = F.linear(x, weights["core.encoder.weight"], weights["core.encoder.bias"])
        for layer, ((decay, scale), hidden) in enumerate(zip(decays, state, strict=True)):
            u, drive = self._drive(weights, layer, stream, scale)
            states = []
            for a_t, drive_t in zip((decay * keep).unbind(), drive.unbind(), strict=True):
                hidden = torch.addcmul(drive_t, a_t, hidden)
                states.append(hidden)
            stream = self._mix(weights, layer, stream, u, torch.stack(states))
        return stream

    def _drive(
        self, weights: Weights, layer: int, stream: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        name = f"core.layers.{layer}."
        u = F.layer_norm(stream, stream.shape[-1:])
        return u, scale * F.linear(u, weights[f"{name}B.weight"], weights[f"{name}B.bias"])

    def _mix(
        self, weights: Weights, layer: int, stream: Tensor, u: Tensor, hidden: Tensor
    ) -> Tensor:
        name = f"core.layers.{layer}."
        y = F.linear(hidden, weights[f"{name}C.weight"], weights[f"{name}C.bias"])
        y = F.gelu(y + u * weights[f"{name}D"])
        gate = F.linear(y, weights[f"{name}gate.weight"], weights[f"{name}gate.bias"])
        return stream + y * torch.sigmoid(gate)
