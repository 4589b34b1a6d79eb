"""The vocabulary every stage shares: shapes, rollouts and the protocols between stages.

Place in the flow: before everything. The environment side (`env_runner`) and the policy side
(`core`) never import each other; they meet in the types below.

Shapes are time-major, with tasks and environments as batch axes::

    T  time steps             O  observation size      P  size of the SSM state
    K  tasks                  A  action size
    N  parallel environments of each task

A rollout tensor is (T, K, N, ...). Parameters adapted to K tasks are the meta-parameters' tensors
with a leading K axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ssm_metarl.action_space import ActionSpace

Params = Mapping[str, Tensor]
"""Named parameters: shared by all tasks, shape (...), or one set per task, shape (K, ...)."""


class FlatParams(Mapping[str, Tensor]):
    """Parameters that lie one after another in one tensor, so that one operation changes all.

    Args:
        flat: Shared (P,) or per task (K, P).
        shapes: Shape of each parameter without its task axis, in order.
    """

    def __init__(self, flat: Tensor, shapes: Mapping[str, torch.Size]) -> None:
        self.flat, self.shapes = flat, shapes

    def __getitem__(self, name: str) -> Tensor:
        start, stop = self.spans[name]
        shape = self.shapes[name]
        return self.flat[..., start:stop].view(*self.flat.shape[:-1], *shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def at(self, flat: Tensor) -> FlatParams:
        """Other values under the same names."""
        return FlatParams(flat, self.shapes)

    def under(self, prefix: str) -> FlatParams:
        """The parameters whose names start with ``prefix``, which must stand together."""
        names = [name for name in self.shapes if name.startswith(prefix)]
        start, stop = self.spans[names[0]][0], self.spans[names[-1]][1]
        shapes = {name.removeprefix(prefix): self.shapes[name] for name in names}
        return FlatParams(self.flat[..., start:stop], shapes)

    @cached_property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Where each parameter lies: its first number, and the one after its last."""
        ends = list(accumulate((shape.numel() for shape in self.shapes.values()), initial=0))
        return dict(zip(self.shapes, pairwise(ends), strict=True))


def flatten(params: Params, shapes: Mapping[str, torch.Size]) -> Tensor:
    """The named parameters one after another: shared (P,), or (K, P) if any of them is per task.

    Raises:
        ValueError: One is missing, or has another shape.
    """
    if isinstance(params, FlatParams):
        return params.flat
    values: list[Tensor] = []
    lead: tuple[int, ...] = ()
    for name, shape in shapes.items():
        value = params.get(name)
        if not isinstance(value, Tensor) or value.shape != shape:
            lead, value = _per_task(name, value, shape, lead)
        values.append(value)
    if not lead:
        return torch.cat([value.flatten() for value in values])
    every = zip(values, shapes.values(), strict=True)
    return torch.cat([value.expand(*lead, *shape).flatten(1) for value, shape in every], -1)


