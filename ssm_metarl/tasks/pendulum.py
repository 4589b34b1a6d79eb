"""Pendulum swing-up with hidden physics: rod, gravity, damping, a motor's gain and its sign.

Place in the flow: stage 1, a family of tasks (`task_family`). The equations are those of
Gymnasium's ``Pendulum-v1`` (semi-implicit Euler, 0.05 s) with friction in the joint and a motor
that gives ``sign * gain`` times the torque that is asked for; at the default parameters a step
equals Gymnasium's within 1e-9 in float64. Of the state (theta, dtheta/dt), theta = 0 upright, a
task shows (cos theta, sin theta, dtheta/dt), and::

    I dtheta'/dt = m g l/2 sin theta + sign gain u - c dtheta/dt      I = m l^2 / 3, |u| <= 2 N m
    reward = -(theta^2 + 0.1 (dtheta/dt)^2 + 0.001 u^2)               theta in [-pi, pi)

The torque is too weak to lift the pendulum at once. The traps: the reflection leaves the cosine as
it is; the reward charges the torque that was asked for, clipped, not what the motor makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ssm_metarl.action_space import Continuous
from ssm_metarl.compiled import compiled
from ssm_metarl.tasks.actuator import flip, signed
from ssm_metarl.tasks.control import linearised, lqr
from ssm_metarl.tasks.dynamics import CompiledDynamics, Parameters, Stepped
from ssm_metarl.tasks.sketch import Shape, Sketch
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import TaskParameter, Uniform

TIME_STEP = 0.05  # s
MAX_TORQUE = 2.0  # N m, asked for
MAX_SPEED = 8.0  # rad/s


@compiled
def _step(  # type: ignore[no-untyped-def]
    state, action, mass, length, gravity, gain, sign, damping, after, reward, terminated
):
    """`PendulumDynamics.step_plainly`, number by number."""
    for k in range(state.shape[0]):
        for n in range(state.shape[1]):
            theta, speed = state[k, n]
            torque = min(max(action[k, n, 0], -MAX_TORQUE), MAX_TORQUE)
            angle = theta + math.pi
            angle -= 2 * math.pi * math.floor(angle / (2 * math.pi)) + math.pi
            reward[k, n] = -(angle * angle + 0.1 * speed * speed + 0.001 * torque * torque)
            driven = sign[k, n] * gain[k, n] * torque - damping[k, n] * speed
            acceleration = (
                1.5 * gravity[k, n] / length[k, n] * math.sin(theta)
                + 3 / (mass[k, n] * length[k, n] * length[k, n]) * driven
            )
            speed = min(max(speed + TIME_STEP * acceleration, -MAX_SPEED), MAX_SPEED)
            after[k, n, 0] = theta + TIME_STEP * speed
            after[k, n, 1] = speed


class PendulumDynamics(CompiledDynamics):
    """Batched pendulum. State = (theta [rad], dtheta/dt), observation = (cos, sin, dtheta/dt).

    Action: the torque asked for [N m], clipped to [-2, 2]. Parameters: mass [kg], length [m],
    gravity [m/s^2], gain, sign and damping [N m s]. No episode ends before its time limit.
    """

    obs_dim = 3
    action_space = Continuous(1, -MAX_TORQUE, MAX_TORQUE)
    max_episode_steps = 200
    push_scale: Sequence[float] = (0.0, 0.5)
    start_spread: Sequence[float] = (0.0, 4.0)
    kernel = staticmethod(_step)
    names = ("mass", "length", "gravity", "gain", "sign", "damping")

    def initial_state(self, uniform: Tensor) -> Tensor:
        """Any angle, and a speed uniform in [-1, 1), as in Gymnasium; shape (..., 2)."""
        return (2 * uniform - 1) * uniform.new_tensor([math.pi, 1.0])

    def observe(self, state: Tensor, parameters: Parameters) -> Tensor:
        """Cosine, sine and speed, in every task, shape (..., 3)."""
        theta, speed = state.unbind(-1)
        return torch.stack((torch.cos(theta), torch.sin(theta), speed), dim=-1)

    def step_plainly(self, state: Tensor, action: Tensor, parameters: Parameters) -> Stepped:
        """See `CompiledDynamics`."""
        theta, speed = state.unbind(-1)
        torque = action[..., 0].clamp(-MAX_TORQUE, MAX_TORQUE)
        angle = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        reward = -(angle.square() + 0.1 * speed.square() + 0.001 * torque.square())
        mass, length = parameters["mass"], parameters["length"]
        driven = parameters["sign"] * parameters["gain"] * torque - parameters["damping"] * speed
        acceleration = (
            1.5 * parameters["gravity"] / length * torch.sin(theta)
            + 3 / (mass * length.square()) * driven
        )
        speed = (speed + TIME_STEP * acceleration).clamp(-MAX_SPEED, MAX_SPEED)
        state = torch.stack((theta + TIME_STEP * speed, speed), dim=-1)
        return state, reward, torch.zeros_like(reward, dtype=torch.bool)


STATE_COST = (1.0, 0.1)  # per rad^2, (rad/s)^2: the reward's own
TORQUE_COST = 0.001  # per (N m)^2


class PendulumExpert:
    """Swing up by energy, then hold by the linear-quadratic regulator (see `Expert`).

    Åström & Furuta 2000: torque along the speed while the energy is below that of the upright rest,
    against it while it is above. The regulator takes over where it can hold the pendulum within
    the motor's torque.
    """

    def __init__(self, tasks: Tasks) -> None:
        v = tasks.values
        self._inertia = (v["mass"] * v["length"].square() / 3)[:, None]
        self._weight = (v["mass"] * v["gravity"] * v["length"] / 2)[:, None]  # N m
        self._motor = (v["sign"] * v["gain"])[:, None]
        a, b = linearised(PendulumDynamics(), v, (0.0, 0.0), (0.0,))
        cost = torch.diag(torch.tensor(STATE_COST, dtype=torch.float64))
        self._gain = lqr(a, b, cost, TORQUE_COST)[:, None]

    def __call__(self, obs: Tensor, action: Tensor, episode_start: Tensor) -> Tensor:
        """Torques (T, K, N, 1), within what the motor takes."""
        cos, sin, speed = obs.unbind(-1)
        theta = torch.atan2(sin, cos)
        energy = 0.5 * self._inertia.to(obs) * speed.square() + self._weight.to(obs) * cos
        missing = self._weight.to(obs) - energy
        motor = self._motor.to(obs)
        pumping = MAX_TORQUE * torch.tanh(4 * missing) * torch.sign(speed * motor)
        holding = -(self._gain.to(obs) * torch.stack((theta, speed), dim=-1)).sum(-1)
        holds = (holding.abs() < 1.5 * MAX_TORQUE) & (cos > 0.8)
        torque = torch.where(holds, holding, pumping).clamp(-MAX_TORQUE, MAX_TORQUE)
        return torque[..., None]


def draw(state: Sequence[float], parameters: Mapping[str, float]) -> list[Shape]:
    """The rod, in metres, upright at theta = 0."""
    theta, length = state[0], parameters["length"]
    # Gymnasium turns positive angles to the left.
    tip = (-length * math.sin(theta), length * math.cos(theta))
    return [
        Shape("line", ((0.0, 0.0), tip), 0.12, "part"),
        Shape("disc", ((0.0, 0.0),), 0.08, "joint"),
    ]


# A swing-up is soon over and its rewards are dense: a shorter sight, and the expert's example.
LEARNING: dict[str, Any] = {"gamma": 0.95, "gae_lambda": 0.95, "imitation_coef": 0.1}

# fmt: off
PARAMETERS = (  # name, unit, default, in distribution, out of distribution, what makes sense
    TaskParameter("mass", "kg", 1.0, Uniform(0.7, 1.3), Uniform(0.5, 0.7, also=((1.3, 1.6),)),
                  (0.05, 20.0), "mass of the rod"),
    TaskParameter("length", "m", 1.0, Uniform(0.8, 1.2), Uniform(0.6, 0.8, also=((1.2, 1.4),)),
                  (0.1, 10.0), "length of the rod"),
    TaskParameter("gravity", "m/s^2", 10.0, Uniform(8, 12), Uniform(6, 8, also=((12, 14),)),
                  (0.1, 100.0), "gravitational acceleration"),
    TaskParameter("gain", "", 1.0, Uniform(0.7, 1.4), Uniform(0.5, 0.7, also=((1.4, 1.8),)),
                  (0.01, 100.0), "torque of the motor per torque asked for"),
    signed("sign", "direction in which the motor turns on a positive torque"),
    TaskParameter("damping", "N m s", 0.0, Uniform(0.0, 0.1), Uniform(0.1, 0.2),
                  (0.0, 10.0), "friction in the joint"),
)
# fmt: on

PENDULUM = TaskFamily(
    name="pendulum",
    gymnasium_id="Pendulum-v1",
    dynamics=PendulumDynamics(),
    obs_names=("cos_theta", "sin_theta", "theta_dot"),
    obs_units=("", "", "rad/s"),
    obs_scale=(1.0, 1.0, 0.125),
    reflection=(1.0, -1.0, -1.0),
    effect_dims=(2,),
    time_step=TIME_STEP,
    # (pi^2 + 0.1 * 8^2 + 0.001 * 2^2) * 200 steps
    return_bounds=(-3255.6, 0.0),
    disturbances={"flip": flip},
    recipes={
        "meta_rl": {
            **LEARNING,
            "outer_lr": 0.002,
            "update_epochs": 4,
            "max_env_steps": 6_000_000,
            "spread_starts": 0.0,
            "push_probability": 0.0,
        },
        "in_context": {**LEARNING, "max_env_steps": 4_000_000},
    },
    experts={"energy": PendulumExpert},
    sketch=Sketch((-1.7, 1.7, -1.7, 1.7), draw),
    parameters=PARAMETERS,
)
