"""Settings of every stage, as frozen dataclasses: what the command line and the API both build.

Place in the flow: under everything that can be set. No torch here, so that ``--help`` is instant.
The docstring under a field is also its help on the command line. A value out of range raises
ValueError with what was expected and what was received.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
LONGEST = 500  # characters of a value in an error
Objective = Literal["prediction", "policy_gradient"]
SupportPolicy = Literal["random", "policy"]
AdaptationMode = Literal["standard", "hybrid"]
ReplayWeights = Literal["propensity", "uniform"]
Core = Literal["diagonal", "state_space"]


def require(condition: bool, name: str, expected: str, received: object) -> None:
    """Raise ValueError, naming the field, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, received {in_one_line(received)}")


def in_one_line(value: object) -> str:
    """A value as an error shows it: an array has lines of its own, a number thousands of digits."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever somebody's object, or a number too long to write, raises
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def plain(value: Any) -> Any:
    """A NumPy scalar as the number that it is to Python; anything else as it is."""
    scalar = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if scalar else value


def check_types(settings: Any, *, finite: bool = True) -> None:
    """Put numbers that NumPy drew, and lists, into the types that a dataclass declares.

    Args:
        settings: A frozen dataclass, in its ``__post_init__``.
        finite: Whether its numbers must be finite.

    Raises:
        ValueError: A field holds another type.
    """
    for name, kind in _kinds(type(settings)).items():  # type: ignore[arg-type]
        given = getattr(settings, name)
        value = _converted(given, kind, finite)
        require(value is not _UNFIT, name, _in_words(kind, finite), given)
        if value is not given:
            object.__setattr__(settings, name, value)


@cache
def _kinds(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


_UNFIT = object()


def _converted(value: Any, kind: Any, finite: bool) -> Any:
    """The value in the type that was declared, or `_UNFIT`."""
    if get_origin(kind) in (Union, UnionType):
        every = (_converted(value, k, finite) for k in get_args(kind))
        return next((x for x in every if x is not _UNFIT), _UNFIT)
    value = plain(value)
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else _UNFIT
    if get_origin(kind) is tuple:
        return _converted_tuple(value, get_args(kind), finite)
    if kind is NoneType or kind is bool:
        return value if isinstance(value, kind) else _UNFIT
    if kind is str:
        return str(value) if isinstance(value, str) else _UNFIT
    if kind is Path:
        return Path(value) if isinstance(value, (str, Path)) else _UNFIT
    if kind in (int, float):
        return _converted_number(value, kind, finite)
    return value  # of no kind that a setting has here


def _converted_number(value: Any, kind: type, finite: bool) -> Any:
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return _UNFIT
    if isinstance(value, Integral):
        value = int(value)  # a whole number for a float stays one
    try:
        number = float(value)
    except OverflowError:
        return _UNFIT
    if finite and math.isinf(number):  # NaN lies in no range, and their messages say which
        return _UNFIT
    return value if isinstance(value, int) else number


def _converted_tuple(value: Any, kinds: tuple[Any, ...], finite: bool) -> Any:
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if not isinstance(value, (tuple, list)):
        return _UNFIT
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return _UNFIT
    items = [_converted(x, k, finite) for x, k in zip(value, kinds, strict=True)]
    if any(x is _UNFIT for x in items):
        return _UNFIT
    same = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
    return value if same else tuple(items)


def _in_words(kind: Any, finite: bool) -> str:
    """A type as a reader calls it."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(
            "None" if k is NoneType else _in_words(k, finite)
            for k in sorted(get_args(kind), key=lambda k: k is not NoneType)
        )
    if get_origin(kind) is Literal:
        return f"one of {get_args(kind)}"
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        count = "any number" if others == [...] else str(1 + len(others))
        return f"{count} of: {_in_words(first, finite)}"
    number = "a finite number" if finite else "a number"
    words = {int: "a whole number", float: number, bool: "True or False", str: "text"}
    return words.get(kind, f"a {kind}")


