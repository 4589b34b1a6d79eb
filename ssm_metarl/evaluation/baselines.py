"""What a controller scores that is *told* what a policy must find out: yardsticks for CartPole.

Place in the flow: stage 7, arms that the evaluator runs beside the policy's. Each is an `Actor`
without chance in it.

- `expert_actor`: the first expert that the family declares, told every parameter of its task.
- `sign_probe_actor`: one fixed controller for all tasks, which knows only the actuator's sign,
  as read from the support data. What it scores needs no adaptation beyond one bit.

The trap: all gains push to the side that the pole leans to, and action 1 does that only where the
task's sign is +1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.env_runner.worlds import observation_and_action
from ssm_metarl.tasks.task_family import Expert, Tasks, teacher
from ssm_metarl.types import Actor, Rollout

SIGN_PROBE_GAIN = (0.0055, 0.015, 23.0, 1.39)
"""Force per x [m], dx/dt [m/s], theta [rad], dtheta/dt [rad/s]; only its direction matters."""


class ExpertActor:
    """An expert as an actor: it remembers the actions that may still be under way.

    Args:
        expert: Of K tasks.
        tasks: They.
        num_envs: N.
    """

    def __init__(self, expert: Expert, tasks: Tasks, num_envs: int) -> None:
        self._expert = expert
        _, space = observation_and_action(tasks.family)
        shape = (tasks.family.dead_time, len(tasks), num_envs)
        self._nothing = (
            torch.zeros(1, *shape[1:], dtype=torch.int64)
            if isinstance(space, Discrete)
            else torch.zeros(1, *shape[1:], space.dim)
        )
        self._actions = self._nothing.repeat(shape[0], *(1,) * (self._nothing.dim() - 1))
        self._starts = torch.ones(shape, dtype=torch.bool)

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N[, A]) for observations (K, N, O), and 0."""
        starts = torch.cat([self._starts, reset[None]])
        actions = torch.cat([self._actions, self._nothing])
        action = self._expert(obs.expand(len(starts), *obs.shape), actions, starts)[-1]
        self._actions = torch.cat([self._actions, action[None]])[1:]
        self._starts = starts[1:]
        return action, torch.zeros(obs.shape[:2])


def expert_actor(tasks: Tasks, num_envs: int) -> Actor:
    """The family's first expert, told each task's parameters.

    Args:
        tasks: K tasks of a family with an expert.
        num_envs: N, environments per task.

    Returns:
        ``(obs (K, N, O), reset (K, N)) -> (action (K, N[, A]), log_prob (K, N) = 0)``.

    Raises:
        ValueError: There is no expert for these tasks.
    """
    return ExpertActor(teacher(tasks), tasks, num_envs)


def read_sign(support: Rollout) -> Tensor:
    """Which way action 1 pushes, from how the cart's velocity changed.

    The sum over taken steps of ``(2 a - 1) (dx/dt after - before)``. Near the upright the pole
    changes the cart's velocity much less than the actuator does, so even five random steps
    suffice. The actions are not centred: that would throw away a support with one action only.

    Args:
        support: Steps with observation (x, dx/dt, theta, dtheta/dt), shape (T, K, N, 4), and
            actions 0 or 1; whole episodes or parts of them.

    Returns:
        +1 or -1 for each task, shape (K,), in the type of the observations; +1 where the data
        say nothing.
    """
    change = support.next_obs[..., 1] - support.obs[..., 1]  # (T, K, N), m/s
    evidence = (2 * support.action - 1) * change
    # Masked steps may hold anything, NaN too, so they are replaced and not multiplied by zero.
    total = torch.where(support.mask, evidence, torch.zeros_like(evidence)).sum(dim=(0, 2))
    return torch.where(total < 0, -torch.ones_like(total), torch.ones_like(total))


def sign_probe_actor(support: Rollout, num_envs: int) -> Actor:
    """One fixed robust controller (`SIGN_PROBE_GAIN`), told the sign that the support shows.

    Args:
        support: Each task's support data, T x K x N' steps.
        num_envs: N, environments per task that the actor will act in.

    Returns:
        ``(obs (K, N, 4), reset (K, N)) -> (action (K, N) int64, log_prob (K, N) = 0)``.
    """
    sign = read_sign(support)
    gain = torch.tensor(SIGN_PROBE_GAIN, dtype=sign.dtype, device=sign.device)
    signed = (gain * sign[:, None])[:, None].expand(-1, num_envs, -1)  # (K, N, 4)

    def act(obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        wanted = (obs * signed.to(obs)).sum(-1)  # (K, N)
        return (wanted > 0).long(), torch.zeros_like(wanted)

    return act
