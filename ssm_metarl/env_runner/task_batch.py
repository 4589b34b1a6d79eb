"""Many tasks stepping as one tensor: K tasks x N environments of a family with batched physics.

Place in the flow: stage 2, between `tasks` (what varies) and `rollout` (what happened).

An environment whose episode has ended stays as it is until it is reset, so its numbers remain
finite and ``step`` can return the final observation apart from the next one. All randomness is
drawn from streams keyed by the task (`seeding.TaskNoise`): a task meets the same initial states
whichever tasks stand beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import ActionSpace, Discrete
from ssm_metarl.compiled import compiled, kernels_apply
from ssm_metarl.entrance import counts, fitted, shaped
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import EnvStep

NOISE_BLOCK = 64  # steps of noise drawn at a time


class TaskBatch:
    """K x N environments as one state tensor (K, N, S).

    Args:
        tasks: K tasks of a family that has batched physics.
        num_envs: N, environments per task.
        seed: Seed of the noise streams.
        purpose: Names the noise streams, such as "support".
        max_episode_steps: Time limit; None for the family's own.
        push_probability: Share of steps after which a random push changes the velocities.
        spread_starts: Share of episodes that start up to ``dynamics.start_spread`` away from an
            initial state.
        trial_episodes: See `make_worlds`.
        dtype: Floating-point type of the physics.
        device: Where the tensors live.
    """

    def __init__(
        self,
        tasks: Tasks,
        num_envs: int,
        *,
        seed: int,
        purpose: str,
        max_episode_steps: int | None = None,
        push_probability: float = 0.0,
        spread_starts: float = 0.0,
        trial_episodes: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if tasks.family.dynamics is None:
            raise ValueError(
                f"TaskBatch: expected a family with batched physics, received "
                f"{tasks.family.name!r}, which steps Gymnasium environments"
            )
        counts(num_envs=num_envs)
        self.dynamics = tasks.family.dynamics
        self.num_tasks, self.num_envs = len(tasks), num_envs
        self.obs_dim = self.dynamics.obs_dim
        self.action_space: ActionSpace = self.dynamics.action_space
        self.device = torch.device(device)
        self._compiled = self.device.type == "cpu"
        self.max_episode_steps = max_episode_steps or self.dynamics.max_episode_steps
        self._parameters = {
            name: v.to(device, dtype)[:, None].expand(-1, num_envs)
            for name, v in tasks.values.items()
        }
        shape, size = (self.num_tasks, num_envs), len(self.dynamics.push_scale)
        self._state = torch.zeros(*shape, size, dtype=dtype, device=device)
        self._ended = torch.ones(shape, dtype=torch.bool, device=device)
        self._step_count = torch.zeros(shape, dtype=torch.int64, device=device)
        self._push_probability, self._spread_starts = push_probability, spread_starts
        self._push_scale = self._state.new_tensor(self.dynamics.push_scale)
        self._start_spread = self._state.new_tensor(self.dynamics.start_spread)
        self._push_scales = self._push_scale.cpu().numpy()
        self._no_push = np.empty((*shape, 0), self._push_scales.dtype)
        resets, pushes, spreads = (
            TaskNoise(seed, f"{purpose}-{use}", tasks.indices) for use in ("reset", "push", "start")
        )
        self._trial: Tensor | None = None
        if trial_episodes > 0:
            uniform = resets.uniform(1, trial_episodes, size)[0]
            self._trial = self.dynamics.initial_state(uniform.to(self._state))  # (K, E, S)
        self._begun = torch.zeros_like(self._step_count)
        self._resets = _Numbers(resets, (num_envs, size), self._state)
        self._pushes = _Numbers(pushes, (num_envs, 1 + size), self._state)
        self._spreads = _Numbers(spreads, (num_envs, 1 + size), self._state)

    def reset(self, mask: Tensor | None = None) -> Tensor:
        """Start new episodes where ``mask`` (K, N) is True, or everywhere.

        Returns:
            Observations, shape (K, N, O).

        Raises:
            ValueError: A mask of another shape.
        """
        if mask is None:
            mask = torch.ones_like(self._ended)
        else:
            mask = shaped("mask", mask, self._ended.shape, torch.bool, "K, N")
        # Drawn whether or not it is used: which numbers a reset meets depends on the time step
        # and the task alone.
        fresh = self._fresh(mask)
        if mask.any():
            self._state = torch.where(mask[..., None], fresh, self._state)
            self._ended = self._ended & ~mask
            self._step_count = torch.where(mask, 0, self._step_count)
        return self.dynamics.observe(self._state, self._parameters)

    def _fresh(self, mask: Tensor) -> Tensor:
        """Initial states (K, N, S), of which those under ``mask`` are begun from."""
        if self._trial is not None:
            turn = self._begun % self._trial.shape[1]
            self._begun = self._begun + mask
            return self._trial.take_along_dim(turn[..., None], dim=1)
        fresh = self.dynamics.initial_state(self._resets.draw())
        if self._spread_starts == 0:
            return fresh
        uniform = self._spreads.draw()
        offset = (2 * uniform[..., 1:] - 1) * self._start_spread
        return torch.where(uniform[..., :1] < self._spread_starts, fresh + offset, fresh)

    def step(self, action: Tensor) -> EnvStep:
        """Step every environment that has not ended.

        Args:
            action: Shape (K, N), int64, or (K, N, A).

        Returns:
            The observation that the step led to (K, N, O) and reward, terminated and truncated
            (K, N); for an environment that had ended already: where it stands, 0, False, False.

        Raises:
            ValueError: Another shape, or no actions of the action space; no step was taken.
        """
        if self._compiled and kernels_apply():
            action = self._checked(action)
            return self._settled(*self.dynamics.step(self._state, action, self._parameters))
        action = self.action_space.checked(action, self._ended.shape, "K, N")
        return self._settled_plainly(*self.dynamics.step(self._state, action, self._parameters))

    def _checked(self, action: Tensor) -> Tensor:
        """Actions as compiled code takes them."""
        space, lead = self.action_space, self._ended.shape
        if isinstance(space, Discrete):
            action = fitted("action", action, lead, torch.int64, "K, N")
            known = within(action.numpy(), space.n)
            return action if known else space.checked(action, lead, "K, N")
        action = space.checked(action, lead, "K, N")
        return fitted("action", action, (*lead, space.dim), self._state.dtype, "K, N, A")

    def close(self) -> None:
        """Nothing: it holds tensors alone."""

    def _settled(self, state: Tensor, reward: Tensor, terminated: Tensor) -> EnvStep:
        """What follows the dynamics' step, in one compiled call."""
        lead, kind = self._ended.shape, self._state.dtype
        state = fitted("dynamics: state", state, self._state.shape, kind, "K, N, S")
        reward = fitted("dynamics: reward", reward, lead, kind, "K, N")
        terminated = fitted("dynamics: terminated", terminated, lead, torch.bool, "K, N")
        uniform = self._no_push
        if self._push_probability > 0:
            uniform = self._pushes.draw().numpy()
        truncated, ended, count = np.empty(lead, bool), np.empty(lead, bool), np.empty(lead, int)
        settle(
            self._state.numpy(), self._ended.numpy(), self._step_count.numpy(),
            uniform, self._push_probability, self._push_scales, self.max_episode_steps,
            state.numpy(), reward.numpy(), terminated.numpy(), truncated, ended, count,
        )  # fmt: skip
        self._state, self._ended = state, torch.from_numpy(ended)
        self._step_count = torch.from_numpy(count)
        obs = self.dynamics.observe(state, self._parameters)
        return EnvStep(obs, reward, terminated, torch.from_numpy(truncated))

    def _settled_plainly(self, state: Tensor, reward: Tensor, terminated: Tensor) -> EnvStep:
        """The same by PyTorch's own operations, on any device."""
        running = ~self._ended
        if self._push_probability > 0:
            state = self._pushed(state, terminated)
        self._state = torch.where(running[..., None], state, self._state)
        self._step_count = self._step_count + running
        terminated = terminated & running
        truncated = (self._step_count >= self.max_episode_steps) & running & ~terminated
        self._ended = self._ended | terminated | truncated
        obs = self.dynamics.observe(self._state, self._parameters)
        return EnvStep(obs, reward * running, terminated, truncated)

    def _pushed(self, state: Tensor, terminated: Tensor) -> Tensor:
        uniform = self._pushes.draw()
        pushed = (uniform[..., :1] < self._push_probability) & ~terminated[..., None]
        # A uniform number of unit variance is as good a push as a normal one.
        push = (uniform[..., 1:] - 0.5) * 12**0.5 * self._push_scale
        return torch.where(pushed, state + push, state)


