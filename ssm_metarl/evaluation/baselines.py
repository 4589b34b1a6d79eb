"""What a controller scores that is *told* what a policy must find out: yardsticks for CartPole.

Place in the flow: stage 7, arms that the evaluator runs beside the policy's. Each is an
`Actor`, deterministic, with no state.

- `lqr_actor`: a linear-quadratic regulator for each task's own parameters, the sign included.
  CartPole is linearised at the upright rest, the discrete Riccati equation solved, and the
  optimal force ``u = -K s`` replaced by the full push in its direction. For the linear model
  that is no approximation of a step: of two pushes of equal size, the one on the side of
  ``-K s`` has the smaller cost-to-go ``s'^T P s'``.
- `sign_probe_actor`: one fixed controller for all tasks, which knows only the actuator's sign,
  as read from the support data. What it scores needs no adaptation beyond one bit.

The traps. The directions: a pole that leans to the right (theta > 0) must be pushed to the
*right*, and so must a cart that stands too far right, to make the pole lean back; all gains here
are positive. The sign: ``force`` is what the cart feels, so action 1 means force > 0 only where
the task's sign is +1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.tasks.cartpole import CART_MASS, TIME_STEP, CartPoleDynamics
from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.types import Actor, Rollout

SIGN_PROBE_GAIN = (0.0055, 0.015, 23.0, 1.39)
"""Force per x [m], dx/dt [m/s], theta [rad], dtheta/dt [rad/s]; only its direction matters."""

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
        tasks: K tasks of CartPole.

    Returns:
        Shape (K, 4), float64, in full pushes per unit of the state.

    Raises:
        ValueError: The tasks are not CartPole's, or its observations are not its state.
    """
    # A subclass may observe something else than the state: the exact type is asked for.
    if type(tasks.family.dynamics) is not CartPoleDynamics:
        raise ValueError(
            f"lqr: expected tasks with the dynamics of 'cartpole', received family "
            f"{tasks.family.name!r}"
        )
    a, b = linearised_cartpole(tasks)
    p = solve_riccati(a, b, torch.diag(torch.tensor(STATE_COST, dtype=a.dtype)), PUSH_COST)
    return -(b.mT @ p @ a / (PUSH_COST + b.mT @ p @ b))[:, 0]


def _linear_actor(gain: Tensor, sign: Tensor, num_envs: int) -> Actor:
    """Full push towards ``gain . obs``; gain (K, 4), sign (K,)."""
    # Action 1 pushes along +sign, so the sign turns a wanted force into a wanted action.
    signed = (gain * sign[:, None].to(gain))[:, None].expand(-1, num_envs, -1)  # (K, N, 4)

    def act(obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        wanted = (obs * signed.to(obs)).sum(-1)  # (K, N)
        return (wanted > 0).long(), torch.zeros_like(wanted)

    return act


def lqr_actor(tasks: Tasks, num_envs: int) -> Actor:
    """A regulator told each task's parameters, the actuator's sign included.

    Args:
        tasks: K tasks of CartPole.
        num_envs: N, environments per task.

    Returns:
        ``(obs (K, N, 4), reset (K, N)) -> (action (K, N) int64, log_prob (K, N) = 0)``.

    Raises:
        ValueError: The tasks are not CartPole's.
    """
    return _linear_actor(lqr_gain(tasks), tasks.values["sign"], num_envs)


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
    return _linear_actor(gain.expand(len(sign), -1), sign, num_envs)
