"""CartPole behind unknown wiring: sensors in any order, sign and gain, an actuator with a delay.

Place in the flow: stage 1, a family of tasks (`task_family`). The physics are those of `cartpole`.
Of its state s and the chosen actions u = 2 a - 1 a task shows and does::

    observation[place_i] = sensor_sign_i gain_i s_i        i = x, dx/dt, theta, dtheta/dt
    force at step t      = sign force u_{t - delay}        0 before the first action of an episode

`order` names which of the 24 ways to place the sensors a task has. In `cartpole` one fixed
controller that is told one bit is enough. Here no fixed linear controller keeps the pole up
(`tests/tasks` measures it), and `ScrambledExpert`, which is told the wiring, does.

The trap: an action that waits in the line is part of the state. Whoever rates an action by the
next observation rates another one wherever there is a delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.compiled import compiled
from ssm_metarl.entrance import fitted, shaped
from ssm_metarl.tasks.actuator import signed
from ssm_metarl.tasks.cartpole import CARTPOLE, CartPoleDynamics, CartPoleExpert
from ssm_metarl.tasks.dynamics import Parameters, Stepped, leading, spread
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.tasks.task_parameter import Choice, TaskParameter, Uniform

SENSORS = CARTPOLE.obs_names
LONGEST_DELAY = 3  # steps
STATE_DIM = len(SENSORS) + LONGEST_DELAY
PLACES = np.array(list(permutations(range(len(SENSORS)))))
"""Where each sensor stands in the observation, for every value of `order`, shape (24, 4)."""
WIRING = (
    "order",
    *(f"sensor_sign_{name}" for name in SENSORS),
    *(f"gain_{name}" for name in SENSORS),
)


class CartPoleScrambledDynamics:
    """Batched. State = (x, dx/dt, theta, dtheta/dt, u_{t-1}, u_{t-2}, u_{t-3})."""

    obs_dim = len(SENSORS)
    action_space = Discrete(2)
    max_episode_steps = 500
    push_scale: Sequence[float] = (*CartPoleDynamics.push_scale, *(0.0,) * LONGEST_DELAY)
    start_spread: Sequence[float] = (*CartPoleDynamics.start_spread, *(0.0,) * LONGEST_DELAY)

    def __init__(self) -> None:
        self._cartpole = CartPoleDynamics()

    def initial_state(self, uniform: Tensor) -> Tensor:
        """As in `cartpole`, and no action waits; shape (..., 7)."""
        cart = self._cartpole.initial_state(uniform[..., : self.obs_dim])
        return torch.cat([cart, torch.zeros_like(uniform[..., self.obs_dim :])], dim=-1)

    def observe(self, state: Tensor, parameters: Parameters) -> Tensor:
        """What the sensors show, each at its place, shape (K, N, 4).

        Raises:
            ValueError: A shape does not fit, or there is no such order of sensors.
        """
        lead, kind = leading(state, STATE_DIM)
        if state.is_cpu:
            state = fitted("state", state, state.shape, kind, "K, N, 7")
            wiring = spread(WIRING, parameters, lead, kind)
            obs = state.new_empty(*lead, self.obs_dim)
            if not _sense(PLACES, state.numpy(), *wiring, obs.numpy()):
                raise ValueError(f"order: expected 0 to {len(PLACES) - 1} everywhere")
            return obs
        return self.observe_plainly(state, parameters)

    def observe_plainly(self, state: Tensor, parameters: Parameters) -> Tensor:
        """The same by PyTorch's own operations, on any device."""
        sensed = state[..., : self.obs_dim] * _factors(parameters)
        place = torch.from_numpy(PLACES).to(state.device)[parameters["order"].long()]
        return torch.empty_like(sensed).scatter_(-1, place, sensed)

    def step(self, state: Tensor, action: Tensor, parameters: Parameters) -> Stepped:
        """One step of 0.02 s; parameters are those of `cartpole` and delay [steps].

        Raises:
            ValueError: A shape does not fit.
        """
        lead, kind = leading(state, STATE_DIM)
        action = shaped("action", action, lead, torch.int64, "K, N")
        if state.is_cpu:
            spread(("sign", "delay"), parameters, lead, kind)  # what does not fit is refused here
        chosen = (2 * action - 1).to(state.dtype)[..., None]
        line = torch.cat([chosen, state[..., self.obs_dim :]], dim=-1)  # u_t, u_{t-1}, ...
        delay = parameters["delay"].long().expand(lead)
        try:
            acting = line.gather(-1, delay[..., None])[..., 0]
        except RuntimeError:
            raise ValueError(f"delay: expected 0 to {LONGEST_DELAY} steps everywhere") from None
        # Action 1 of CartPole pushes with sign * force: the sign carries what arrives now.
        arrived = {**parameters, "sign": parameters["sign"] * acting}
        cart = state[..., : self.obs_dim].contiguous()
        after, reward, terminated = self._cartpole.step(cart, torch.ones_like(action), arrived)
        return torch.cat([after, line[..., :LONGEST_DELAY]], dim=-1), reward, terminated


