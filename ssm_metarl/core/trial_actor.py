"""An actor that remembers: its hidden state runs through all episodes of a trial.

Place in the flow: stage 3, what `Policy.actor` returns for an in-context policy. It keeps what
`trial_input` needs of the steps before: the observation, the last actions, and the reward, which
`env_runner.collect_rollout` tells it.

The traps: a new trial needs a new actor (or ``trial_episodes``), for an episode's end clears
nothing; and a reward that nobody tells is 0 to the policy, a reward that it never met.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.core.fused import KernelRun, can_fuse
from ssm_metarl.core.fused_actor import choose
from ssm_metarl.core.identification import Identification
from ssm_metarl.core.trial_input import ACTIONS_SEEN, step_input
from ssm_metarl.types import FlatParams

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy


class TrialActor:
    """See `ssm_metarl.types.Actor` and `RewardedActor`; memory and buffers are its own.

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
        self._trial_episodes, self._shape = trial_episodes, (num_tasks, num_envs)
        # Under shared parameters all environments are rows of one task: larger products.
        self._rows = (1, num_tasks * num_envs) if params.flat.dim() == 1 else self._shape
        options = {"dtype": torch.float32, "device": policy.step_size.device}
        self._before = torch.zeros(*self._shape, policy.obs_dim, **options)
        codes = ACTIONS_SEEN * policy.action_space.code_dim
        self._actions = torch.zeros(*self._shape, codes, **options)
        self._reward = torch.zeros(self._shape, **options)
        self._episode = torch.zeros(self._shape, dtype=torch.int64, device=options["device"])
        self._plant = Identification(num_tasks * num_envs, policy.obs_dim, codes)
        self._hidden = policy.init_hidden(*self._rows)
        self._run = self._fused_run()

    def _fused_run(self) -> KernelRun | None:
        policy, flat = self._policy, self._params.flat
        discrete = isinstance(policy.action_space, Discrete)
        if not (discrete and can_fuse(flat, self._before, self._hidden)):
            return None
        self._out = np.empty((*self._rows, policy.kernel.output_dim), np.float32)
        self._none = np.zeros((*self._rows, 0), np.float32)
        return KernelRun(
            policy.kernel,
            flat.expand(self._rows[0], -1),
            np.empty((*self._rows, policy.input_dim), np.float32),
            self._hidden.numpy(),
            np.empty(self._rows, np.bool_),
        )

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]) and their log-probabilities for observations (K, N, O)."""
        first = reset & (self._episode == 0)
        if self._trial_episodes is not None:
            first = reset & (self._episode % self._trial_episodes == 0)
        self._episode += reset
        z = self._policy.scaled(obs)
        start = reset[..., None]
        self._actions.masked_fill_(start, 0.0)
        before = torch.where(start, z, self._before)
        reward = self._reward.masked_fill(first, 0.0)
        plant = self._plant.update(
            *(v.flatten(0, 1)[None] for v in (z, before, self._actions, reset, first))
        ).view(*self._shape, -1)
        x = step_input(z, before, self._actions, plant, reward, first, reset & ~first)
        action, log_prob = self._choose(x, first)
        code = self._policy.action_space.code(action)
        self._actions = torch.cat([code, self._actions[..., : -code.shape[-1]]], dim=-1)
        self._before = z
        self._reward = torch.zeros_like(self._reward)
        return action, log_prob

    def rewarded(self, reward: Tensor) -> None:
        """The reward (K, N) of the step that the last action took."""
        self._reward = reward.to(self._reward)

    def _choose(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        noise = None if self._noise is None else next(self._noise)
        x, first = x.view(*self._rows, -1), first.view(self._rows)
        if self._run is not None:
            return self._choose_fused(x, first, noise)
        out, hidden = self._policy.unroll(self._params, x[None], self._hidden, first[None])
        self._hidden = hidden
        distribution = out.distribution
        if noise is None:
            action = distribution.mode()
        else:
            action = distribution.sample(noise.reshape(1, *self._rows, -1))
        log_prob = distribution.log_prob(action)[0].view(self._shape)
        return action[0].view(*self._shape, *action.shape[3:]), log_prob

    def _choose_fused(
        self, x: Tensor, first: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        run = self._run
        assert run is not None
        run.x[:], run.reset[:] = x.numpy(), first.numpy()
        run.forward(self._out, run.hidden)
        numbers = self._none if noise is None else noise.reshape(*self._rows, 1).numpy()
        action, log_prob = torch.empty(self._rows, dtype=torch.int64), torch.empty(self._rows)
        actions = self._policy.action_space.logits_dim
        choose(self._out, actions, False, numbers, action.numpy(), log_prob.numpy())
        return action.view(self._shape), log_prob.view(self._shape)
