"""Acting: what a policy remembers from step to step, and how a step goes by plain operations.

Place in the flow: stage 3, behind `Policy.step` and, on any device, `Policy.actor`;
`compiled_actor` does the same in a few compiled calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from ssm_metarl.core.policy_network import PolicyNetwork, PolicyOutput
from ssm_metarl.core.readings import Readings
from ssm_metarl.core.trial_memory import TrialMemory
from ssm_metarl.entrance import shaped
from ssm_metarl.types import FlatParams


class ActingState:
    """All that acting in K x N environments remembers.

    Args:
        policy: Which acts.
        num_tasks: K.
        num_envs: N.
        trial_episodes: Episodes after which an in-context policy forgets; None for never.
    """

    def __init__(
        self, policy: PolicyNetwork, num_tasks: int, num_envs: int, trial_episodes: int | None
    ) -> None:
        self._policy = policy
        self.num_tasks, self.num_envs = num_tasks, num_envs
        self.hidden = policy.init_hidden(num_tasks, num_envs)
        """Of the core, as `Policy.init_hidden` has it."""
        self.readings = Readings(policy, num_tasks, num_envs)
        """The last good ones, of a policy that sees observations alone."""
        self.memory: TrialMemory | None = None
        """Of the trials, of an in-context policy."""
        if policy.in_context:
            self.memory = TrialMemory(policy, num_tasks * num_envs, trial_episodes)

    @property
    def bad_readings(self) -> Tensor:
        """Observations so far in which a number had to be held, shape (K, N)."""
        bad = self.readings.bad if self.memory is None else self.memory.bad_readings
        return bad.view(self.num_tasks, self.num_envs).clone()

    def copy(self) -> ActingState:
        """Another one that remembers the same; what happens to either leaves the other alone."""
        other = copy(self)  # a step puts other tensors in place of these: none is written to
        other.readings = copy(self.readings)
        other.memory = None if self.memory is None else self.memory.copy()
        return other

    def observe(self, params: FlatParams, obs: Tensor, reset: Tensor) -> PolicyOutput:
        """What the policy says, (1, K, N, ...), about the next observations (K, N, O)."""
        lead = (self.num_tasks, self.num_envs)
        obs_shape = (*lead, self._policy.obs_dim)
        seen = shaped("obs", obs, obs_shape, params.flat.dtype, "K, N, O")
        cleared = shaped("reset", reset, lead, torch.bool, "K, N")
        if self.memory is None:
            seen = self.readings.held(seen, cleared)
        else:
            seen, cleared = self.memory.observe(seen.flatten(0, 1), cleared.flatten())
            seen, cleared = seen.view(*lead, -1), cleared.view(lead)
        out, self.hidden = self._policy.unroll(params, seen[None], self.hidden, cleared[None])
        return out

    def act(self, out: PolicyOutput, noise: Iterator[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]), and their log-probabilities (K, N), of what it said.

        Args:
            out: From `observe`.
            noise: Gives the step's numbers (K, N, .) to sample with; None acts greedily.
        """
        if noise is None:
            action = out.distribution.mode()
        else:
            action = out.distribution.sample(next(noise)[None])
        if self.memory is not None:
            self.memory.acted(action[0].flatten(0, 1))
        return action[0], out.distribution.log_prob(action)[0]

    def rewarded(self, reward: Tensor) -> None:
        """The reward (K, N) of the step that the last action took.

        Raises:
            ValueError: The shape does not fit, or the policy sees no rewards.
        """
        if self.memory is None:
            raise ValueError("reward: expected none, for the policy is no in-context one")
        lead, kind = (self.num_tasks, self.num_envs), self.hidden.dtype
        self.memory.rewarded(shaped("reward", reward, lead, kind, "K, N").flatten())


class PlainActor:
    """See `ssm_metarl.types.SizedActor`, and `RewardedActor` for an in-context policy.

    Args:
        params: Shared or per-task parameters.
        state: Where acting starts; the actor's own from here on.
        noise: Numbers (K, N, .) of each step to sample with; None acts greedily.
    """

    def __init__(
        self, params: FlatParams, state: ActingState, noise: Iterator[Tensor] | None
    ) -> None:
        self.num_tasks, self.num_envs = state.num_tasks, state.num_envs
        self._params, self.state, self._noise = params, state, noise
        if state.memory is not None:
            self.rewarded = state.rewarded

    @property
    def bad_readings(self) -> Tensor:
        """Observations so far in which a number had to be held, shape (K, N)."""
        return self.state.bad_readings

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]) and their log-probabilities for observations (K, N, O)."""
        return self.state.act(self.state.observe(self._params, obs, reset), self._noise)
