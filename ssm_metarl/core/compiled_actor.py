"""An actor that chooses all actions of a time step in a few compiled calls.

Place in the flow: stage 3, what `Policy.actor` returns where the core has a kernel. Equal to
`acting` within rounding; at these sizes that is bound by the start of fifty operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.compiled import HALF, ZERO, compiled, exp, threads_worth
from ssm_metarl.core.acting import ActingState
from ssm_metarl.core.fused import KernelRun
from ssm_metarl.core.heads import LinearHeads
from ssm_metarl.core.policy_network import PolicyNetwork
from ssm_metarl.entrance import array, fitted
from ssm_metarl.types import FlatParams

LOG_ROOT_TWO_PI = np.float32(0.5 * math.log(2 * math.pi))


class CompiledActor:
    """See `ssm_metarl.types.SizedActor`, and `RewardedActor` for an in-context policy.

    Args:
        policy: Its core with a kernel.
        params: Shared or per-task parameters, float32 on the processor.
        state: Where acting starts: no step taken yet. The actor's own from here on.
        noise: Numbers (K, N, .) of each step to sample with; None acts greedily.
    """

    def __init__(
        self,
        policy: PolicyNetwork,
        params: FlatParams,
        state: ActingState,
        noise: Iterator[Tensor] | None,
    ) -> None:
        assert policy.kernel is not None
        self.num_tasks, self.num_envs = state.num_tasks, state.num_envs
        self._shape = self._rows = (state.num_tasks, state.num_envs)
        self._obs_shape = (*self._shape, policy.obs_dim)
        self._noise, self._mirror, self._remembers = noise, policy.mirror, policy.memory
        self._scale, self._limit = policy.obs_scale.numpy(), policy.obs_limit.numpy()
        self._reflection = policy.reflection.numpy()
        self._bad = np.zeros(self._shape, np.int64)
        self._memory, flat = state.memory, params.flat
        if state.memory is not None:
            self.rewarded = state.rewarded
            if flat.dim() == 1:
                # Shared parameters: all environments are as good as one task's, for larger
                # products, or as several tasks', for as many threads. The last bit depends on their
                # number, as that of the gradients does (`fused_unroll`).
                count = self.num_tasks * self.num_envs
                groups = math.gcd(count, threads_worth(count))
                self._rows = (groups, count // groups)
        lead, envs = self._rows
        every = (lead, envs * (2 if policy.mirror else 1))
        self._run = KernelRun(
            policy.kernel,
            flat if flat.dim() == 2 else flat.expand(lead, -1),
            np.zeros((*every, policy.input_dim), np.float32),
            np.zeros((*every, policy.kernel.hidden_size), np.float32),
            np.empty(every, np.bool_),
        )
        self._out = np.empty((*every, policy.kernel.output_dim), np.float32)
        self._actions = policy.action_space.logits_dim
        discrete = isinstance(policy.action_space, Discrete)
        self._none = np.zeros((*self._rows, 0), np.float32)
        self._gaussian: tuple[np.ndarray, ...] = ()
        if not discrete:
            heads = policy.heads
            assert isinstance(heads, LinearHeads)
            log_std = heads.log_stds(params).detach().expand(lead, -1).contiguous().numpy()
            self._gaussian = heads.action_middle.numpy(), heads.action_half.numpy(), log_std

    @property
    def bad_readings(self) -> Tensor:
        """Observations so far in which a number had to be held, shape (K, N)."""
        if self._memory is not None:
            return self._memory.bad_readings.view(self._shape).clone()
        return torch.from_numpy(self._bad.copy())

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]) and their log-probabilities for observations (K, N, O)."""
        run, memory = self._run, self._memory
        if memory is None:
            observe(
                array("obs", obs, self._obs_shape, torch.float32, "K, N, O"),
                array("reset", reset, self._shape, torch.bool, "K, N"),
                self._limit, self._scale, self._reflection,
                self._remembers, run.x, run.reset, self._bad,
            )  # fmt: skip
        else:
            obs = fitted("obs", obs, self._obs_shape, torch.float32, "K, N, O")
            reset = fitted("reset", reset, self._shape, torch.bool, "K, N")
            envs = self._rows[1]
            x, first = memory.observe(obs.flatten(0, 1), reset.flatten())
            run.x[:, :envs], run.reset[:, :envs] = x.view(*self._rows, -1), first.view(self._rows)
            if self._mirror:
                run.x[:, envs:] = run.x[:, :envs] * self._reflection
                run.reset[:, envs:] = run.reset[:, :envs]
        run.forward(self._out, run.hidden)
        noise = self._none
        if self._noise is not None:
            noise = next(self._noise).numpy()
            noise = noise if memory is None else noise.reshape(*self._rows, -1)
        # NumPy's memory, for PyTorch's takes half a microsecond longer to get, of thirteen
        log_prob = np.empty(self._rows, np.float32)
        if self._gaussian:
            action = np.empty((*self._rows, self._actions), np.float32)
            choose_box(self._out, self._mirror, *self._gaussian, noise, action, log_prob)
        else:
            action = np.empty(self._rows, np.int64)
            choose(self._out, self._actions, self._mirror, noise, action, log_prob)
        chosen, likely = torch.from_numpy(action), torch.from_numpy(log_prob)
        if memory is None:
            return chosen, likely
        chosen = chosen.flatten(0, 1)
        memory.acted(chosen)
        return chosen.view(*self._shape, *chosen.shape[1:]), likely.view(self._shape)


@compiled
def observe(  # type: ignore[no-untyped-def]
    obs, reset, limit, scale, reflection, remembers, x, x_reset, bad
):
    """Clip and scale (K, N, O) into x; the second half of its environments, if any, mirrors.

    What is no number then (`readings`) leaves x as it was, or 0 where an episode starts.
    """
    K, N, size = obs.shape
    for k in range(K):
        for n in range(N):
            for copy in range(n, x.shape[1], N):
                x_reset[k, copy] = reset[k, n] or not remembers
            held = 0
            for i in range(size):
                reading = obs[k, n, i]
                value = min(max(reading, -limit[i]), limit[i]) * scale[i]
                if math.isnan(reading) or not math.isfinite(value):
                    value = ZERO if reset[k, n] else x[k, n, i]
                    held = 1
                x[k, n, i] = value
                if x.shape[1] > N:
                    x[k, N + n, i] = reflection[i] * value
            bad[k, n] += held


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


@compiled
def choose_box(  # type: ignore[no-untyped-def]
    out, mirror, middle, half, log_std, noise, action, log_prob
):
    """The same for continuous actions, whose means in units of middle and half out starts with."""
    K, N, A = action.shape
    for k in range(K):
        for n in range(N):
            total = ZERO
            for a in range(A):
                mean = middle[a] + half[a] * out[k, n, a]
                if mirror:
                    mean = (mean - (middle[a] + half[a] * out[k, N + n, a])) * HALF
                drawn = mean
                if noise.shape[2] > 0:
                    drawn = mean + math.exp(log_std[k, a]) * noise[k, n, a]
                z = (drawn - mean) * math.exp(-log_std[k, a])
                total += HALF * z * z + log_std[k, a] + LOG_ROOT_TWO_PI
                action[k, n, a] = drawn
            log_prob[k, n] = -total
