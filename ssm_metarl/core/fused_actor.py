"""An actor that chooses all discrete actions of a time step in three compiled calls.

Place in the flow: stage 3, what `Policy.actor` returns where the core has a kernel. Equal to the
plain actor within rounding; at these sizes that one is bound by the start of fifty operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.compiled import ZERO, compiled, exp
from ssm_metarl.core.fused import KernelRun
from ssm_metarl.types import FlatParams

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy


class FusedActor:
    """See `ssm_metarl.types.Actor`; the hidden state and all buffers are its own.

    Args:
        policy: Over discrete actions, its core with a kernel.
        params: Shared or per-task parameters, float32 on the processor.
        num_tasks: K.
        num_envs: N.
        noise: Uniform numbers (K, N, 1) of each step to sample with; None acts greedily.
    """

    def __init__(
        self,
        policy: Policy,
        params: FlatParams,
        num_tasks: int,
        num_envs: int,
        noise: Iterator[Tensor] | None,
    ) -> None:
        assert policy.kernel is not None
        self._policy, self._noise = policy, noise
        self._scale, self._limit = policy.obs_scale.numpy(), policy.obs_limit.numpy()
        self._reflection = policy.reflection.numpy()
        flat = params.flat
        envs = num_envs * (2 if policy.mirror else 1)
        self._shape, self._actions = (num_tasks, num_envs), policy.action_space.logits_dim
        self._reset = np.empty((num_tasks, envs), np.bool_)
        self._run = KernelRun(
            policy.kernel,
            flat if flat.dim() == 2 else flat.expand(num_tasks, -1),
            np.empty((num_tasks, envs, policy.obs_dim), np.float32),
            np.zeros((num_tasks, envs, policy.kernel.hidden_size), np.float32),
            self._reset,
        )
        self._out = np.empty((num_tasks, envs, policy.kernel.output_dim), np.float32)
        self._none = np.zeros((num_tasks, num_envs, 0), np.float32)

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N) and their log-probabilities for observations (K, N, O)."""
        run, mirror = self._run, self._policy.mirror
        if not self._policy.memory:
            reset = torch.ones_like(reset)
        observe(
            obs.numpy(), reset.numpy(), self._limit, self._scale, self._reflection, run.x, run.reset
        )
        run.forward(self._out, run.hidden)
        noise = self._none if self._noise is None else next(self._noise).numpy()
        action, log_prob = np.empty(self._shape, np.int64), np.empty(self._shape, np.float32)
        choose(self._out, self._actions, mirror, noise, action, log_prob)
        return torch.from_numpy(action), torch.from_numpy(log_prob)


@compiled
def observe(obs, reset, limit, scale, reflection, x, x_reset):  # type: ignore[no-untyped-def]
    """Clip and scale (K, N, O) into x; the second half of its environments, if any, mirrors."""
    K, N, size = obs.shape
    for k in range(K):
        for n in range(N):
            for copy in range(n, x.shape[1], N):
                x_reset[k, copy] = reset[k, n]
            for i in range(size):
                value = min(max(obs[k, n, i], -limit[i]), limit[i]) * scale[i]
                x[k, n, i] = value
                if x.shape[1] > N:
                    x[k, N + n, i] = reflection[i] * value


@compiled
def choose(logits, A, mirror, noise, action, log_prob):  # type: ignore[no-untyped-def]
    """Sample from (or, without noise, take the mode of) A logits, averaged with their mirror's."""
    K, N = action.shape
    mean, weight = np.empty(A, np.float32), np.empty(A, np.float32)
    for k in range(K):
        for n in range(N):
            best = 0
            for a in range(A):
                mean[a] = logits[k, n, a]
                if mirror:
                    mean[a] = (mean[a] + logits[k, N + n, A - 1 - a]) / 2
                if mean[a] > mean[best]:
                    best = a
            total = ZERO
            for a in range(A):
                weight[a] = exp(mean[a] - mean[best])
                total += weight[a]
            chosen = best
            if noise.shape[2] > 0:
                chosen, below = 0, ZERO
                for a in range(A - 1):
                    below += weight[a]
                    if noise[k, n, 0] * total >= below:
                        chosen = a + 1
            action[k, n] = chosen
            log_prob[k, n] = mean[chosen] - mean[best] - np.log(total)
