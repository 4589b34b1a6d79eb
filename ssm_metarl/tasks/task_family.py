"""Families of tasks: all that others need to know of a plant, and how tasks of it are drawn.

Place in the flow: stage 1. A `TaskFamily` draws `Tasks`; `env_runner` runs them.

Training and ID-test tasks are drawn from the parameters' ID values, OOD-test tasks from the OOD
ones, out of range in every parameter at once. Draws are counter-based (`seeding`), so the three can
never overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.action_space import ActionSpace
from ssm_metarl.compiled import usual_modes
from ssm_metarl.settings import plain, require
from ssm_metarl.tasks import gymnasium_family, gymnasium_verify, verify
from ssm_metarl.tasks.dynamics import Dynamics
from ssm_metarl.tasks.gymnasium_plant import GymnasiumPlant, Setting
from ssm_metarl.tasks.sketch import Sketch
from ssm_metarl.tasks.task_parameter import Choice, Interval, TaskParameter, Uniform
from ssm_metarl.types import Actor, Rollout

if TYPE_CHECKING:
    import gymnasium

Split = Literal["train", "id", "ood"]


@dataclass(frozen=True)
class Tasks:
    """K tasks of one family: parameter values, and the indices their randomness is keyed by."""

    family: TaskFamily
    values: Mapping[str, Tensor]
    """Each parameter's values, shape (K,), float64."""
    indices: tuple[int, ...]
    """Counter of each task's draw, the index of its noise streams."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: slice | Sequence[int]) -> Tasks:
        rows = list(range(len(self))[index] if isinstance(index, slice) else index)
        values = {name: v[rows] for name, v in self.values.items()}
        return Tasks(self.family, values, tuple(self.indices[i] for i in rows))

    def changed(self, **values: Tensor) -> Tasks:
        """The same tasks with other values of some parameters, shape (K,) each."""
        return Tasks(self.family, {**self.values, **values}, self.indices)

    def as_dicts(self) -> list[dict[str, float]]:
        """The parameter values, one dictionary a task; whole where the unmodified one is."""
        kinds = {p.name: p.of_kind for p in self.family.parameters}
        return [
            {n: kinds.get(n, float)(float(v[i])) for n, v in self.values.items()}
            for i in range(len(self))
        ]


class Expert(Protocol):
    """A controller of K tasks that was told their parameters, but sees only what a policy sees."""

    def __call__(self, obs: Tensor, action: Tensor, episode_start: Tensor) -> Tensor:
        """What it would do at each step of a rollout.

        Args:
            obs: Before each step, shape (T, K, N, O).
            action: What was done there, shape (T, K, N[, A]); the last step's is not looked at.
            episode_start: True at the first step of an episode, shape (T, K, N).

        Returns:
            Actions, shape (T, K, N[, A]).
        """


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One fixed controller of a family, told the little that it reads off some data of a task."""

    name: str
    label: str
    """For legends and tables."""
    definition: str
    controller: Callable[[Rollout, int], Actor]
    """The controller, from K tasks' data (T, K, N') and the environments a task, N, it acts in."""


