"""Action distributions as small pure objects: what a policy's head means.

Place in the flow: stage 3, built by `policy`, used by `objectives`. They sample from numbers
handed to them instead of a global generator (torch.distributions offers no such thing), so a
rollout is a function of its noise streams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ActionDistribution(Protocol):
    """A batch of distributions over actions, one for each leading index."""

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from noise of the kind the space's ``draw_noise`` makes."""

    def mode(self) -> Tensor:
        """The likeliest actions."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability (density) of actions."""

    def entropy(self) -> Tensor:
        """Entropy in nats."""


@dataclass(frozen=True)
class Categorical:
    """Over n actions; ``logits`` has shape (..., n), actions (...) int64."""

    logits: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The action whose share of [0, 1) holds the uniform number; noise (..., 1)."""
        cumulative = self.logits.softmax(-1).cumsum(-1)
        return (noise >= cumulative[..., :-1]).sum(-1)

    def mode(self) -> Tensor:
        """The action of the largest logit."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability, shape (...)."""
        return self.logits.log_softmax(-1).gather(-1, action[..., None])[..., 0]

    def entropy(self) -> Tensor:
        """Shape (...)."""
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


@dataclass(frozen=True)
class Gaussian:
    """Over A independent actions; ``mean`` and ``log_std`` have shape (..., A)."""

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The mean plus std * noise; noise standard normal, shape (..., A)."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density, summed over action dimensions, shape (...)."""
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Summed over action dimensions, shape (...)."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
