"""Settings of every stage, as frozen dataclasses: what the command line and the API both build.

Place in the flow: under everything that can be set. No torch here, so that ``--help`` is instant.
The docstring under a field is also its help on the command line. A value out of range raises
ValueError with what was expected and what was received.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ssm_metarl.settings import (
    Count,
    Natural,
    Number,
    Positive,
    Share,
    Weight,
    check_fields,
    rebuild,
    require,
)
from ssm_metarl.tasks import names

Objective = Literal["prediction", "policy_gradient"]
SupportPolicy = Literal["random", "policy"]
AdaptationMode = Literal["standard", "hybrid"]
ReplayWeights = Literal["propensity", "uniform"]
Core = Literal["diagonal", "state_space"]


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """A model's core and sizes."""

    core: Core = "diagonal"
    """Sequence model: the linear `DiagonalSSM`, or the nonlinear `StateSpaceModel`."""
    state_dim: Count = 32
    """Size of the SSM state (of each layer)."""
    hidden_dim: Count | None = None
    """Width; None for 32 (diagonal) or 64 (state_space)."""
    num_layers: Count = 2
    """Number of layers (diagonal only)."""

    @property
    def width(self) -> int:
        """The model's width, given or by default."""
        return self.hidden_dim or (32 if self.core == "diagonal" else 64)


@dataclass(frozen=True, kw_only=True)
class Memory(ModelSizes):
    """Beside its sizes, what a model remembers."""

    norm_dim: int | None = None
    """Leading channels of the residual stream that its normalisation takes mean and variance over;
    None for all. Growing a model's width sets it, so that the function stays."""
    in_context: bool = False
    """See rewards, actions and ends too, and remember from episode to episode (diagonal only). In
    meta-training: a gradient step on top of its context."""
    memory: bool = True
    """Keep the model's state from step to step; False clears it before each: nothing is
    remembered."""

    def _check_memory(self) -> None:
        if (size := self.norm_dim) is not None:
            require(self.core == "diagonal", "norm_dim", "None where core is 'state_space'", size)
            expected = f"None or 1 to {self.width}, the width"
            require(1 <= size <= self.width, "norm_dim", expected, size)
        require(not self.in_context or self.core == "diagonal", "in_context",
                "False, or core 'diagonal'", self.in_context)  # fmt: skip
        require(self.memory or not self.in_context, "memory", "True in context", self.memory)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(Memory):
    """The architecture of a policy: with its weights, all that is needed to run it."""

    hidden_dim: Count = 32
    """Width of the residual stream (diagonal) or of the hidden layers (state_space)."""
    output_dim: Count = 4
    """Size of the output (state_space only): action logits, then predicted effects."""
    obs_scale: tuple[float, ...]
    """Fixed factor for each observation dimension; its length is the observation's."""
    obs_limit: tuple[float, ...] = ()
    """Observations are clipped to this either side of zero, in their own units; empty: they are
    not."""
    num_actions: Count | None = None
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
    told_dims: int = 0
    """Last observation dimensions that a mirrored history leaves as they are: what a task tells of
    its parameters (see `TaskFamily.told_dims`)."""
    reflection: tuple[float, ...] = ()
    """Factor, -1 or 1, of each observation dimension in a mirrored history (see
    `TaskFamily.reflection`). Filled in where `mirror` is set and a file does not say: all change
    sign but what is told."""
    actions_seen: Count = 3
    """Last actions that count for an in-context policy, newest first (see `trial_input`)."""
    identifies: bool = True
    """Whether an in-context policy is told what least squares finds of the plant."""
    foresees: bool = False
    """Whether it is told that as what will happen (`foresight`), as every new one is."""

    def __post_init__(self) -> None:
        check_fields(self, finite=False)
        if self.mirror and not self.reflection:
            turned = max(len(self.obs_scale) - self.told_dims, 0)
            factors = (-1.0,) * turned + (1.0,) * (len(self.obs_scale) - turned)
            object.__setattr__(self, "reflection", factors)
        self._check_memory()
        require(self.identifies or not self.foresees, "foresees", "False without identifies",
                self.foresees)  # fmt: skip
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
    told_lies: tuple[bool, ...] = ()
    """Whether the limit for that length also keeps data that lie about the actions from doing harm.
    False where they are explained as well as honest ones; empty, as in old files, for True."""
    max_kl: Number
    """And where KL(adapted || meta), in nats a step of the data, is at most this."""
    max_prediction_error: Number | None = None
    """Largest prediction error of an unchanged plant, `window` steps; None without prediction."""
    window: Count = 20
    """Transitions that a look at the plant takes."""
    target_spread: tuple[float, ...] | None = None
    """Scale of the prediction targets in the data that a policy was adapted to; None before."""

    def __post_init__(self) -> None:
        check_fields(self, finite=False)
        lengths = self.support_steps
        require(len(lengths) > 0 and list(lengths) == sorted(set(lengths)), "support_steps",
                "ascending lengths", lengths)  # fmt: skip
        require(len(self.max_loss) == len(lengths) and not any(map(math.isnan, self.max_loss)),
                "max_loss", f"{len(lengths)} numbers, one a length", self.max_loss)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdaptationSteps:
    """How many steps an adaptation takes, and how large they are."""

    num_adapt_steps: Natural = 1
    """Gradient steps, all on the same support data."""
    adapt_lr: Weight | None = None
    """Plain gradient descent with this rate; None uses the model's learned step sizes."""
    rollback: bool = True
    """Undo a step that the safeguard finds harmful, and end there; False keeps every step."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class StandardAdaptationConfig(AdaptationSteps):
    """Test-time adaptation on this task's data alone."""

    objective: Objective = "prediction"
    """What the inner gradient descends: prediction needs no reward."""
    gamma: Share = 0.99
    """Discount factor (policy_gradient only)."""
    gae_lambda: Share = 0.98
    """Bias-variance trade-off of the advantages (policy_gradient only)."""