@compiled
def _sense(  # type: ignore[no-untyped-def]
    places, state, order, sign_0, sign_1, sign_2, sign_3, gain_0, gain_1, gain_2, gain_3, obs
):
    """`CartPoleScrambledDynamics.observe_plainly`, number by number; False if it cannot be."""
    for k in range(state.shape[0]):
        for n in range(state.shape[1]):
            if not 0 <= order[k, n] < len(places):
                return False
            place = places[int(order[k, n])]
            obs[k, n, place[0]] = sign_0[k, n] * gain_0[k, n] * state[k, n, 0]
            obs[k, n, place[1]] = sign_1[k, n] * gain_1[k, n] * state[k, n, 1]
            obs[k, n, place[2]] = sign_2[k, n] * gain_2[k, n] * state[k, n, 2]
            obs[k, n, place[3]] = sign_3[k, n] * gain_3[k, n] * state[k, n, 3]
    return True


class ScrambledExpert:
    """See `Expert`; it is told the wiring, too."""

    def __init__(self, tasks: Tasks) -> None:
        self._regulator, self._physics = CartPoleExpert(tasks), CartPoleDynamics()
        self._values = tasks.values
        self._place = torch.from_numpy(PLACES)[tasks.values["order"].long()]  # (K, 4)
        self._factor = _factors(tasks.values)[:, None]  # (K, 1, 4)

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


def _factors(parameters: Parameters) -> Tensor:
    """Sign and gain of each sensor, shape (..., 4)."""
    factors = [parameters[f"sensor_sign_{n}"] * parameters[f"gain_{n}"] for n in SENSORS]
    return torch.stack(factors, dim=-1)


def _chosen(action: Tensor, episode_start: Tensor, ago: int) -> Tensor:
    """2 a - 1 of so many steps before, 0 before the episode, shape (T, K, N)."""
    code = 2 * action - 1
    for _ in range(ago):
        code = torch.cat([torch.zeros_like(code[:1]), code[:-1]]).masked_fill(episode_start, 0)
    return code


ORDERS, GAINS = Choice(tuple(map(float, range(len(PLACES))))), Uniform(0.5, 2)
OTHER_GAINS = Uniform(0.25, 0.5, also=((2.0, 4.0),))
DELAYS, OTHER_DELAYS = Choice((0.0, 1.0, 2.0)), Choice((float(LONGEST_DELAY),))
WIRES = (
    TaskParameter("order", "", 0.0, ORDERS, ORDERS,
                  meaning="which of the 24 orders the sensors stand in"),
    *(signed(f"sensor_sign_{name}", f"sign of the sensor of {name}") for name in SENSORS),
    *(TaskParameter(f"gain_{name}", "", 1.0, GAINS, OTHER_GAINS, (0.01, 100.0),
                    f"gain of the sensor of {name}") for name in SENSORS),
    TaskParameter("delay", "steps", 0.0, DELAYS, OTHER_DELAYS,
                  meaning="time between the choice of an action and its push"),
)  # fmt: skip

CARTPOLE_SCRAMBLED = TaskFamily(
    name="cartpole_scrambled",
    dynamics=CartPoleScrambledDynamics(),
    obs_scale=(0.2,) * len(SENSORS),
    obs_names=tuple(f"sensor_{place}" for place in range(len(SENSORS))),
    effect_dims=tuple(range(len(SENSORS))),
    reflection=(-1.0,) * len(SENSORS),
    time_step=CARTPOLE.time_step,
    dead_time=LONGEST_DELAY,
    return_bounds=CARTPOLE.return_bounds,
    solved=CARTPOLE.solved,
    disturbances=CARTPOLE.disturbances,
    experts={"lqr": ScrambledExpert},
    sketch=CARTPOLE.sketch,
    parameters=(*CARTPOLE.parameters, *WIRES),
)