def rebuild(cls: type[T], values: dict[str, Any], what: str) -> T:
    """A configuration from its fields in JSON, whose lists become tuples again.

    Raises:
        ValueError: Unknown or missing fields, or values of another type.
    """
    known = sorted(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    require(isinstance(values, dict), what, f"fields among {known}", values)
    unknown = sorted(set(values) - set(known), key=str)
    require(not unknown, what, f"fields among {known}", unknown)
    try:
        return cls(**values)
    except TypeError as error:  # a field is missing
        raise ValueError(
            f"{what}: expected other values, received {in_one_line(values)} ({error})"
        ) from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def default_width(core: Core, hidden_dim: int | None) -> int:
    """``hidden_dim`` where it is given, else what the core is documented with."""
    return hidden_dim or (32 if core == "diagonal" else 64)


def require_norm_dim(core: Core, norm_dim: int | None, width: int) -> None:
    """Raise ValueError unless ``norm_dim`` is None or names channels that the core has."""
    if norm_dim is not None:
        require(core == "diagonal", "norm_dim", "None where core is 'state_space'", norm_dim)
        require(1 <= norm_dim <= width, "norm_dim", f"None or 1 to {width}, the width", norm_dim)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The architecture of a policy: with its weights, all that is needed to run it."""

    core: Core = "diagonal"
    """Sequence model: the linear `DiagonalSSM`, or the nonlinear `StateSpaceModel`."""
    state_dim: int = 32
    """Size of the SSM state (of each layer)."""
    hidden_dim: int = 32
    """Width of the residual stream (diagonal) or of the hidden layers (state_space)."""
    num_layers: int = 2
    """Number of layers (diagonal only)."""
    norm_dim: int | None = None
    """Leading channels of the residual stream that its normalisation takes mean and variance over;
    None for all. Growing a model's width sets it, so that the function stays."""
    output_dim: int = 4
    """Size of the output (state_space only): action logits, then predicted effects."""
    obs_scale: tuple[float, ...]
    """Fixed factor for each observation dimension; its length is the observation's."""
    obs_limit: tuple[float, ...] = ()
    """Observations are clipped to this either side of zero, in their own units; empty: they are
    not."""
    num_actions: int | None = None
    """Number of discrete actions; None for a continuous action space."""
    action_dim: int = 0
    """Size of a continuous action."""
    action_low: float | tuple[float, ...] = -1.0
    """Lower bound of a continuous action, of all dimensions or one for each."""
    action_high: float | tuple[float, ...] = 1.0
    """Upper bound of a continuous action, likewise."""
    action_scaled: bool = False
    """The heads' means and spreads of continuous actions are in units of the bounds, which then are
    -1 and 1; False, as in files that do not say, for the actions' own units."""
    predicted_dims: tuple[int, ...] = ()
    """Observation dimensions whose change is predicted (state_space; diagonal predicts all)."""
    mirror: bool = False
    """Act on a mirrored history with the mirrored action, exactly."""
    in_context: bool = False
    """See rewards, actions and ends too, and remember from episode to episode (diagonal only)."""
    memory: bool = True
    """Keep the state from step to step; False clears it before each: nothing is remembered."""
    told_dims: int = 0
    """Last observation dimensions that a mirrored history leaves as they are: what a task tells of
    its parameters (see `TaskFamily.told_dims`)."""
    reflection: tuple[float, ...] = ()
    """Factor, -1 or 1, of each observation dimension in a mirrored history (see
    `TaskFamily.reflection`). Filled in where `mirror` is set and a file does not say: all change
    sign but what is told."""
    actions_seen: int = 3
    """Last actions that an in-context policy is told, newest first (see `trial_input`)."""
    identifies: bool = True
    """Whether an in-context policy is told what least squares finds of the plant."""

    def __post_init__(self) -> None:
        check_types(self, finite=False)
        if self.mirror and not self.reflection:
            turned = max(len(self.obs_scale) - self.told_dims, 0)
            factors = (-1.0,) * turned + (1.0,) * (len(self.obs_scale) - turned)
            object.__setattr__(self, "reflection", factors)
        require(self.core in ("diagonal", "state_space"), "core",
                "'diagonal' or 'state_space'", self.core)  # fmt: skip
        require(self.memory or not self.in_context, "memory", "True in context", self.memory)
        for name in ("state_dim", "hidden_dim", "num_layers", "output_dim", "actions_seen"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require_norm_dim(self.core, self.norm_dim, self.hidden_dim)
        require(not self.in_context or self.core == "diagonal", "in_context",
                "False, or core 'diagonal'", self.in_context)  # fmt: skip
        require(not (self.in_context and self.mirror) or self.num_actions in (None, 2), "mirror",
                "False in context with more than two actions", self.mirror)  # fmt: skip
        size = len(self.obs_scale)
        require(size >= 1 and all(math.isfinite(s) for s in self.obs_scale), "obs_scale",
                "a finite factor for each dimension", self.obs_scale)  # fmt: skip
        require(0 <= self.told_dims < size and not (self.in_context and self.told_dims),
                "told_dims", f"0 to {size - 1}, and 0 in context", self.told_dims)  # fmt: skip
        require(len(self.reflection) == size * self.mirror
                and all(factor in (-1, 1) for factor in self.reflection), "reflection",
                f"-1 or 1 for each of {size} dimensions where mirror is set, else none",
                self.reflection)  # fmt: skip
        require(len(self.obs_limit) in (0, size) and all(v > 0 for v in self.obs_limit),
                "obs_limit", f"none, or {size} numbers above 0", self.obs_limit)  # fmt: skip
        require(all(0 <= d < size for d in self.predicted_dims), "predicted_dims",
                f"observation dimensions from 0 to {size - 1}", self.predicted_dims)  # fmt: skip
        if self.num_actions is None:
            require(self.action_dim >= 1, "action_dim",
                    "at least 1 where num_actions is None", self.action_dim)  # fmt: skip
            for name in ("action_low", "action_high"):
                bound = getattr(self, name)
                require(not isinstance(bound, tuple) or len(bound) == self.action_dim, name,
                        f"one number, or {self.action_dim}", bound)  # fmt: skip
            low, high = (
                x if isinstance(x, tuple) else (x,) for x in (self.action_low, self.action_high)
            )
            pairs = [
                (low[i % len(low)], high[i % len(high)]) for i in range(max(map(len, (low, high))))
            ]
            require(all(below < above for below, above in pairs), "action_high",
                    f"more than action_low = {self.action_low}", self.action_high)  # fmt: skip
            require(not self.mirror or all(below == -above for below, above in pairs),
                    "action_low", f"the opposite of action_high = {self.action_high} where mirror "
                    "is set", self.action_low)  # fmt: skip
        else:
            require(self.num_actions >= 1, "num_actions", "None or at least 1", self.num_actions)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolicyConfig:
        """Rebuild from JSON, whose lists become tuples again."""
        return rebuild(cls, values, "policy config")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What adapting may do, and how far a plant may drift: set on meta-training tasks."""

    objective: Objective
    """The inner objective that the limits belong to."""
    max_loss: tuple[float, ...]
    """A step is kept only where the inner loss on this task's data is at most this after it: a
    limit for each length of data in `support_steps`."""
    support_steps: tuple[int, ...] = (1,)
    """Lengths of data, ascending; the longest that a task's data reach is the one that counts."""
    max_kl: float
    """And where KL(adapted || meta), in nats a step of the data, is at most this."""
    max_prediction_error: float | None = None
    """Largest prediction error of an unchanged plant, `window` steps; None without prediction."""
    window: int = 20
    """Transitions that a look at the plant takes."""
    target_spread: tuple[float, ...] | None = None
    """Scale of the prediction targets in the data that a policy was adapted to; None before."""

    def __post_init__(self) -> None:
        check_types(self, finite=False)
        for name in ("max_kl", "max_prediction_error"):
            value = getattr(self, name)
            require(value is None or not math.isnan(value), name, "a number", value)
        lengths = self.support_steps
        require(len(lengths) > 0 and list(lengths) == sorted(set(lengths)), "support_steps",
                "ascending lengths", lengths)  # fmt: skip
        require(len(self.max_loss) == len(lengths) and not any(map(math.isnan, self.max_loss)),
                "max_loss", f"{len(lengths)} numbers, one a length", self.max_loss)  # fmt: skip
        require(self.window >= 1, "window", "at least 1", self.window)


@dataclass(frozen=True, kw_only=True)
class StandardAdaptationConfig:
    """Test-time adaptation on this task's data alone."""

    adapt_lr: float | None = None
    """Plain gradient descent with this rate; None uses the model's learned step sizes."""
    num_adapt_steps: int = 1
    """Gradient steps, all on the same support data."""
    objective: Objective = "prediction"
    """What the inner gradient descends: prediction needs no reward."""
    rollback: bool = True
    """Undo a step that the safeguard finds harmful, and end there; False keeps every step."""
    gamma: float = 0.99
    """Discount factor (policy_gradient only)."""
    gae_lambda: float = 0.98
    """Bias-variance trade-off of the advantages (policy_gradient only)."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.adapt_lr is None or self.adapt_lr >= 0, "adapt_lr",
                "None or a number of at least 0", self.adapt_lr)  # fmt: skip
        require(self.num_adapt_steps >= 0, "num_adapt_steps", "at least 0", self.num_adapt_steps)
        require(self.objective in ("prediction", "policy_gradient"), "objective",
                "'prediction' or 'policy_gradient'", self.objective)  # fmt: skip
        for name in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, name, "0 to 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class OnlineAdaptationConfig(StandardAdaptationConfig):
    """Adaptation inside a running episode, to the transitions since the plant changed."""

    rollback: bool = False
    """As in `StandardAdaptationConfig`; the next transition brings another step anyway."""
    detect_steps: int = 2
    """Transitions that tell whether the plant changed."""
    max_error: float = 0.7
    """Squared prediction error in them, over that of predicting no change at all, above which it
    did."""
    max_surprise: float = 0.1
    """The same where least squares predicts, which is far better at it (policies that remember)."""
    window: int = 20
    """Transitions since the change after which the adapted policy stays as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.objective == "prediction", "objective", "'prediction'", self.objective)
        for name in ("max_error", "max_surprise"):
            require(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        require(1 <= self.detect_steps <= self.window, "detect_steps",
                f"1 to {self.window} (window)", self.detect_steps)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HybridAdaptationConfig(StandardAdaptationConfig):
    """Test-time adaptation on this task's data and replayed experience."""

    experience_weight: float = 0.5
    """Weight of the replayed data's loss beside the current data's."""
    replay: ReplayWeights = "propensity"
    """propensity: replayed steps count as far as they fit the task; uniform: all alike, and fully
    trusted (an ablation)."""
    proximal_weight: float = 0.03
    """Share of the way from the meta-parameters that a step takes back where the replayed data do
    not fit the task at all (with adapt_lr: times the rate)."""
    num_replay_sequences: int = 64
    """Sequences drawn from the experience buffer, once per adaptation."""
    seed: int = 0
    """Names the stream that draws the sequences."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.experience_weight >= 0, "experience_weight", "at least 0",
                self.experience_weight)  # fmt: skip
        require(self.replay in ("propensity", "uniform"), "replay",
                "'propensity' or 'uniform'", self.replay)  # fmt: skip
        require(0 <= self.proximal_weight <= 1, "proximal_weight", "0 to 1", self.proximal_weight)
        require(self.num_replay_sequences >= 1, "num_replay_sequences", "at least 1",
                self.num_replay_sequences)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MetaTrainingConfig:
    """Meta-training: MAML over a task family."""

    family: str = "cartpole"
    """Task family, or the Gymnasium id that names it."""
    core: Core = "diagonal"
    """Sequence model: the linear `DiagonalSSM`, or the nonlinear `StateSpaceModel`."""
    state_dim: int = 32
    """Size of the SSM state (of each layer)."""
    hidden_dim: int | None = None
    """Width; None for 32 (diagonal) or 64 (state_space)."""
    num_layers: int = 2
    """Number of layers (diagonal only)."""
    norm_dim: int | None = None
    """Leading channels of the residual stream that its normalisation takes mean and variance over;
    None for all. Growing a model's width sets it, so that the function stays."""
    in_context: bool = False
    """The policy also remembers from episode to episode: a gradient step on top of its context."""
    memory: bool = True
    """Keep the model's state from step to step; False clears it before each."""
    start: str | None = None
    """Model whose weights to start from, of the same architecture; None for fresh ones."""
    seed: int = 0
    """Names every random number of the training."""
    device: str = "cpu"
    """Where it computes: cpu, whose kernels are compiled, or cuda, by PyTorch's own operations."""

    num_epochs: int | None = None
    """Stop after this many epochs (meta-batches); None for no limit."""
    max_env_steps: int | None = None
    """Stop after this many environment steps; None for 1,450,000 unless num_epochs is given."""
    tasks_per_epoch: int = 16
    """Tasks in a meta-batch, K."""
    episodes_per_task: int = 4
    """Query episodes of each task, N, run in parallel."""
    horizon: int = 200
    """Longest query episode, in steps; cut episodes are bootstrapped."""
    full_horizon_every: int = 4
    """Every so many epochs the episodes run to the family's own limit; 0 for never."""
    push_probability: float = 0.01
    """Share of query steps after which a random push changes the velocities (training only)."""
    spread_starts: float = 0.5
    """Share of query episodes that start far from the family's initial states (training only)."""

    objective: Objective = "prediction"
    """What the inner step descends: prediction needs no reward."""
    support_policy: SupportPolicy = "random"
    """Who collects the support data: uniform actions, or the unadapted policy, sampled."""
    min_support_steps: int = 5
    """Shortest support data, in environment steps."""
    max_support_steps: int = 40
    """Longest support data; each epoch draws a length between the two."""
    adaptation_steps: int = 3
    """Most inner steps; each epoch draws a number from 1 to this. 0: none, one policy for all
    tasks."""
    adaptation_mode: AdaptationMode = "standard"
    """standard: this task's data; hybrid: also replayed experience of other tasks."""
    experience_weight: float = 0.5
    """Weight of the replayed data's loss (hybrid only)."""
    buffer_size: int = 10_000
    """Transitions that the experience buffer holds; it is saved with the model."""
    inner_lr: float = 0.02
    """Initial value of the learned step sizes."""
    first_order: bool = False
    """Hold inner gradients constant in the outer step (first-order MAML)."""

    outer_lr: float = 4e-3
    """Adam's learning rate at the start; it decays linearly to 5 % of it."""
    update_epochs: int = 2
    """Outer steps on each meta-batch."""
    clip_coef: float = 0.2
    """Clipping range of the outer objective's likelihood ratio."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus in the outer objective."""
    inner_loss_coef: float = 0.1
    """Weight, in the outer loss, of the inner loss that is left after adapting (prediction)."""
    gamma: float = 0.995
    """Discount factor."""
    gae_lambda: float = 0.98
    """Bias-variance trade-off of generalised advantage estimation."""
    max_grad_norm: float = 1.0
    """The meta-gradient's norm is clipped to this."""

    calibration_tasks: int = 1200
    """Training tasks on which ssm-metarl train sets the limits of adaptation at the end; 0 for no
    limits. Their episodes are not counted as the training's."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.calibration_tasks == 0 or self.calibration_tasks >= 180, "calibration_tasks",
                "0 or at least 180 (fewer prove nothing)", self.calibration_tasks)  # fmt: skip
        at_least_one = (
            "state_dim", "num_layers", "tasks_per_epoch", "episodes_per_task", "horizon",
            "min_support_steps", "update_epochs", "buffer_size",
        )  # fmt: skip
        for name in at_least_one:
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("num_epochs", "max_env_steps", "hidden_dim"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "None or at least 1", value)
        for name in ("gamma", "gae_lambda", "push_probability", "spread_starts"):
            require(0 <= getattr(self, name) <= 1, name, "0 to 1", getattr(self, name))
        for name in ("inner_lr", "outer_lr", "clip_coef", "max_grad_norm"):
            require(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        at_least_zero = (
            "adaptation_steps", "entropy_coef", "inner_loss_coef", "experience_weight",
            "full_horizon_every",
        )  # fmt: skip
        for name in at_least_zero:
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(self.max_support_steps >= self.min_support_steps, "max_support_steps",
                f"at least min_support_steps = {self.min_support_steps}",
                self.max_support_steps)  # fmt: skip
        choices = {
            "core": ("diagonal", "state_space"),
            "objective": ("prediction", "policy_gradient"),
            "support_policy": ("random", "policy"),
            "adaptation_mode": ("standard", "hybrid"),
        }
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, name, f"one of {allowed}", getattr(self, name))
        require_norm_dim(self.core, self.norm_dim, self.width)
        require(not self.in_context or self.core == "diagonal", "in_context",
                "False, or core 'diagonal'", self.in_context)  # fmt: skip
        require(self.memory or not self.in_context, "memory", "True in context", self.memory)

    @property
    def env_step_limit(self) -> int | None:
        """The environment steps after which training stops, if they limit it."""
        if self.max_env_steps is None and self.num_epochs is None:
            return 1_450_000
        return self.max_env_steps

    @property
    def width(self) -> int:
        """The model's width, given or by default."""
        return default_width(self.core, self.hidden_dim)


@dataclass(frozen=True, kw_only=True)
class SingleTaskConfig:
    """Plain policy-gradient training on one environment, without meta-learning."""

    env_name: str = "CartPole-v1"
    """Gymnasium id of the environment."""
    num_episodes: int = 200
    """Finished episodes to train on."""
    seed: int = 0
    """Names every random number of the training."""
    core: Core = "diagonal"
    """Sequence model: the linear `DiagonalSSM`, or the nonlinear `StateSpaceModel`."""
    state_dim: int = 32
    """Size of the SSM state (of each layer)."""
    hidden_dim: int | None = None
    """Width; None for 32 (diagonal) or 64 (state_space)."""
    num_layers: int = 1
    """Number of layers."""
    episodes_per_update: int = 8
    """Episodes of each policy update, run in parallel."""
    lr: float = 5e-3
    """Adam's learning rate at the start; it decays linearly to 5 % of it."""
    update_epochs: int = 10
    """Gradient steps on each batch of episodes."""
    clip_coef: float = 0.2
    """Clipping range of the likelihood ratio."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.98
    """Bias-variance trade-off of generalised advantage estimation."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped to this."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.core in ("diagonal", "state_space"), "core",
                "'diagonal' or 'state_space'", self.core)  # fmt: skip
        for name in (
            "num_episodes", "episodes_per_update", "update_epochs", "state_dim", "num_layers"
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.hidden_dim is None or self.hidden_dim >= 1, "hidden_dim",
                "None or at least 1", self.hidden_dim)  # fmt: skip
        for name in ("lr", "clip_coef", "max_grad_norm"):
            require(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        require(self.entropy_coef >= 0, "entropy_coef", "at least 0", self.entropy_coef)
        for name in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, name, "0 to 1", getattr(self, name))

    @property
    def width(self) -> int:
        """The model's width, given or by default."""
        return default_width(self.core, self.hidden_dim)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation on held-out tasks: every arm on the same tasks, episodes paired."""

    family: str | None = None
    """Task family: a name, or my_plant.py:FAMILY; None for the one it was trained on."""
    split: Literal["id", "ood"] = "id"
    """In-distribution or out-of-distribution tasks; training drew neither."""
    num_tasks: int = 100
    """Held-out tasks."""
    seed: int = 0
    """Names the tasks and episodes. Seeds from 10,000 on are for final figures."""
    support_steps: int = 20
    """Environment steps of support data per task, the adaptation's whole cost."""
    support_policy: SupportPolicy | None = None
    """Who collects the support data; None for the one the model was meta-trained with."""
    objective: Objective | None = None
    """Inner objective; None for the one the model was meta-trained with."""
    num_adapt_steps: int = 1
    """Gradient steps, all on the same support data."""
    adapt_lr: float | None = None
    """Plain gradient descent with this rate; None uses the model's learned step sizes."""
    rollback: bool = True
    """Undo a step that the safeguard finds harmful, and end there; False keeps every step."""
    shuffle_actions: bool = False
    """Spoil the support data: each task's actions in another order, as in a broken log."""
    episodes_per_task: int = 4
    """Greedy full-length episodes a task."""
    experience_weight: float | None = None
    """Weight of replayed experience (hybrid arm); None for the one it was meta-trained with."""
    replay: ReplayWeights = "propensity"
    """As in `HybridAdaptationConfig` (hybrid arm)."""
    proximal_weight: float = HybridAdaptationConfig.proximal_weight
    """As in `HybridAdaptationConfig` (hybrid arm)."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_tasks", "support_steps", "episodes_per_task"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.num_adapt_steps >= 0, "num_adapt_steps", "at least 0", self.num_adapt_steps)
        require(self.adapt_lr is None or self.adapt_lr >= 0, "adapt_lr",
                "None or a number of at least 0", self.adapt_lr)  # fmt: skip
        require(self.experience_weight is None or self.experience_weight >= 0, "experience_weight",
                "None or a number of at least 0", self.experience_weight)  # fmt: skip
        require(0 <= self.proximal_weight <= 1, "proximal_weight", "0 to 1", self.proximal_weight)
        choices: dict[str, tuple[str | None, ...]] = {
            "split": ("id", "ood"),
            "support_policy": (None, "random", "policy"),
            "objective": (None, "prediction", "policy_gradient"),
            "replay": ("propensity", "uniform"),
        }
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, name, f"one of {allowed}", getattr(self, name))