@dataclass(frozen=True, kw_only=True)
class OnlineAdaptationConfig(StandardAdaptationConfig):
    """Adaptation inside a running episode, to the transitions since the plant changed."""

    rollback: bool = False
    """As in `StandardAdaptationConfig`; the next transition brings another step anyway."""
    detect_steps: Count = 2
    """Transitions that tell whether the plant changed."""
    max_error: Positive = 0.7
    """Squared prediction error in them, over that of predicting no change at all, above which it
    did."""
    max_surprise: Positive = 0.1
    """The same where least squares predicts, which is far better at it (policies that remember)."""
    window: int = 20
    """Transitions since the change after which the adapted policy stays as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.objective == "prediction", "objective", "'prediction'", self.objective)
        require(self.detect_steps <= self.window, "detect_steps",
                f"1 to {self.window} (window)", self.detect_steps)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HybridAdaptationConfig(StandardAdaptationConfig):
    """Test-time adaptation on this task's data and replayed experience."""

    experience_weight: Weight = 0.5
    """Weight of the replayed data's loss beside the current data's."""
    replay: ReplayWeights = "propensity"
    """propensity: replayed steps count as far as they fit the task; uniform: all alike, and fully
    trusted (an ablation)."""
    proximal_weight: Share = 0.03
    """Share of the way from the meta-parameters that a step takes back where the replayed data do
    not fit the task at all (with adapt_lr: times the rate)."""
    num_replay_sequences: Count = 64
    """Sequences drawn from the experience buffer, once per adaptation."""
    seed: int = 0
    """Names the stream that draws the sequences."""