def _per_task(
    name: str, value: object, shape: torch.Size, lead: tuple[int, ...]
) -> tuple[tuple[int, ...], Tensor]:
    """The task axis (K,) of a parameter that has one, the same as those before, and itself."""
    received = tuple(value.shape) if isinstance(value, Tensor) else ()
    if not isinstance(value, Tensor) or received[1:] != shape or lead not in ((), received[:1]):
        raise ValueError(
            f"params: {name}: expected shape {tuple(shape)}, or with an axis of "
            f"{lead[0] if lead else 'K'} tasks before it, received "
            f"{received if isinstance(value, Tensor) else type(value).__name__}"
        )
    return received[:1], value


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What happened: T steps in N environments of each of K tasks.

    An environment's steps may hold several episodes (``reset`` marks their first steps) and may
    end early (``mask`` is False from there on). What stands in masked-out steps has no meaning.
    Whole numbers of another width become int64, and where fractions are expected float32.
    """

    obs: Tensor
    """Observation before the step, shape (T, K, N, O)."""
    action: Tensor
    """Action taken: (T, K, N) int64 if discrete, (T, K, N, A) float if continuous."""
    reward: Tensor
    """Reward of the step, shape (T, K, N)."""
    next_obs: Tensor
    """Observation the step led to, shape (T, K, N, O); at an end, the episode's final one."""
    terminated: Tensor
    """True where the step ended the episode for good, shape (T, K, N), bool."""
    truncated: Tensor
    """True where a time limit cut the episode (its value is bootstrapped), (T, K, N), bool."""
    reset: Tensor
    """True where the step is the first of an episode, shape (T, K, N), bool."""
    mask: Tensor
    """True where the step was taken, shape (T, K, N), bool."""
    log_prob: Tensor
    """Log-probability (density) of the action under the behaviour that took it, (T, K, N)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Tensor) or value.dtype.is_complex:
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{field.name}: expected a tensor of real numbers, received {kind}"
                )
        if self.obs.dim() != 4:
            raise ValueError(f"obs: expected shape (T, K, N, O), received {tuple(self.obs.shape)}")
        lead = self.obs.shape[:3]
        for field in fields(self):
            shape = getattr(self, field.name).shape
            if shape[:3] != lead:
                raise ValueError(
                    f"{field.name}: expected leading shape (T, K, N) = {tuple(lead)}, "
                    f"received {tuple(shape)}"
                )
        if self.next_obs.shape != self.obs.shape:
            raise ValueError(
                f"next_obs: expected shape {tuple(self.obs.shape)}, as obs, received "
                f"{tuple(self.next_obs.shape)}"
            )
        for name in ("obs", "next_obs", "reward", "log_prob"):
            value = getattr(self, name)
            if not value.dtype.is_floating_point:
                object.__setattr__(self, name, value.float())
        if self.action.dtype is not torch.int64 and not self.action.dtype.is_floating_point:
            object.__setattr__(self, "action", self.action.long())

    @classmethod
    def from_episode(
        cls,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike | None = None,
        *,
        terminated: bool = False,
    ) -> Rollout:
        """One episode of one task, such as a plant's log, as a rollout with K = N = 1.

        Args:
            observations: Before every action and after the last one, shape (T + 1, O).
            actions: Shape (T,) integers if discrete, (T, A) floats if continuous.
            rewards: Shape (T,); None for zeros (prediction needs none).
            terminated: Whether the last action ended the episode for good.

        Raises:
            ValueError: The lengths do not fit.
        """
        obs = torch.from_numpy(np.array(observations, dtype=np.float32))
        action = torch.from_numpy(np.array(actions))
        steps = len(action)
        if obs.dim() != 2 or len(obs) != steps + 1 or steps == 0:
            raise ValueError(
                f"observations: expected shape ({steps + 1}, O), one more than the {steps} "
                f"actions (at least 1), received {tuple(obs.shape)}"
            )
        reward = torch.zeros_like(obs[1:, 0])  # on the processor, whatever the default device
        if rewards is not None:
            reward = torch.from_numpy(np.array(rewards, dtype=np.float32))
        step = torch.from_numpy(np.arange(steps))
        columns = {
            "obs": obs[:-1],
            "action": action.float() if action.is_floating_point() else action.long(),
            "reward": reward,
            "next_obs": obs[1:],
            "terminated": (step == steps - 1) & terminated,
            "truncated": step < 0,
            "reset": step == 0,
            "mask": step >= 0,
            "log_prob": torch.full_like(reward, torch.nan),  # unknown
        }
        return cls(**{name: v[:, None, None] for name, v in columns.items()})

    @property
    def num_steps(self) -> int:
        """Length of the time axis, T."""
        return self.obs.shape[0]

    @property
    def num_tasks(self) -> int:
        """Length of the task axis, K."""
        return self.obs.shape[1]

    @property
    def num_envs(self) -> int:
        """Environments per task, N."""
        return self.obs.shape[2]

    def map(self, function: Callable[[Tensor], Tensor]) -> Rollout:
        """Apply ``function`` to every tensor."""
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def task(self, index: int) -> Rollout:
        """The rollout of one task, still with its axis (K = 1)."""
        return self.map(lambda x: x[:, index : index + 1])

    def to(self, device: torch.device) -> Rollout:
        """The same rollout on a device."""
        return self.map(lambda x: x.to(device))

    def cleaned(self) -> Rollout:
        """The same rollout with zeros wherever no step was taken, whatever stood there.

        A loss that merely leaves those steps out would still get their NaN: in a gradient,
        0 * NaN is NaN.
        """
        if bool(self.mask.all()):
            return self
        skipped = ~self.mask
        return self.map(
            lambda x: x.masked_fill(skipped.reshape(*skipped.shape, *(1,) * (x.dim() - 3)), 0)
        )

    def steps_taken(self) -> Tensor:
        """Environment steps taken in each task, shape (K,), int64."""
        return self.mask.sum(dim=(0, 2))

    def episode_returns(self) -> Tensor:
        """Undiscounted return of each environment's steps, shape (K, N)."""
        return torch.where(self.mask, self.reward, 0.0).sum(dim=0)