class _Numbers:
    """A stream's numbers for each time step, drawn a block at a time."""

    def __init__(self, noise: TaskNoise, shape: tuple[int, int], like: Tensor) -> None:
        self._noise, self._shape, self._like = noise, shape, like
        self._block: list[Tensor] = []

    def draw(self) -> Tensor:
        """The next step's, (K, *shape)."""
        if not self._block:
            drawn = self._noise.uniform(NOISE_BLOCK, *self._shape).to(self._like)
            self._block.extend(reversed(drawn.unbind(0)))
        return self._block.pop()


@compiled
def within(action, n):  # type: ignore[no-untyped-def]
    """Whether all actions (K, N) are from 0 to n - 1."""
    for k in range(action.shape[0]):
        for i in range(action.shape[1]):
            if not 0 <= action[k, i] < n:
                return False
    return True


@compiled
def settle(  # type: ignore[no-untyped-def]
    before, was_ended, old_count, uniform, push_probability, push_scale, max_steps,
    state, reward, terminated, truncated, ended, step_count,
):  # fmt: skip
    """Push, hold what had ended where it was, count, and cut at the time limit.

    What the dynamics gave (state, reward, terminated) is changed in place; the last three are
    filled. ``uniform`` are numbers for the pushes (K, N, 1 + S), or (K, N, 0) for none.
    """
    for k in range(state.shape[0]):
        for n in range(state.shape[1]):
            step_count[k, n], ended[k, n], truncated[k, n] = old_count[k, n], True, False
            if was_ended[k, n]:
                state[k, n], reward[k, n], terminated[k, n] = before[k, n], 0, False
                continue
            step_count[k, n] += 1
            if terminated[k, n]:
                continue
            if uniform.shape[2] > 0 and uniform[k, n, 0] < push_probability:
                for i in range(state.shape[2]):
                    # A uniform number of unit variance is as good a push as a normal one.
                    state[k, n, i] += (uniform[k, n, 1 + i] - 0.5) * 12**0.5 * push_scale[i]
            truncated[k, n] = step_count[k, n] >= max_steps
            ended[k, n] = truncated[k, n]
