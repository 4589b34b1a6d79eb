"""CartPole with hidden physics: force, pole, gravity, and which way the actuator pushes.

Place in the flow: stage 1, a family of tasks (`task_family`). The equations are those of
Barto, Sutton & Anderson (1983) as Gymnasium's ``CartPole-v1`` integrates them (explicit Euler,
0.02 s): at the default parameters a step equals Gymnasium's within 1e-9 in float64.

The trap: Gymnasium caches ``total_mass`` and ``polemass_length``, so changing ``masscart`` on its
environment changes nothing. Here everything is computed from the parameters in every step.

Ranges are those of Packer et al. 2018 (arXiv 1810.12282); gravity and the hidden actuator sign
are added. A policy can read the sign off support data, remember it within an episode or, since a
push leaves a velocity behind, even play without memory in range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.compiled import compiled
from ssm_metarl.tasks.actuator import flip, signed
from ssm_metarl.tasks.control import linearised, lqr
from ssm_metarl.tasks.dynamics import CompiledDynamics, Parameters, Stepped
from ssm_metarl.tasks.sketch import Shape, Sketch
from ssm_metarl.tasks.task_family import Probe, TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import TaskParameter, Uniform
from ssm_metarl.types import Actor, Rollout

CART_MASS = 1.0  # kg
TIME_STEP = 0.02  # s
X_LIMIT = 2.4  # m
THETA_LIMIT = 12 * 2 * torch.pi / 360  # rad
STATE = ("x", "x_dot", "theta", "theta_dot")


@compiled
def _step(  # type: ignore[no-untyped-def]
    state, action, force, length, mass, gravity, sign, after, reward, terminated
):
    """`CartPoleDynamics.step_plainly`, number by number."""
    for k in range(state.shape[0]):
        for n in range(state.shape[1]):
            x, x_dot, theta, theta_dot = state[k, n]
            total_mass = CART_MASS + mass[k, n]
            mass_length = mass[k, n] * length[k, n]
            signed_force = sign[k, n] * force[k, n] * (2 * action[k, n] - 1)
            sin, cos = math.sin(theta), math.cos(theta)
            push = (signed_force + mass_length * theta_dot * theta_dot * sin) / total_mass
            theta_acc = (gravity[k, n] * sin - cos * push) / (
                length[k, n] * (4.0 / 3.0 - mass[k, n] * cos * cos / total_mass)
            )
            x_acc = push - mass_length * theta_acc * cos / total_mass
            after[k, n, 0] = x + TIME_STEP * x_dot
            after[k, n, 1] = x_dot + TIME_STEP * x_acc
            after[k, n, 2] = theta + TIME_STEP * theta_dot
            after[k, n, 3] = theta_dot + TIME_STEP * theta_acc
            terminated[k, n] = abs(after[k, n, 0]) > X_LIMIT or abs(after[k, n, 2]) > THETA_LIMIT


class CartPoleDynamics(CompiledDynamics):
    """Batched CartPole. State = observation = (x [m], dx/dt, theta [rad], dtheta/dt).

    Parameters: force [N], length [m], mass [kg], gravity [m/s^2] and sign. Every step's reward is
    1, the last one's too.
    """

    obs_dim = 4
    action_space = Discrete(2)
    max_episode_steps = 500
    push_scale: Sequence[float] = (0.0, 0.5, 0.0, 0.5)
    start_spread: Sequence[float] = (1.5, 1.0, 0.15, 1.0)
    kernel = staticmethod(_step)
    names = ("force", "length", "mass", "gravity", "sign")

    def initial_state(self, uniform: Tensor) -> Tensor:
        """Every component uniform in [-0.05, 0.05), as in Gymnasium; shape (..., 4)."""
        return uniform * 0.1 - 0.05

    def observe(self, state: Tensor, parameters: Parameters) -> Tensor:
        """The full state is observed, in every task."""
        return state

    def step_plainly(self, state: Tensor, action: Tensor, parameters: Parameters) -> Stepped:
        """See `CompiledDynamics`."""
        x, x_dot, theta, theta_dot = state.unbind(-1)
        mass, length = parameters["mass"], parameters["length"]
        total_mass = CART_MASS + mass
        mass_length = mass * length
        force = parameters["sign"] * parameters["force"] * (2 * action - 1)
        sin, cos = torch.sin(theta), torch.cos(theta)
        push = (force + mass_length * theta_dot.square() * sin) / total_mass
        theta_acc = (parameters["gravity"] * sin - cos * push) / (
            length * (4.0 / 3.0 - mass * cos.square() / total_mass)
        )
        x_acc = push - mass_length * theta_acc * cos / total_mass
        derivative = torch.stack((x_dot, x_acc, theta_dot, theta_acc), dim=-1)
        state = state + TIME_STEP * derivative
        terminated = (state[..., 0].abs() > X_LIMIT) | (state[..., 2].abs() > THETA_LIMIT)
        return state, torch.ones_like(x), terminated


STATE_COST = (1.0, 1.0, 1.0, 1.0)  # per m^2, (m/s)^2, rad^2, (rad/s)^2
PUSH_COST = 10.0
"""Per (full push)^2. On 3,000 OOD tasks of CartPole: mean 496.3 at 0.1, 497.0 at 1, 497.2 at 10."""


def linearised_cartpole(tasks: Tasks) -> tuple[Tensor, Tensor]:
    """The CartPole step at the upright rest, as ``s' = A s + B u``; (K, 4, 4) and (K, 4, 1).

    ``u`` in [-1, 1] is the force on the cart in units of the task's own force, positive to the
    right: the actuator's sign is not part of it.
    """
    a, b = linearised(CartPoleDynamics(), tasks.values, (0.0,) * len(STATE), 0.5)
    return a, b / 2 * tasks.values["sign"][:, None, None]


def lqr_gain(tasks: Tasks) -> Tensor:
    """Gain (K, 4) of the wanted force ``gain . state``, in full pushes, positive to the right."""
    a, b = linearised_cartpole(tasks)
    return -lqr(a, b, torch.diag(torch.tensor(STATE_COST, dtype=a.dtype)), PUSH_COST)


class CartPoleExpert:
    """The linear-quadratic regulator (see `Expert`); the observation is the state."""

    def __init__(self, tasks: Tasks) -> None:
        # Action 1 pushes along +sign, so the sign turns a wanted force into a wanted action.
        self._gain = (lqr_gain(tasks) * tasks.values["sign"][:, None])[:, None]  # (K, 1, 4)

    def __call__(self, obs: Tensor, action: Tensor, episode_start: Tensor) -> Tensor:
        """A full push towards ``gain . state``."""
        return ((obs * self._gain.to(obs)).sum(-1) > 0).long()


PROBE_GAIN = (0.0055, 0.015, 23.0, 1.39)
"""Force per x [m], dx/dt [m/s], theta [rad], dtheta/dt [rad/s]; only its direction matters."""


def read_sign(support: Rollout) -> Tensor:
    """Which way action 1 pushes in each task, +1 or -1 (K,), +1 where the data say nothing.

    The sign of the sum over taken steps of ``(2 a - 1) (dx/dt after - before)``. Near the upright
    the pole changes the cart's velocity much less than the actuator does, so five random steps
    suffice. The actions are not centred: that would throw away a support with one action only.
    """
    change = support.next_obs[..., 1] - support.obs[..., 1]  # (T, K, N), m/s
    evidence = (2 * support.action - 1) * change
    # Masked steps may hold anything, NaN too, so they are replaced and not multiplied by zero.
    total = torch.where(support.mask, evidence, torch.zeros_like(evidence)).sum(dim=(0, 2))
    return torch.where(total < 0, -torch.ones_like(total), torch.ones_like(total))


def sign_probe(support: Rollout, num_envs: int) -> Actor:
    """One fixed robust controller (`PROBE_GAIN`), told the sign that the support shows."""
    sign = read_sign(support)
    gain = torch.tensor(PROBE_GAIN, dtype=sign.dtype, device=sign.device)
    signed = (gain * sign[:, None])[:, None].expand(-1, num_envs, -1)  # (K, N, 4)

    def act(obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        wanted = (obs * signed.to(obs)).sum(-1)  # (K, N)
        return (wanted > 0).long(), torch.zeros_like(wanted)

    return act


def draw(state: Sequence[float], parameters: Mapping[str, float]) -> list[Shape]:
    """Rail, cart and pole, in metres; the pole is as long as it is."""
    x, _, theta, _ = state[:4]
    reach = 2 * parameters["length"]
    tip = (x + reach * math.sin(theta), reach * math.cos(theta))
    return [
        Shape("line", ((-X_LIMIT, 0.0), (X_LIMIT, 0.0)), 0.02, "ground"),
        Shape("box", ((x - 0.25, -0.15), (x + 0.25, 0.15)), 0.0, "body"),
        Shape("line", ((x, 0.0), tip), 0.08, "part"),
        Shape("disc", ((x, 0.0),), 0.06, "joint"),
    ]


# fmt: off
PARAMETERS = (  # name, unit, default, in distribution, out of distribution, what makes sense
    TaskParameter("force", "N", 10.0, Uniform(5, 15), Uniform(1, 5, also=((15, 20),)),
                  (0.1, 100.0), "strength of the actuator"),
    TaskParameter("length", "m", 0.5, Uniform(0.25, 0.75), Uniform(0.05, 0.25, also=((0.75, 1.0),)),
                  (0.01, 10.0), "half of the pole's length"),
    TaskParameter("mass", "kg", 0.1, Uniform(0.05, 0.5), Uniform(0.01, 0.05, also=((0.5, 1.0),)),
                  (0.001, 10.0), "mass of the pole"),
    TaskParameter("gravity", "m/s^2", 9.8, Uniform(7, 13), Uniform(3, 7, also=((13, 20),)),
                  (0.1, 100.0), "gravitational acceleration"),
    signed("sign", "direction in which the actuator pushes on action 1"),
)
# fmt: on

CARTPOLE = TaskFamily(
    name="cartpole",
    gymnasium_id="CartPole-v1",
    dynamics=CartPoleDynamics(),
    obs_scale=(0.4, 0.5, 5.0, 0.5),
    obs_names=STATE,
    obs_units=("m", "m/s", "rad", "rad/s"),
    reflection=(-1.0,) * len(STATE),
    effect_dims=(1, 3),
    time_step=TIME_STEP,
    return_bounds=(0.0, 500.0),
    solved=475.0,  # Gymnasium's own threshold
    disturbances={"flip": flip},
    experts={"lqr": CartPoleExpert},
    probes=(
        Probe(
            name="sign_probe",
            label="fixed gain, sign probed",
            definition="one fixed robust controller; the actuator's sign read off the support data",
            controller=sign_probe,
        ),
    ),
    sketch=Sketch((-2.6, 2.6, -0.4, 2.2), draw),
    parameters=PARAMETERS,
)