@dataclass(frozen=True, kw_only=True)
class TaskFamily:
    """A set of tasks that differ in declared parameters: all that others need to know of a plant.

    Raises:
        ValueError: Neither batched physics nor Gymnasium environments; or a field that speaks of
            observations has another number of them than the rest.
    """

    name: str
    parameters: tuple[TaskParameter, ...]
    dynamics: Dynamics | None = None
    """Batched physics; None where Gymnasium environments do the stepping."""
    plant: GymnasiumPlant | None = None
    """How these are made, and where their parameters stand."""
    gymnasium_id: str | None = None
    """Of the environment that a task is a variant of."""
    obs_names: tuple[str, ...] = ()
    """What the observations are called in a plant's log; empty for obs_0, obs_1, ..."""
    obs_units: tuple[str, ...] = ()
    """Their units; empty where they are not known."""
    obs_scale: tuple[float, ...] | None = None
    """Factors that bring a task's observations into [-1, 1]. None where that is not known."""
    obs_limit: tuple[float, ...] | None = None
    """Bound of each observation, either side of zero, at which a model's input is clipped. None
    for where `obs_scale` makes it 1; without that too, nothing is clipped."""
    reflection: tuple[float, ...] = ()
    """The plant's reflection: the factor, -1 or 1, of each observation which, with all actions
    mirrored (n - 1 - a, or -a), turns each history of a task into one that is as likely in the same
    task. Empty where there is no such symmetry."""
    effect_dims: tuple[int, ...] = ()
    """Observation dimensions that an action changes at once: what a `StateSpaceModel`, which has
    no room for more, predicts."""
    told_dims: int = 0
    """Last observation dimensions that tell the task's parameters (`told`)."""
    time_step: float | None = None
    """Seconds between two observations; None where that is not known."""
    dead_time: int = 0
    """The most steps that pass between the choice of an action and its effect, beyond the one that
    any action takes."""
    return_bounds: Interval | None = None
    """The least and the greatest return that an episode can have; None where that is not known."""
    solved: float | None = None
    """Return from which a task counts as solved; None where nobody has said."""
    end_is_failure: bool = True
    """Whether an episode that ends before its time limit has failed."""
    disturbances: Mapping[str, Callable[[Tasks], Tasks]] = field(default_factory=dict, hash=False)
    """Named changes that may come over a plant while it runs, such as "flip": the tasks that given
    ones become."""
    experts: Mapping[str, Callable[[Tasks], Expert]] = field(default_factory=dict, hash=False)
    """Controllers that are told the task; the first is the one that a training may imitate."""
    probes: tuple[Probe, ...] = ()
    """Fixed controllers that are told what a few steps show: yardsticks for adapting."""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """Settings of a training of each mode ("meta_rl", "both", "in_context") that are not the
    defaults: a command takes those that nobody set otherwise."""
    sketch: Sketch | None = None
    """How to draw a state."""

    def __post_init__(self) -> None:
        if (self.dynamics is None) == (self.plant is None):
            received = "neither" if self.plant is None else "both"
            raise ValueError(
                f"task family {self.name!r}: expected batched physics, or Gymnasium environments "
                f"(TaskFamily.from_gymnasium), received {received}"
            )
        sizes = {
            name: len(getattr(self, name) or ())
            for name in ("obs_names", "obs_units", "obs_scale", "obs_limit", "reflection")
        }
        where = "dynamics.obs_dim" if self.dynamics else "observations of its environment"
        sizes[where] = self.spaces[0]
        known = {name: size for name, size in sizes.items() if size}
        if len(set(known.values())) > 1:
            raise ValueError(
                f"task family {self.name!r}: expected as many observations everywhere, received "
                + ", ".join(f"{name} of {size}" for name, size in known.items())
            )
        if any(factor not in (-1.0, 1.0) for factor in self.reflection):
            raise ValueError(
                f"reflection of {self.name!r}: expected factors -1 or 1, received {self.reflection}"
            )

    @classmethod
    def from_gymnasium(
        cls,
        environment: str | Callable[..., gymnasium.Env[Any, Any]],
        parameters: Mapping[str, Uniform | Choice | Setting],
        ood: Mapping[str, Uniform | Choice] | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        max_episode_steps: int | None = None,
        obs_scale: Sequence[float] | None = None,
        **fields: Any,
    ) -> TaskFamily:
        """A family whose tasks are Gymnasium environments, each built with its own parameters.

        Example: ``TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15, unit="m/s²")})``.
        Call :meth:`verify` on it: not every attribute changes what an environment does.

        Args:
            environment: A registered Gymnasium id, or a callable that returns an environment.
            parameters: ID range of each parameter that varies. Its name is an attribute of
                ``env.unwrapped`` or a path from it (``model.body_mass[1]``); a `Setting` names
                another place, or a function. May be empty, which makes a family of one task, the
                unmodified environment. A whole number or a switch, such as ``Choice((2, 4))`` or
                ``Choice((False, True))``, stays one.
            ood: OOD ranges. Where one is missing, it is half the ID range's width on either side,
                but at most half-way to zero, and nothing beyond a bound that is zero: a range
                keeps its sign. A `Choice` keeps its values.
            kwargs: Keyword arguments with which every environment is made.
            name: Name of the family, by default the id. Trainings are recorded under it.
            max_episode_steps: Time limit, in place of the environment's own; needed where it has
                none.
            obs_scale: See the field. None measures it on random steps whenever a training begins,
                and then clips nothing.
            fields: Whatever else is known of the plant, such as ``obs_names``, ``reflection``,
                ``return_bounds``: further fields of the family.

        Raises:
            ValueError: An unknown id, an environment that cannot be made, spaces that no policy
                fits, no time limit, a parameter that is missing, no number, or shared by all
                environments, or an OOD range that overlaps the ID range.
        """
        plant = GymnasiumPlant(environment, tuple((kwargs or {}).items()), limit=max_episode_steps)
        declared = gymnasium_family.declare(plant, parameters, ood or {}, obs_scale)
        return cls(**{**declared, **({"name": name} if name else {}), **fields})

    @property
    def mirror(self) -> bool:
        """Whether the plant has a reflection."""
        return bool(self.reflection)

    @property
    def limits(self) -> tuple[float, ...]:
        """`obs_limit`, or where `obs_scale` makes it 1; empty where nothing is clipped."""
        return self.obs_limit or tuple(1 / scale for scale in self.obs_scale or ())

    @property
    def spaces(self) -> tuple[int, ActionSpace]:
        """Observation size O and action space of the tasks: what a policy for them must fit."""
        if self.dynamics is not None:
            return self.dynamics.obs_dim, self.dynamics.action_space
        assert self.plant is not None and self.plant.spaces is not None
        return self.plant.spaces

    @property
    def horizon(self) -> int:
        """Most steps of an episode."""
        if self.dynamics is not None:
            return self.dynamics.max_episode_steps
        assert self.plant is not None
        return self.plant.horizon

    @property
    def default_task(self) -> dict[str, float]:
        """Parameters of the unmodified environment."""
        return {p.name: p.default for p in self.parameters}

    def verify(self) -> None:
        """Check that every declared parameter changes what a task does.

        Each parameter takes values across its ID range, while the same actions run from the same
        initial states; some observation, reward or end must differ between the values, and nothing
        between two runs of the same value.

        Warns:
            UserWarning: A parameter changes nothing but rewards, which adaptation by prediction
                cannot see; or it is half-cached: set on an environment that is built, or given to
                its constructor, it is not what it is in one that is built with it, as tasks are.

        Raises:
            ValueError: Nothing differs (the parameter is inert, or never reached), the environment
                has randomness of its own, or is none that can be stepped; the message names the
                parameter, and says what was found.
        """
        for parameter in self.parameters:
            self.verify_parameter(parameter)

    def verify_parameter(self, parameter: TaskParameter) -> None:
        """Check one declared parameter, as :meth:`verify` does."""
        values = verify.probed(parameter, self.parameters)
        if self.dynamics is not None:
            verify.verify(self.dynamics, parameter, values, self.name)
        elif self.plant is not None:
            gymnasium_verify.verify(self.plant, parameter, values, self.name)

    @usual_modes()
    def sample(
        self, split: Split, num_tasks: int, *, seed: int, start: int = 0, stream: str = ""
    ) -> Tasks:
        """Draw tasks ``start`` ... ``start + num_tasks - 1`` of a split.

        Args:
            split: "train" and "id" draw from the ID ranges (by different keys), "ood" from the
                OOD ranges.
            num_tasks: K.
            seed: Names the sequence of tasks.
            start: Counter of the first task.
            stream: Names a sequence of its own: no two streams share a draw.
        """
        if split not in ("train", "id", "ood"):
            raise ValueError(f"split: expected 'train', 'id' or 'ood', received {split!r}")
        purpose = f"{stream}/{split}-task" if stream else f"{split}-task"
        indices = range(start, start + num_tasks)
        generators = [seeding.generator(seed, purpose, index) for index in indices]
        size = len(self.parameters)
        draws = np.reshape([g.random(size) for g in generators], (num_tasks, size)).T
        values = {}
        for p, row in zip(self.parameters, draws, strict=True):
            drawn = [(p.ood if split == "ood" else p.id).at(u) for u in row]
            values[p.name] = torch.tensor(drawn, dtype=torch.float64)
        return Tasks(self, values, tuple(indices))

    @usual_modes()
    def task(self, parameters: Mapping[str, Any] | None = None) -> Tasks:
        """One named task: the default, changed as given.

        Raises:
            ValueError: An unknown parameter, or a value outside its physical range.
        """
        known = {p.name: p for p in self.parameters}
        values = self.default_task
        for name, value in (parameters or {}).items():
            require(name in known, "task parameter", f"one of {sorted(known)}", name)
            what, value = f"task parameter {name!r}", plain(value)
            switch = isinstance(known[name].default, bool)
            is_number = isinstance(value, Real) and isinstance(value, bool) <= switch
            require(is_number, what, "a number", value)
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            require(math.isfinite(number), what, "a finite one", number)
            values[name] = known[name].check(number)
        alone = {n: torch.tensor([v], dtype=torch.float64) for n, v in values.items()}
        return Tasks(self, alone, (0,))


def teacher(tasks: Tasks) -> Expert:
    """The expert of K tasks that a policy may imitate: the first that their family declares.

    Raises:
        ValueError: It declares none.
    """
    if not tasks.family.experts:
        raise ValueError(
            f"teacher: expected a family with an expert that is told the task, received "
            f"{tasks.family.name!r}, which declares none"
        )
    return next(iter(tasks.family.experts.values()))(tasks)
