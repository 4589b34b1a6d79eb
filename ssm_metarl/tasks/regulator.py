"""Told experts: regulators that know a task's parameters, and what they would do in a rollout.

Place in the flow: stage 1, of the families whose physics are linearised here. `meta_rl.in_context`
lets a policy imitate them in training, where the parameters are known; `evaluation.baselines` runs
them as the arm ``lqr``: what a policy could score if it knew its task.

- `CartPoleExpert`: the linear-quadratic regulator of the linearised physics, rounded to a full push
  of the better direction. For a single push and its opposite after the same state, the one on the
  side of ``-K s`` has the smaller cost-to-go ``s'^T P s``.
- `ScrambledExpert`: the same behind unknown wiring. It reads the state off the sensors, and acts on
  where the plant will be when the action arrives: the actions in the line are run through the
  physics first.

The traps. The directions: a pole that leans to the right (theta > 0) must be pushed to the
*right*, and so must a cart that stands too far right, to make the pole lean back; all gains here
are positive. The sign: ``force`` is what the cart feels, so action 1 means force > 0 only where
the task's sign is +1.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ssm_metarl.tasks.cartpole import CART_MASS, TIME_STEP, CartPoleDynamics
from ssm_metarl.tasks.cartpole_scrambled import (
    LONGEST_DELAY,
    PLACES,
    SENSORS,
    CartPoleScrambledDynamics,
)
from ssm_metarl.tasks.task_family import TaskFamily, Tasks


class Expert(Protocol):
    """A controller of K tasks that was told their parameters."""

    def __call__(self, obs: Tensor, action: Tensor, episode_start: Tensor) -> Tensor:
        """What it would do at each step of a rollout.

        Args:
            obs: Before each step, shape (T, K, N, O).
            action: What was done there, shape (T, K, N), int64; the last step's is not looked at.
            episode_start: True at the first step of an episode, shape (T, K, N).

        Returns:
            Actions, shape (T, K, N), int64.
        """


def has_expert(family: TaskFamily) -> bool:
    """Whether there is an expert for a family: for the physics of this package, not for others."""
    return type(family.dynamics) in EXPERTS


def expert_for(tasks: Tasks) -> Expert:
    """The expert of K tasks.

    Raises:
        ValueError: There is none for their family.
    """
    if not has_expert(tasks.family):
        raise ValueError(
            f"lqr: expected tasks with the dynamics of 'cartpole' or 'cartpole_scrambled', "
            f"received family {tasks.family.name!r}"
        )
    return EXPERTS[type(tasks.family.dynamics)](tasks)


STATE_COST = (1.0, 1.0, 1.0, 1.0)  # per m^2, (m/s)^2, rad^2, (rad/s)^2
PUSH_COST = 10.0
"""Per (full push)^2. On 3,000 OOD tasks of CartPole: mean 496.3 at 0.1, 497.0 at 1, 497.2 at 10."""

DOUBLINGS = 20  # 2**20 Riccati steps: 6 hours of control, far past convergence


def linearised_cartpole(tasks: Tasks) -> tuple[Tensor, Tensor]:
    """The CartPole step at the upright rest, as ``s' = A s + B u``.

    ``u`` in [-1, 1] is the force on the cart in units of the task's own force, positive to the
    right: the actuator's sign is not part of it.

    Args:
        tasks: K tasks.

    Returns:
        A, shape (K, 4, 4), and B, shape (K, 4, 1), float64.
    """
    mass, length = tasks.values["mass"], tasks.values["length"]
    total_mass = CART_MASS + mass
    # Linear in theta and force: theta'' = (g theta - force / M) / inertia,
    # x'' = force / M - (m l / M) theta''.
    inertia = length * (4.0 / 3.0 - mass / total_mass)  # m
    coupling = mass * length / total_mass  # m
    lean = tasks.values["gravity"] / inertia  # theta'' per rad
    push = tasks.values["force"] / total_mass  # x'' of a full push, were there no pole
    a = torch.zeros(len(tasks), 4, 4, dtype=torch.float64)
    a[:, 0, 1] = a[:, 2, 3] = 1.0
    a[:, 1, 2] = -coupling * lean
    a[:, 3, 2] = lean
    b = torch.zeros(len(tasks), 4, 1, dtype=torch.float64)
    b[:, 1, 0] = push + coupling * push / inertia
    b[:, 3, 0] = -push / inertia
    return torch.eye(4, dtype=torch.float64) + TIME_STEP * a, TIME_STEP * b


def solve_riccati(a: Tensor, b: Tensor, state_cost: Tensor, push_cost: float) -> Tensor:
    """The stabilising solution P of ``P = Q + A^T P (I + G P)^-1 A``, ``G = B B^T / r``.

    Structure-preserving doubling (Chu, Fan, Lin & Wang 2004): its n-th iterate is the 2^n-th of
    the plain recursion, which on weak actuators needs thousands.

    Args:
        a: Shape (K, n, n).
        b: Shape (K, n, 1).
        state_cost: Q, shape (n, n).
        push_cost: r > 0.

    Returns:
        Cost-to-go matrices P, shape (K, n, n).
    """
    g, h = b @ b.mT / push_cost, state_cost.expand_as(a)
    identity = torch.eye(a.shape[-1], dtype=a.dtype)
    for _ in range(DOUBLINGS):
        inverse = torch.linalg.inv(identity + g @ h)
        # The right-hand side is evaluated with the old a, g and h.
        a, g, h = a @ inverse @ a, g + a @ inverse @ g @ a.mT, h + a.mT @ h @ inverse @ a
    return h


def lqr_gain(tasks: Tasks) -> Tensor:
    """The regulator's gain for each task: wanted force ``gain . state``, positive to the right.

    Args:
        tasks: K tasks with CartPole's physics.

    Returns:
        Shape (K, 4), float64, in full pushes per unit of the state.
    """
    a, b = linearised_cartpole(tasks)
    p = solve_riccati(a, b, torch.diag(torch.tensor(STATE_COST, dtype=a.dtype)), PUSH_COST)
    return -(b.mT @ p @ a / (PUSH_COST + b.mT @ p @ b))[:, 0]


class CartPoleExpert:
    """See `Expert`; the observation is the state.

    Args:
        tasks: K tasks of CartPole.
    """

    def __init__(self, tasks: Tasks) -> None:
        # Action 1 pushes along +sign, so the sign turns a wanted force into a wanted action.
        self._gain = (lqr_gain(tasks) * tasks.values["sign"][:, None])[:, None]  # (K, 1, 4)

    def __call__(self, obs: Tensor, action: Tensor, episode_start: Tensor) -> Tensor:
        """A full push towards ``gain . state``."""
        return ((obs * self._gain.to(obs)).sum(-1) > 0).long()


class ScrambledExpert:
    """See `Expert`; it is told the wiring, too.

    Args:
        tasks: K tasks of CartPole behind unknown wiring.
    """

    def __init__(self, tasks: Tasks) -> None:
        values = tasks.values
        self._regulator, self._physics = CartPoleExpert(tasks), CartPoleDynamics()
        self._values = values
        self._place = torch.from_numpy(PLACES)[values["order"].long()]  # (K, 4)
        factors = [values[f"sensor_sign_{n}"] * values[f"gain_{n}"] for n in SENSORS]
        self._factor = torch.stack(factors, dim=-1)[:, None]  # (K, 1, 4)

    def __call__(self, obs: Tensor, action: Tensor, episode_start: Tensor) -> Tensor:
        """What the regulator does where the plant will be when an action arrives."""
        steps, tasks, envs, _ = obs.shape
        place = self._place[:, None].expand(steps, -1, envs, -1).to(obs.device)
        cart = obs.gather(-1, place) / self._factor.to(obs)
        rows = cart.transpose(0, 1).flatten(1, 2)  # (K, T N, 4): the physics know no time axis
        parameters = {
            n: v.to(rows)[:, None].expand(-1, rows.shape[1]).contiguous()
            for n, v in self._values.items()
        }
        push = torch.ones(rows.shape[:2], dtype=torch.int64, device=obs.device)
        # Whatever was chosen `delay` steps ago arrives first.
        for ago in range(LONGEST_DELAY, 0, -1):
            waiting = _chosen(action, episode_start, ago).to(rows)
            arriving = parameters["sign"] * waiting.transpose(0, 1).flatten(1, 2)
            after, _, _ = self._physics.step(rows, push, {**parameters, "sign": arriving})
            rows = torch.where((parameters["delay"] >= ago)[..., None], after, rows)
        ahead = rows.view(tasks, steps, envs, -1).transpose(0, 1)
        return self._regulator(ahead, action, episode_start)


def _chosen(action: Tensor, episode_start: Tensor, ago: int) -> Tensor:
    """2 a - 1 of so many steps before, 0 before the episode, shape (T, K, N)."""
    code = 2 * action - 1
    for _ in range(ago):
        code = torch.cat([torch.zeros_like(code[:1]), code[:-1]]).masked_fill(episode_start, 0)
    return code


EXPERTS: dict[type, type[CartPoleExpert] | type[ScrambledExpert]] = {
    # A subclass may observe something else than the state: the exact type is asked for.
    CartPoleDynamics: CartPoleExpert,
    CartPoleScrambledDynamics: ScrambledExpert,
}