class EnvStep(NamedTuple):
    """One step of K x N environments. ``obs`` is the observation that the step led to."""

    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class Worlds(Protocol):
    """K tasks x N environments that step together; none resets by itself."""

    num_tasks: int
    num_envs: int
    obs_dim: int
    action_space: ActionSpace
    max_episode_steps: int
    device: torch.device

    def reset(self, mask: Tensor | None = None) -> Tensor:
        """Start an episode where ``mask`` (K, N) is True, or everywhere; observations (K, N, O)."""

    def step(self, action: Tensor) -> EnvStep:
        """Step every environment; one whose episode has ended stays as it is."""

    def close(self) -> None:
        """Let go of what the environments hold, such as a simulator's process."""


Actor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(obs (K, N, O), reset (K, N)) -> (action (K, N[, A]), log_prob (K, N))``; may hold a state."""


class SizedActor(Protocol):
    """An `Actor` for so many environments and no others, which survives a broken sensor."""

    num_tasks: int
    num_envs: int

    @property
    def bad_readings(self) -> Tensor:
        """Observations so far in which a number had to be held, shape (K, N), int64."""

    def __call__(self, obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """See `Actor`.

        Raises:
            ValueError: Another shape or type of numbers.
        """


@runtime_checkable
class RewardedActor(Protocol):
    """An `Actor` that is told what its actions brought."""

    def rewarded(self, reward: Tensor) -> None:
        """The reward (K, N) of the step that the last action took."""


class Kernel(Protocol):
    """A core's compiled form, three functions that `core.fused` runs.

    The last two arguments of each are the first task and the one after the last.
    """

    output_dim: int
    hidden_size: int

    def prepare(self, flat: np.ndarray, input_dim: int) -> tuple[np.ndarray, ...]:
        """First arguments of each function, from parameters (K, P) or, if shared, (1, P)."""

    def activations(self, num_tasks: int, rows: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of what `forward` keeps for the others."""

    forward: Callable[..., None]
    gradient: Callable[..., None]
    tangent: Callable[..., None]


class SequenceModel(Protocol):
    """A recurrent core as a pure function of its parameters."""

    input_dim: int
    output_dim: int
    hidden_size: int

    def kernel(self, readouts: Sequence[tuple[int, int]]) -> Kernel | None:
        """The compiled form of the model and of linear readouts of its output; None without one.

        Args:
            readouts: Of each, where its weight starts among all parameters laid out one after
                another, the model's first (its bias follows), and its number of outputs.
        """

    def unroll(
        self, params: Params, x: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run over time.

        Args:
            params: Shared (...) or per-task (K, ...) parameters, by the module's own names.
            x: Inputs, shape (T, K, N, input_dim).
            hidden: State before the first step, shape (K, N, hidden_size).
            reset: True where step t begins a new episode, shape (T, K, N), bool.

        Returns:
            Outputs, shape (T, K, N, output_dim), and the state after step T, (K, N, hidden_size).
        """
