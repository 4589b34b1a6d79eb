"""An actor by PyTorch's own operations: on any device, and for continuous actions.

Place in the flow: stage 3, what `Policy.actor` returns where `fused_actor` does not apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssm_metarl.core.readings import Readings
from ssm_metarl.entrance import shaped
from ssm_metarl.types import FlatParams

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy


class PlainActor:
    """See `ssm_metarl.types.SizedActor`; the hidden state is its own.

    Args:
        policy: Of any kind but an in-context one.
        params: Shared or per-task parameters.
        num_tasks: K.
        num_envs: N.
        noise: Numbers (K, N, .) of each step to sample with; None acts greedily.
    """

    def __init__(
        self,
        policy: Policy,
        params: FlatParams,
        num_tasks: int,
        num_envs: int,
        noise: Iterator[Tensor] | None,
    ) -> None:
        self.num_tasks, self.num_envs = num_tasks, num_envs
        self._policy, self._params, self._noise = policy, params, noise
        self._hidden = policy.init_hidden(num_tasks, num_envs)
        self._lead, self._obs_shape = (num_tasks, num_envs), (num_tasks, num_envs, policy.obs_dim)
        self._readings = Readings(policy, num_tasks, num_envs)

    @property
    def bad_readings(self) -> Tensor:
        """Observations so far in which a number had to be held, shape (K, N)."""
        return self._readings.bad.clone()

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]) and their log-probabilities for observations (K, N, O)."""
        obs = shaped("obs", obs, self._obs_shape, self._params.flat.dtype, "K, N, O")
        reset = shaped("reset", reset, self._lead, torch.bool, "K, N")
        obs = self._readings.held(obs, reset)
        out, self._hidden = self._policy.unroll(self._params, obs[None], self._hidden, reset[None])
        if self._noise is None:
            action = out.distribution.mode()
        else:
            action = out.distribution.sample(next(self._noise)[None])
        return action[0], out.distribution.log_prob(action)[0]
