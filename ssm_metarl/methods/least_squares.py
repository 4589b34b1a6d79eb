"""The textbook's answer to an unknown plant: identify it by least squares, regulate what was found.

Place in the flow: stage 7, a leaf of `method`, a yardstick: a self-tuning regulator (Astrom &
Wittenmark 1973, doi 10.1016/0005-1098(73)90073-3). It is told nothing of its task and learns
nothing from other tasks: what a policy that remembers has to be measured against wherever the plant
is nearly linear and free of noise. It knows that the two actions push in opposite directions,
through a line of at most the family's dead time d::

    z_{t+1} = z_t + W' (z_t, u_t, u_{t-1}, ..., u_{t-d})        W by `core.identification`
    u_t = sign(gain (z_t, u_{t-1}, ..., u_{t-d}))               linear-quadratic gain for that W

The trap: until there are as many steps as unknowns W is a guess, and acting on it excites nothing.
The first actions are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.core.identification import Identification
from ssm_metarl.methods.method import Data, Method, Model, Prepared
from ssm_metarl.tasks.control import lqr
from ssm_metarl.tasks.task_family import TaskFamily, Tasks

PROBE = (1.0, 1.0, -1.0, -1.0, 1.0, -1.0)
"""First actions of a trial: pushes that nearly cancel."""
REFRESH = 5
"""Steps between two looks at the gain, once a trial is past its first `ATTENTIVE` steps."""
ATTENTIVE = 30
PUSH_COST = 0.05
"""Of a full push, beside 1 for every squared scaled observation."""


@dataclass(frozen=True)
class LeastSquares(Method):
    """See `Method`."""

    name = "least_squares"
    label = "least squares, told nothing"
    definition = (
        "told nothing: identifies the plant by least squares and regulates what it found, carried "
        "through one trial"
    )
    trial = True

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        """Beside a model that remembers, on a plant with two actions."""
        if not model.policy.in_context:
            return "the model remembers nothing between episodes, as this does"
        _, space = family.spaces
        if not (isinstance(space, Discrete) and space.n == 2):
            return f"it regulates by two actions, and {family.name} has {space}"
        return None if family.obs_scale is not None else f"{family.name} declares no obs_scale"

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        """A regulator that knows nothing yet."""
        return Prepared(LeastSquaresActor(tasks.family, len(tasks), data.num_envs))


class LeastSquaresActor:
    """A regulator in K x N environments with two actions; it remembers from episode to episode."""

    def __init__(self, family: TaskFamily, num_tasks: int, num_envs: int) -> None:
        assert family.obs_scale is not None
        self._scale = torch.tensor(family.obs_scale, dtype=torch.float64)
        obs_dim, line = len(family.obs_scale), family.dead_time + 1
        rows = num_tasks * num_envs
        self._shape, self._step = (num_tasks, num_envs), 0
        self._plant = Identification(rows, obs_dim, line)
        self._before = torch.zeros(rows, obs_dim, dtype=torch.float64)
        self._actions = torch.zeros(rows, line, dtype=torch.float64)
        self._gain = torch.zeros(rows, obs_dim + line - 1, dtype=torch.float64)

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (K, N) for observations (K, N, O), and 0."""
        z, start = obs.flatten(0, 1).double() * self._scale, reset.flatten()
        self._actions = self._actions.masked_fill(start[:, None], 0.0)
        before = torch.where(start[:, None], z, self._before)
        first = start & (self._step == 0)
        columns = (z, before, self._actions, start, first)
        found = self._plant.update(*(x[None] for x in columns))[0]
        if self._step >= len(PROBE) and (self._step < ATTENTIVE or self._step % REFRESH == 0):
            gain = regulator_gain(found.view(len(z), -1, z.shape[1]))
            self._gain = torch.where(gain.isfinite().all(-1, keepdim=True), gain, self._gain)
        known = torch.cat([z, self._actions[:, :-1]], dim=-1)
        push = (self._gain * known).sum(-1) > 0
        if self._step < len(PROBE):
            push = torch.full_like(push, PROBE[self._step] > 0)
        self._step += 1
        self._before = z
        self._actions = torch.cat([2.0 * push[:, None] - 1, self._actions[:, :-1]], dim=-1)
        return push.long().view(self._shape), torch.zeros(self._shape)


def regulator_gain(found: Tensor) -> Tensor:
    """The linear-quadratic gain for R identified plants with a dead time of d steps.

    From W, shape (R, O + 1 + d, O): the wanted push per entry of (z_t, u_{t-1}, ..., u_{t-d}),
    shape (R, O + d).
    """
    rows, columns, obs_dim = found.shape
    size = columns - 1
    a = torch.zeros(rows, size, size, dtype=found.dtype)
    b = torch.zeros(rows, size, 1, dtype=found.dtype)
    a[:, :obs_dim, :obs_dim] = torch.eye(obs_dim) + found[:, :obs_dim].mT
    a[:, :obs_dim, obs_dim:] = found[:, obs_dim + 1 :].mT
    b[:, :obs_dim, 0] = found[:, obs_dim]
    if size > obs_dim:
        b[:, obs_dim, 0] = 1.0
    for ago in range(obs_dim + 1, size):  # the line moves on
        a[:, ago, ago - 1] = 1.0
    cost = torch.zeros(size, size, dtype=found.dtype)
    cost[:obs_dim, :obs_dim] = torch.eye(obs_dim)
    try:
        return -lqr(a, b, cost, PUSH_COST)
    except RuntimeError:  # a singular matrix: a guess that cannot be regulated
        return torch.full((rows, size), torch.nan, dtype=found.dtype)
