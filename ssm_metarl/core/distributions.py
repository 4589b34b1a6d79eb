"""Action distributions as small pure objects: what a policy's head means.

Place in the flow: stage 3, built by `policy`, used by `objectives`. They sample from numbers
handed to them instead of a global generator (torch.distributions offers no such thing), so a
rollout is a function of its noise streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

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

    def kl(self, reference: Self) -> Tensor:
        """KL(self || reference) in nats."""

    def mirror_mean(self) -> Self:
        """The mean of (K, T, N, ...) and its mirror image, mirrored back, from (K, T, 2 N, ...)."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``function``, such as a view of the leading axes, to every parameter."""


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

    def kl(self, reference: Categorical) -> Tensor:
        """Shape (...)."""
        log_p, log_q = self.logits.log_softmax(-1), reference.logits.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def mirror_mean(self) -> Categorical:
        """Action a in the mirror is n - 1 - a."""
        here, image = self.logits.chunk(2, dim=2)
        return Categorical((here + image.flip(-1)) / 2)

    def map(self, function: Callable[[Tensor], Tensor]) -> Categorical:
        """Apply ``function`` to the logits."""
        return Categorical(function(self.logits))


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

    def kl(self, reference: Gaussian) -> Tensor:
        """Summed over action dimensions, shape (...)."""
        distance = (self.mean - reference.mean) * (-reference.log_std).exp()
        ratio = self.log_std - reference.log_std  # of the standard deviations, logarithm
        return (0.5 * (distance.square() + (2 * ratio).exp() - 1) - ratio).sum(-1)

    def mirror_mean(self) -> Gaussian:
        """An action in the mirror is its opposite."""
        (mean, image), (log_std, _) = self.mean.chunk(2, dim=2), self.log_std.chunk(2, dim=2)
        return Gaussian((mean - image) / 2, log_std)  # the spread does not depend on the history

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussian:
        """Apply ``function`` to mean and log_std."""
        return Gaussian(function(self.mean), function(self.log_std))
