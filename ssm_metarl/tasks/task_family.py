"""What varies between tasks: named parameters with units, and ranges to draw them from.

Place in the flow: stage 1. A `TaskFamily` draws `Tasks`; `env_runner` runs them.

Every parameter has an in-distribution (ID) range, from which training draws, and an
out-of-distribution (OOD) range. OOD draws are out of range in every parameter at once, uniform
by length over the union of intervals. Draws are counter-based (`seeding`), so training,
ID-test and OOD-test tasks can never overlap.
"""

from __future__ import annotations

import math
import warnings
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
from ssm_metarl.settings import in_one_line, plain
from ssm_metarl.tasks.sketch import Sketch
from ssm_metarl.types import Actor, Rollout

if TYPE_CHECKING:
    import gymnasium

    from ssm_metarl.tasks.gymnasium_plant import GymnasiumPlant

Split = Literal["train", "id", "ood"]
Interval = tuple[float, float]
PROBES = (0.0, 0.25, 0.5, 0.75, 1 - 1e-9)  # where in its ID range `verify` tries a parameter


@dataclass(frozen=True)
class Uniform:
    """A range that is drawn from uniformly by length; may be a union of intervals."""

    low: float
    high: float
    unit: str = ""
    also: tuple[Interval, ...] = ()
    """Further intervals of the union."""

    def __post_init__(self) -> None:
        for low, high in self.intervals:
            if not low < high:
                raise ValueError(f"Uniform: expected low < high, received [{low}, {high}]")

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """All intervals of the union."""
        return ((self.low, self.high), *self.also)

    def at(self, quantile: float) -> float:
        """The point that has ``quantile`` in [0, 1) of the union's length below it."""
        lengths = [high - low for low, high in self.intervals]
        distance = quantile * sum(lengths)
        for (low, _), length in zip(self.intervals, lengths, strict=True):
            if distance < length:
                return low + distance
            distance -= length
        return self.intervals[-1][1]


