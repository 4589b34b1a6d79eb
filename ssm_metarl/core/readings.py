"""What stands in for a sensor that gives no number: its last good reading.

Place in the flow: stage 3, in front of whatever acts by `Policy.unroll`; the compiled actors do the
same number by number. One NaN would stay in the hidden state for ever, and the plant would get the
same action from there on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ssm_metarl.core.policy_network import PolicyNetwork

INF = float("inf")
WILD = 1e6
"""Scaled numbers are about 1: a larger one than this comes from a broken sensor, not a plant."""


class Readings:
    """The latest of K x N environments.

    Args:
        policy: Whose observations they are.
        num_tasks: K.
        num_envs: N.
    """

    def __init__(self, policy: PolicyNetwork, num_tasks: int, num_envs: int) -> None:
        self._policy = policy
        self._surely_sane = WILD / float(policy.obs_scale.abs().max().clamp(min=1e-30))
        self._last = policy.step_size.new_zeros(num_tasks, num_envs, policy.obs_dim)
        self.bad = torch.zeros(num_tasks, num_envs, dtype=torch.int64, device=self._last.device)
        """Observations so far in which a number had to be held, shape (K, N)."""
        self.wild: Tensor | None = None
        """Where the last observation has a number that no plant gives, shape (K, N); None for
        nowhere."""

    def held(self, obs: Tensor, reset: Tensor) -> Tensor:
        """Observations of which each number is one, in memory of their own.

        NaN, and an infinity that no limit of the policy clips, give way to the last good number of
        the episode; before there was one, to 0, the middle of the range.

        Args:
            obs: Shape (K, N, O).
            reset: True where an episode starts, shape (K, N).
        """
        if obs.requires_grad:
            obs = obs.detach()
        # One look at all numbers; NaN is not less. Elsewhere it would have to wait for the device.
        if obs.is_cpu and vector_norm(obs, INF).item() < self._surely_sane:
            self._last, self.wild = obs.clone(), None
            return self._last
        self.wild = ~((obs * self._policy.obs_scale).abs() < WILD).all(dim=-1)
        good = self._policy.scaled(obs).isfinite()
        last = self._last.masked_fill(reset[..., None], 0.0)
        self._last = torch.where(good, obs, last)
        self.bad = self.bad + ~good.all(dim=-1)
        return self._last
