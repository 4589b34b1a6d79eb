"""The unit that a trained value has: a mean reward, in multiples of the rewards' own size.

Place in the flow: stage 5, used by `in_context`. Value loss and policy gain share one clipped
gradient. The advantages have size 1 whatever a family pays; the values must, too, or with rewards
of -16 to 0 their squared error is a hundred times the gain, and the policy learns nothing. So the
head predicts the discounted return times (1 - gamma), a mean reward, over the rewards' running root
mean square: exactly 1 where every reward is 1. It is rescaled with its unit, so that its
predictions stay (PopArt, van Hasselt et al. 2016, arXiv 1602.07714, without the shift: a discounted
return of zero is a zero).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HORIZON = 10  # epochs that the running mean is taken over


@dataclass
class ValueScale:
    """The rewards' running size."""

    mean_square: float = 1.0

    @property
    def size(self) -> float:
        """Root mean square of the rewards; 1 where there are none but zeros."""
        return math.sqrt(self.mean_square) or 1.0

    @torch.no_grad()
    def update(self, reward: Tensor, head: nn.Linear, *, epoch: int) -> None:
        """Take in the rewards of the epoch after ``epoch`` ones; what the head predicts stays."""
        before, share = self.size, max(1 / HORIZON, 1 / (epoch + 1))
        self.mean_square += share * (float(reward.double().square().mean()) - self.mean_square)
        for parameter in head.parameters():
            parameter.mul_(before / self.size)