@dataclass(frozen=True)
class Choice:
    """A finite set of equally likely values, such as an actuator's sign."""

    values: tuple[float, ...]
    unit: str = ""

    def at(self, quantile: float) -> float:
        """The value whose equal share of [0, 1) holds ``quantile``."""
        return self.values[min(int(quantile * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True)
class Setting:
    """A parameter of a Gymnasium environment that does not stand under its own name."""

    at: str | Callable[[Any, Any], None]
    """A path from ``env.unwrapped``, such as ``model.body_mass[1]``; or a function that sets a
    value on ``env.unwrapped``, which is called once the environment is built."""
    values: Uniform | Choice
    """Its ID range."""
    default: float | None = None
    """The value of the unmodified environment; None for what stands at the path."""


@dataclass(frozen=True, kw_only=True)
class TaskParameter:
    """One declared parameter of a family."""

    name: str
    unit: str
    default: float
    """The value of the unmodified environment."""
    id: Uniform | Choice
    ood: Uniform | Choice
    physical: Interval = (-float("inf"), float("inf"))
    """Values that make physical sense; a task outside is refused."""
    meaning: str = ""

    @property
    def is_category(self) -> bool:
        """Whether only declared values make sense of it: nothing lies between two of them."""
        return isinstance(self.id, Choice)

    def between(self, before: Tensor, after: Tensor, share: Tensor) -> Tensor:
        """Values on the way from one to another: a category jumps half-way, a range moves evenly.

        Args:
            before: Values at the start, any shape.
            after: At the end.
            share: How much of the way is done, in [0, 1].
        """
        if self.is_category:
            return torch.where(share < 0.5, before, after)
        return torch.lerp(before, after, share)

    def check(self, value: float) -> float:
        """Return ``value``, or raise ValueError naming what was expected."""
        if isinstance(self.id, Choice):
            also = self.ood.values if isinstance(self.ood, Choice) else ()
            values = sorted({*self.id.values, *also})
            if value not in values:
                raise ValueError(
                    f"task parameter {self.name!r}: expected one of {values}, received {value:g}"
                )
        elif not self.physical[0] <= value <= self.physical[1]:
            raise ValueError(
                f"task parameter {self.name!r}: expected {self.physical[0]:g} to "
                f"{self.physical[1]:g} {self.unit}, received {value:g}"
            )
        return value

    def of_kind(self, value: float) -> float:
        """A value as a bool or a whole number where the default is one, and it can be."""
        kind = type(self.default)
        return kind(value) if kind in (bool, int) and float(value).is_integer() else value


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
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        rows = list(chosen)
        return Tasks(
            self.family,
            {name: v[rows] for name, v in self.values.items()},
            tuple(self.indices[i] for i in rows),
        )

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


class Dynamics(Protocol):
    """Batched physics: pure functions of state, action and parameters, each (K, N, ...)."""

    obs_dim: int
    max_episode_steps: int
    push_scale: Sequence[float]
    """Standard deviation of a random push on each state dimension (0: never pushed)."""
    start_spread: Sequence[float]
    """How far from an initial state a training episode may start, on each state dimension."""

    @property
    def action_space(self) -> ActionSpace:
        """What `step` takes; it clips continuous actions itself."""

    def initial_state(self, uniform: Tensor) -> Tensor:
        """States (..., S) from uniform numbers (..., S) in [0, 1)."""

    def step(
        self, state: Tensor, action: Tensor, parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Next state (K, N, S), reward (K, N) and terminated (K, N)."""

    def observe(self, state: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Observations (K, N, O) of states (K, N, S) in tasks of these parameters."""


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
        ValueError: A field that speaks of observations has another number of them than the rest.
    """

    name: str
    parameters: tuple[TaskParameter, ...]
    dynamics: Dynamics | None = None
    """Batched physics; None where Gymnasium environments do the stepping."""
    gymnasium_id: str | None = None
    plant: GymnasiumPlant | None = None
    """How Gymnasium environments are made, and where their parameters stand; None for attributes of
    the one with that id."""
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
    """Last observation dimensions that tell the task's parameters (`told`): the same at every step
    of a task, and in its mirror."""
    time_step: float | None = None
    """Seconds between two observations; None where that is not known."""
    dead_time: int = 0
    """The most steps that pass between the choice of an action and its effect, beyond the one that
    any action takes. Whoever identifies a plant looks so many actions further back."""
    return_bounds: Interval | None = None
    """The least and the greatest return that an episode can have; None where that is not known."""
    solved: float | None = None
    """Return from which a task counts as solved; None where nobody has said."""
    end_is_failure: bool = True
    """Whether an episode that ends before its time limit has failed."""
    max_episode_steps: int | None = None
    """Time limit of Gymnasium environments, in place of their own; None for that."""
    disturbances: Mapping[str, Callable[[Tasks], Tasks]] = field(default_factory=dict, hash=False)
    """Named changes that may come over a plant while it runs, such as "flip": the tasks that given
    ones become."""
    experts: Mapping[str, Callable[[Tasks], Expert]] = field(default_factory=dict, hash=False)
    """Controllers that are told the task; the first is the one that a training may imitate."""
    probes: tuple[Probe, ...] = ()
    """Fixed controllers that are told what a few steps show: yardsticks for adapting."""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """Settings with which a training of each mode ("meta_rl", "both", "in_context") learns this
    family, where they are not the defaults: a command takes those that nobody set otherwise."""
    sketch: Sketch | None = None
    """How to draw a state."""

    def __post_init__(self) -> None:
        sizes = {
            name: len(getattr(self, name) or ())
            for name in ("obs_names", "obs_units", "obs_scale", "obs_limit", "reflection")
        }
        if self.dynamics is not None:
            sizes["dynamics.obs_dim"] = self.dynamics.obs_dim
        elif self.plant is not None and self.plant.spaces is not None:
            sizes["observations of its environment"] = self.plant.spaces[0]
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

    @property
    def mirror(self) -> bool:
        """Whether the plant has a reflection."""
        return bool(self.reflection)

    @property
    def limits(self) -> tuple[float, ...]:
        """`obs_limit`, or where `obs_scale` makes it 1; empty where nothing is clipped."""
        return self.obs_limit or tuple(1 / scale for scale in self.obs_scale or ())

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
        from ssm_metarl.tasks import gymnasium_family

        return gymnasium_family.declare(
            environment,
            parameters,
            ood or {},
            kwargs or {},
            name,
            {"max_episode_steps": max_episode_steps, "obs_scale": obs_scale, **fields},
        )

    def verify(self) -> None:
        """Check that every declared parameter changes what a task does.

        Each parameter takes values across its ID range, while the same actions run from the same
        initial states; some observation, reward or end must differ between the values, and nothing
        between two runs of the same value. Gymnasium environments are driven by random actions,
        by extreme ones, and along the motion of what is observed.

        Warns:
            UserWarning: A parameter changes nothing but rewards, which adaptation by prediction
                cannot see; or it is half-cached: set on an environment that is built it is not
                what it is in one that is built with it, as tasks are, or the constructor makes
                something else of its value.

        Raises:
            ValueError: Nothing differs (the parameter is inert, or never reached), the environment
                has randomness of its own, or is none that can be stepped; the message names the
                parameter, and says what was found.
        """
        for parameter in self.parameters:
            self.verify_parameter(parameter)

    def verify_parameter(self, parameter: TaskParameter) -> None:
        """Check one declared parameter, as :meth:`verify` does."""
        probes = [parameter.id.at(quantile) for quantile in PROBES]
        probes.insert(0, probes[0])  # the first one twice: it must repeat itself
        # The others stand off the middle of their range: a zero there could hide this one.
        values = {p.name: [p.id.at(0.7)] * len(probes) for p in self.parameters}
        values[parameter.name] = probes
        tensors = {n: torch.tensor(v).double() for n, v in values.items()}
        tasks = Tasks(self, tensors, (0,) * len(probes))
        if self.dynamics is None:
            from ssm_metarl.tasks import gymnasium_verify

            gymnasium_verify.verify(tasks, parameter)
            return
        seen, rewards = (_alike(trace) for trace in self._trace(tasks))
        if not (seen[0] and rewards[0]):
            raise ValueError(not_repeated(parameter, self.name))
        if all(seen) and all(rewards):
            raise ValueError(unchanged(parameter, self.name))
        if all(seen):
            warnings.warn(rewards_alone(parameter, self.name), stacklevel=3)

    def _trace(self, tasks: Tasks) -> tuple[Tensor, Tensor]:
        """What random actions meet in each of K tasks of batched physics, and earn; (K, ...)."""
        assert self.dynamics is not None
        num_tasks = len(tasks)
        rng = seeding.generator(0, "verify")
        num_envs, num_steps = 32, 20
        uniform = torch.from_numpy(rng.random((num_envs, len(self.dynamics.push_scale))))
        state = self.dynamics.initial_state(uniform).expand(num_tasks, -1, -1)
        parameters = {n: v[:, None].expand(-1, num_envs) for n, v in tasks.values.items()}
        seen, rewards = [self.dynamics.observe(state, parameters).flatten(1)], []
        for _ in range(num_steps):
            action = self.dynamics.action_space.random(rng, num_envs)
            state, reward, terminated = self.dynamics.step(
                state, action.expand(num_tasks, *action.shape), parameters
            )
            seen += [self.dynamics.observe(state, parameters).flatten(1), terminated.double()]
            rewards.append(reward)
        return torch.cat(seen, dim=1), torch.cat(rewards, dim=1)

    @property
    def default_task(self) -> dict[str, float]:
        """Parameters of the unmodified environment."""
        return {p.name: p.default for p in self.parameters}

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
        draws = np.empty((len(self.parameters), num_tasks))
        for column, index in enumerate(indices):
            draws[:, column] = seeding.generator(seed, purpose, index).random(len(self.parameters))
        values = {
            p.name: torch.tensor(
                [(p.ood if split == "ood" else p.id).at(u) for u in row], dtype=torch.float64
            )
            for p, row in zip(self.parameters, draws, strict=True)
        }
        return Tasks(self, values, tuple(indices))

    @usual_modes()
    def task(self, parameters: Mapping[str, Any] | None = None) -> Tasks:
        """One named task: the default, changed as given.

        Raises:
            ValueError: An unknown parameter, or a value outside its physical range.
        """
        values = self.default_task
        known = {p.name: p for p in self.parameters}
        for name, value in (parameters or {}).items():
            if name not in known:
                raise ValueError(
                    f"task parameter: expected one of {sorted(known)}, received {in_one_line(name)}"
                )
            value = plain(value)
            switch = isinstance(known[name].default, bool)
            if isinstance(value, bool) > switch or not isinstance(value, Real):
                raise ValueError(
                    f"task parameter {name!r}: expected a number, received {in_one_line(value)}"
                )
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise ValueError(
                    f"task parameter {name!r}: expected a finite one, received {number}"
                )
            values[name] = known[name].check(number)
        return Tasks(
            self,
            {n: torch.tensor([v], dtype=torch.float64) for n, v in values.items()},
            (0,),
        )


def teacher(tasks: Tasks) -> Expert:
    """The expert of K tasks that a policy may imitate: the first that their family declares.

    Raises:
        ValueError: It declares none.
    """
    for expert in tasks.family.experts.values():
        return expert(tasks)
    raise ValueError(
        f"teacher: expected a family with an expert that is told the task, received "
        f"{tasks.family.name!r}, which declares none"
    )


def _alike(trace: Tensor) -> list[bool]:
    """Whether each row after the first equals it."""
    return [torch.allclose(row, trace[0], 1e-6, 1e-9, equal_nan=True) for row in trace[1:]]


def unchanged(parameter: TaskParameter, family: str) -> str:
    """What `TaskFamily.verify` says of a parameter that changes nothing."""
    probes = [parameter.id.at(quantile) for quantile in PROBES]
    return (
        f"parameter {parameter.name!r} of {family}: expected a change of the dynamics, received "
        f"the same trajectories from {min(probes):g} to {max(probes):g} {parameter.unit}".rstrip()
    )


def rewards_alone(parameter: TaskParameter, family: str) -> str:
    """And of one that changes nothing else."""
    return (
        f"parameter {parameter.name!r} of {family}: changes rewards alone, which adapting by "
        f"prediction cannot see"
    )


def not_repeated(parameter: TaskParameter, family: str) -> str:
    """And of a family whose tasks do not repeat themselves."""
    return (
        f"parameter {parameter.name!r} of {family}: expected the same trajectory each time from "
        f"the same value, seed and actions, received another one: {family} has randomness of its "
        f"own, which hides what a parameter changes; draw it from the seeded self.np_random"
    )