@dataclass(frozen=True, kw_only=True)
class PpoSettings:
    """What every training by proximal policy optimisation sets (`objectives.ppo`, `.gae`)."""

    update_epochs: Count = 2
    """Passes over each batch of data."""
    clip_coef: Positive = 0.2
    """Clipping range of the likelihood ratio."""
    entropy_coef: Weight = 0.0
    """Weight of the entropy bonus."""
    gamma: Share = 0.99
    """Discount factor of a step."""
    gae_lambda: Share = 0.98
    """Bias-variance trade-off of generalised advantage estimation."""
    max_grad_norm: Positive = 1.0
    """The gradient's norm is clipped to this."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class FamilyTraining:
    """What every training over a task family sets."""

    family: str = names.FAMILY
    """Task family, or the Gymnasium id that names it."""
    seed: int = 0
    """Names every random number of the training."""
    num_epochs: Count | None = None
    """Stop after this many epochs; None for no limit."""
    max_env_steps: Count | None = None
    """Stop after this many environment steps; None for 1,450,000 (in context 2,000,000) unless
    num_epochs is given."""
    imitation_coef: Weight = 0.0
    """Weight of imitating the family's expert, which is told the task, in states that the policy
    got into itself (training only, and only for families that have one)."""

    DEFAULT_ENV_STEPS: ClassVar[int]

    @property
    def env_step_limit(self) -> int | None:
        """The environment steps after which training stops, if they limit it."""
        if self.max_env_steps is None and self.num_epochs is None:
            return self.DEFAULT_ENV_STEPS
        return self.max_env_steps


@dataclass(frozen=True, kw_only=True)
class MetaTrainingConfig(PpoSettings, Memory, FamilyTraining):
    """Meta-training: MAML over a task family."""

    DEFAULT_ENV_STEPS: ClassVar[int] = 1_450_000

    start: str | None = None
    """Model whose weights to start from, of the same architecture; None for fresh ones."""
    device: str = "cpu"
    """Where it computes: cpu, whose kernels are compiled, or cuda, by PyTorch's own operations."""

    tasks_per_epoch: Count = 16
    """Tasks in a meta-batch, K."""
    episodes_per_task: Count = 4
    """Query episodes of each task, N, run in parallel."""
    horizon: Count = 200
    """Longest query episode, in steps; cut episodes are bootstrapped."""
    full_horizon_every: Natural = 4
    """Every so many epochs the episodes run to the family's own limit; 0 for never."""
    push_probability: Share = 0.01
    """Share of query steps after which a random push changes the velocities (training only)."""
    spread_starts: Share = 0.5
    """Share of query episodes that start far from the family's initial states (training only)."""

    objective: Objective = "prediction"
    """What the inner step descends: prediction needs no reward."""
    support_policy: SupportPolicy = "random"
    """Who collects the support data: uniform actions, or the unadapted policy, sampled."""
    min_support_steps: Count = 5
    """Shortest support data, in environment steps."""
    max_support_steps: int = 40
    """Longest support data; each epoch draws a length between the two."""
    adaptation_steps: Natural = 3
    """Most inner steps; each epoch draws a number from 1 to this. 0: none, one policy for all
    tasks."""
    adaptation_mode: AdaptationMode = "standard"
    """standard: this task's data; hybrid: also replayed experience of other tasks."""
    experience_weight: Weight = 0.5
    """Weight of the replayed data's loss (hybrid only)."""
    buffer_size: Count = 10_000
    """Transitions that the experience buffer holds; it is saved with the model."""
    inner_lr: Positive = 0.02
    """Initial value of the learned step sizes."""
    first_order: bool = False
    """Hold inner gradients constant in the outer step (first-order MAML)."""

    outer_lr: Positive = 4e-3
    """Adam's learning rate at the start; it decays linearly to 5 % of it."""
    inner_loss_coef: Weight = 0.1
    """Weight, in the outer loss, of the inner loss that is left after adapting (prediction)."""
    gamma: Share = 0.995
    """Discount factor of a step."""

    calibration_tasks: int = 1200
    """Training tasks on which a training sets the limits of adaptation at its end; 0 for no limits.
    Their episodes are not counted as the training's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.calibration_tasks == 0 or self.calibration_tasks >= 180, "calibration_tasks",
                "0 or at least 180 (fewer prove nothing)", self.calibration_tasks)  # fmt: skip
        require(self.max_support_steps >= self.min_support_steps, "max_support_steps",
                f"at least min_support_steps = {self.min_support_steps}",
                self.max_support_steps)  # fmt: skip
        self._check_memory()


@dataclass(frozen=True, kw_only=True)
class SingleTaskConfig(PpoSettings, ModelSizes):
    """Plain policy-gradient training on one environment, without meta-learning."""

    env_name: str = names.ENVIRONMENT
    """Gymnasium id of the environment."""
    num_episodes: Count = 200
    """Finished episodes to train on."""
    seed: int = 0
    """Names every random number of the training."""
    num_layers: Count = 1
    """Number of layers (diagonal only)."""
    episodes_per_update: Count = 8
    """Episodes of each policy update, run in parallel."""
    lr: Positive = 5e-3
    """Adam's learning rate at the start; it decays linearly to 5 % of it."""
    update_epochs: Count = 10
    """Gradient steps on each batch of episodes."""


@dataclass(frozen=True, kw_only=True)
class SupportSettings(AdaptationSteps):
    """What a model is adapted to, and how, where nothing else is said: as it was meta-trained."""

    family: str | None = None
    """Task family: a name, or my_plant.py:FAMILY; None for the one it was trained on."""
    seed: int = 0
    """Names the support data and the episodes."""
    support_steps: Count = 20
    """Environment steps of support data per task, the adaptation's whole cost."""
    support_policy: SupportPolicy | None = None
    """Who collects the support data; None for the one the model was meta-trained with."""
    objective: Objective | None = None
    """Inner objective; None for the one the model was meta-trained with."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(SupportSettings):
    """Evaluation on held-out tasks: every arm on the same tasks, episodes paired."""

    split: Literal["id", "ood"] = "id"
    """In-distribution or out-of-distribution tasks; training drew neither."""
    num_tasks: Count = 100
    """Held-out tasks."""
    seed: int = 0
    """Names the tasks and episodes. Seeds from 10,000 on are for final figures."""
    shuffle_actions: bool = False
    """Spoil the support data: each task's actions in another order, as in a broken log."""
    episodes_per_task: Count = 4
    """Greedy full-length episodes a task."""
    experience_weight: Weight | None = None
    """Weight of replayed experience (hybrid arm); None for the one it was meta-trained with."""
    replay: ReplayWeights = "propensity"
    """As in `HybridAdaptationConfig` (hybrid arm)."""
    proximal_weight: Share = HybridAdaptationConfig.proximal_weight
    """As in `HybridAdaptationConfig` (hybrid arm)."""
