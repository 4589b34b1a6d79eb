"""An actor that remembers: its hidden state runs through all episodes of a trial.

Place in the flow: stage 3, what `Policy.actor` returns for an in-context policy. It keeps what
`trial_input` needs of the steps before: the observation, the last actions, what least squares has
found, and the reward, which `env_runner.collect_rollout` tells it.

The traps: a new trial needs a new actor (or ``trial_episodes``), for an episode's end clears
nothing; and a reward that nobody tells is 0 to the policy, a reward that it never met.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.compiled import threads_worth
from ssm_metarl.core.fused import KernelRun, can_fuse
from ssm_metarl.core.fused_actor import choose
from ssm_metarl.core.trial_memory import TrialMemory
from ssm_metarl.entrance import shaped
from ssm_metarl.types import FlatParams

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy


class TrialActor:
    """See `ssm_metarl.types.SizedActor` and `RewardedActor`; memory and buffers are its own.

    Args:
        policy: An in-context policy.
        params: Shared or per-task parameters.
        num_tasks: K.
        num_envs: N.
        noise: Numbers (K, N, .) of each step to sample with; None acts greedily.
        trial_episodes: Episodes after which the memory is cleared; None for never.
    """

    def __init__(
        self,
        policy: Policy,
        params: FlatParams,
        num_tasks: int,
        num_envs: int,
        noise: Iterator[Tensor] | None,
        *,
        trial_episodes: int | None = None,
    ) -> None:
        self._policy, self._params, self._noise = policy, params, noise
        self.num_tasks, self.num_envs = num_tasks, num_envs
        self._shape = (num_tasks, num_envs)
        self._obs_shape = (num_tasks, num_envs, policy.obs_dim)
        self._rows = self._shape
        if params.flat.dim() == 1:
            # Shared parameters: all environments are as good as one task's, for larger products,
            # or as several tasks', for as many threads. The last bit depends on their number, as
            # that of the gradients does (`fused_unroll`).
            count = num_tasks * num_envs
            groups = math.gcd(count, threads_worth(count))
            self._rows = (groups, count // groups)
        self._memory = TrialMemory(policy, num_tasks * num_envs, trial_episodes)
        self._hidden = policy.init_hidden(*self._rows)
        self._run: KernelRun | None = None
        fused = isinstance(policy.action_space, Discrete) and policy.kernel is not None
        if fused and can_fuse(params.flat, policy.obs_scale, self._hidden):
            assert policy.kernel is not None
            lead, envs = self._rows
            every = (lead, envs * (2 if policy.mirror else 1))
            self._run = KernelRun(
                policy.kernel,
                params.flat.expand(lead, -1),
                np.empty((*every, policy.input_dim), np.float32),
                np.zeros((*every, policy.kernel.hidden_size), np.float32),
                np.empty(every, np.bool_),
            )
            self._out = np.empty((*every, policy.kernel.output_dim), np.float32)
            self._actions = policy.action_space.logits_dim
            self._reflection = policy.reflection.numpy()
            self._none = np.zeros((*self._rows, 0), np.float32)

    @property
    def bad_readings(self) -> Tensor:
        """Observations so far in which a number had to be held, shape (K, N)."""
        return self._memory.bad_readings.view(self._shape).clone()

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]) and their log-probabilities for observations (K, N, O)."""
        obs = shaped("obs", obs, self._obs_shape, self._params.flat.dtype, "K, N, O")
        reset = shaped("reset", reset, self._shape, torch.bool, "K, N")
        obs, reset = obs.flatten(0, 1), reset.flatten()
        noise = None if self._noise is None else next(self._noise)
        choose = self._choose_plainly if self._run is None else self._choose_fused
        action, log_prob = choose(obs, reset, noise)
        self._memory.acted(action)
        return action.view(*self._shape, *action.shape[1:]), log_prob.view(self._shape)

    def rewarded(self, reward: Tensor) -> None:
        """The reward (K, N) of the step that the last action took."""
        kind = self._params.flat.dtype
        self._memory.rewarded(shaped("reward", reward, self._shape, kind, "K, N").flatten())

    def _choose_plainly(
        self, obs: Tensor, reset: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """From observations (R, O): actions (R[, A]) and log-probabilities (R,)."""
        x, first = self._memory.observe(obs, reset)
        rows = (1, *self._rows)
        out, self._hidden = self._policy.unroll(
            self._params, x.view(*rows, -1), self._hidden, first.view(rows)
        )
        distribution = out.distribution
        if noise is None:
            action = distribution.mode()
        else:
            action = distribution.sample(noise.reshape(*rows, -1))
        return action.flatten(0, 2), distribution.log_prob(action).flatten()

    def _choose_fused(
        self, obs: Tensor, reset: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        run, policy, envs = self._run, self._policy, self._rows[1]
        assert run is not None
        x, first = self._memory.observe(obs, reset)
        run.x[:, :envs], run.reset[:, :envs] = x.view(*self._rows, -1), first.view(self._rows)
        if policy.mirror:
            run.x[:, envs:] = run.x[:, :envs] * self._reflection
            run.reset[:, envs:] = run.reset[:, :envs]
        run.forward(self._out, run.hidden)
        numbers = self._none if noise is None else noise.reshape(*self._rows, 1).numpy()
        action, log_prob = np.empty(self._rows, np.int64), np.empty(self._rows, np.float32)
        choose(self._out, self._actions, policy.mirror, numbers, action, log_prob)
        return torch.from_numpy(action).flatten(), torch.from_numpy(log_prob).flatten()
