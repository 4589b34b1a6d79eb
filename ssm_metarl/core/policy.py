"""A policy: a sequence model and the heads that read action, value and prediction from it.

Place in the flow: stage 3; `env_runner.collect_rollout` runs its `actor`, `objectives` score it,
`adaptation.inner_loop` adapts its parameters.

Two kinds of heads, for the two sequence models:

- `LinearHeads` (with `DiagonalSSM`): action logits, a value and a prediction, each linear in the
  model's output f. The predicted change of the observation is P0 f + P1 (f x code(action)).
- `SliceHeads` (with `StateSpaceModel`): no parameter of their own. The first outputs are the
  action logits; the others are the predicted effect of the action on chosen observation
  dimensions, ``code(action) * output`` (for two actions the code is 2a - 1).

What is adapted and what is not: `meta_params` holds the weights that an inner step changes;
`step_sizes` (one for each of them, Meta-SGD) are learned by the outer step only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssm_metarl import seeding
from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import Calibration, PolicyConfig
from ssm_metarl.core.diagonal_ssm import DiagonalSSM
from ssm_metarl.core.distributions import ActionDistribution, Categorical, Gaussian
from ssm_metarl.core.fused import can_fuse, fused_unroll
from ssm_metarl.core.fused_actor import FusedActor
from ssm_metarl.core.plain_actor import PlainActor
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.core.task_linear import task_linear, task_vector
from ssm_metarl.core.trial_actor import TrialActor
from ssm_metarl.core.trial_input import TrialInput, trial_starts
from ssm_metarl.entrance import counts, parameters, sequence, shaped
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.types import FlatParams, Params, Rollout, SequenceModel, SizedActor, flatten

CARTPOLE_VELOCITIES = (1, 3)


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says about T steps in K x N environments."""

    distribution: ActionDistribution
    """Over actions, leading shape (T, K, N)."""
    output: Tensor
    """All that the heads read, shape (T, K, N, M), or (T, K, 2 N, M) where the policy also sees the
    mirrored histories; `Policy.predict` and `Policy.value` take it apart."""


class LinearHeads(nn.Module):
    """Heads that are linear in the sequence model's output: M = action, value and prediction.

    Args:
        feature_dim: Size of the output.
        action_space: Discrete, or continuous: Gaussian.
        obs_dim: Size of an observation, all of whose changes are predicted.
        scaled: Mean and log_std of continuous actions are those of their code (`PolicyConfig`).
    """

    action_middle: Tensor
    action_half: Tensor

    def __init__(
        self, feature_dim: int, action_space: ActionSpace, obs_dim: int, *, scaled: bool = False
    ) -> None:
        super().__init__()
        self.action_space, self.predicted_dims = action_space, tuple(range(obs_dim))
        self.action = nn.Linear(feature_dim, action_space.logits_dim)
        self.value = nn.Linear(feature_dim, 1)
        self.prediction = nn.Linear(feature_dim, obs_dim * (1 + action_space.code_dim))
        if isinstance(action_space, Continuous):
            self.log_std = nn.Parameter(torch.full((action_space.dim,), -0.5))
            middle, half = action_space.middle_and_half(self.log_std.detach())
            if not scaled:
                middle, half = torch.zeros_like(middle), torch.ones_like(half)
            self.register_buffer("action_middle", middle, persistent=False)
            self.register_buffer("action_half", half, persistent=False)
        with torch.no_grad():  # start near the uniform policy and at value zero
            for head in (self.action, self.value):
                head.weight.mul_(0.01)
                head.bias.zero_()

    @property
    def readouts(self) -> dict[str, nn.Linear]:
        """The linear maps from the core's output, in the order of `readout`."""
        return {"action": self.action, "value": self.value, "prediction": self.prediction}

    def readout(self, params: Params, features: Tensor) -> Tensor:
        """All that the heads say (K, ..., M), from the core's task-first output (K, ..., D)."""
        return torch.cat(
            [
                task_linear(features, params[f"heads.{n}.weight"], params[f"heads.{n}.bias"])
                for n in self.readouts
            ],
            dim=-1,
        )

    def actions(self, params: Params, output: Tensor) -> ActionDistribution:
        """Action distribution (K, ...) from the readout (K, ..., M)."""
        action = output[..., : self.action_space.logits_dim]
        if isinstance(self.action_space, Discrete):
            return Categorical(action)
        log_std = task_vector(params["heads.log_std"], action).expand_as(action)
        # the same weights say the same of an actuator in other units
        return Gaussian(
            self.action_middle + self.action_half * action, log_std + self.action_half.log()
        )

    def effects(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted change without an action (K, ..., O), and of its code (K, ..., O, C)."""
        out = output[..., self.action_space.logits_dim + 1 :]
        out = out.unflatten(-1, (len(self.predicted_dims), 1 + self.action_space.code_dim))
        return out[..., 0], out[..., 1:]


class SliceHeads(nn.Module):
    """Heads that are slices of the output: action logits first, then predicted effects."""

    def __init__(
        self, output_dim: int, action_space: ActionSpace, predicted_dims: tuple[int, ...]
    ) -> None:
        super().__init__()
        if not isinstance(action_space, Discrete):
            raise ValueError(
                "SliceHeads: expected a discrete action space, received a continuous one"
            )
        needed = action_space.n + len(predicted_dims) * action_space.code_dim
        if output_dim < needed:
            raise ValueError(
                f"output_dim: expected at least {needed} ({action_space.n} action logits and "
                f"{needed - action_space.n} predicted effects), received {output_dim}"
            )
        self.action_space, self.predicted_dims = action_space, predicted_dims

    @property
    def readouts(self) -> dict[str, nn.Linear]:
        """None: the core's output is what they read."""
        return {}

    def readout(self, params: Params, features: Tensor) -> Tensor:
        """The core's output, as it is."""
        return features

    def actions(self, params: Params, output: Tensor) -> ActionDistribution:
        """Action distribution (K, ...) from the core's output (K, ..., M)."""
        return Categorical(output[..., : self.action_space.n])

    def effects(self, output: Tensor) -> tuple[None, Tensor]:
        """No change without an action, and that of its code (K, ..., len(predicted_dims), C)."""
        start, code_dim = self.action_space.n, self.action_space.code_dim
        size = len(self.predicted_dims) * code_dim
        return None, output[..., start : start + size].unflatten(-1, (-1, code_dim))


class Policy(nn.Module):
    """A sequence model with heads, and a learned step size for each parameter.

    Args:
        core: The sequence model; its input is the clipped observation times ``obs_scale``.
        heads: What reads the output.
        obs_scale: Fixed factor for each observation dimension.
        obs_limit: Bound of each observation dimension, either side of zero; empty for none. A
            plant out of the training range moves faster than any that the model has seen, and its
            weights say nothing about such inputs.
        reflection: Factor, -1 or 1, of each observation dimension in a mirrored history; empty for
            a policy that sees none. Else each output is averaged with that of the mirrored history,
            mirrored back: van der Pol et al. 2020 (arXiv 2006.16908), for the group of one
            reflection. A policy that is not symmetric leans to one side, and a plant with a weak
            actuator falls that way.
        trial_input: For an in-context policy, whose state runs through all episodes of a trial:
            what its core's input holds. None for one that sees observations alone.
        memory: Whether the state is kept from step to step. Without, every step is cleared like an
            episode's first one.
        inner_lr: Initial step size of every parameter.
        config: The architecture as data, where the policy is to be saved.
    """

    obs_scale: Tensor
    obs_limit: Tensor
    reflection: Tensor
    """Factor of each of the core's inputs in a mirrored history, shape (I,)."""
    prediction_reflection: Tensor
    """Factor of each predicted dimension there."""
    adapted = False
    """Whether its parameters are a task's: no start for another adaptation."""

    def __init__(
        self,
        core: SequenceModel,
        heads: LinearHeads | SliceHeads,
        *,
        obs_scale: tuple[float, ...],
        obs_limit: tuple[float, ...] = (),
        reflection: tuple[float, ...] = (),
        trial_input: TrialInput | None = None,
        memory: bool = True,
        inner_lr: float,
        config: PolicyConfig | None = None,
    ) -> None:
        super().__init__()
        holder: object = core  # apart, or the type checker takes `core` for a Module alone
        if not isinstance(holder, nn.Module):
            raise TypeError(f"core: expected a torch module, received {type(core).__name__}")
        if trial_input is not None:
            if core.input_dim != trial_input.size:
                raise ValueError(
                    f"core: expected {trial_input.size} inputs, received {core.input_dim}"
                )
        elif core.input_dim != len(obs_scale):
            raise ValueError(
                f"obs_scale: expected {core.input_dim} factors, received {len(obs_scale)}"
            )
        self.core, self.heads, self.config = core, heads, config
        self.mirror, self.trial_input, self.memory = bool(reflection), trial_input, memory
        self.calibration: Calibration | None = None
        """Limits for adapting and for drift, where they were set (`evaluation.calibration`)."""
        self.trained_on: tuple[str, str] | None = None
        """Name and fingerprint of the task family that it was trained on, where they are known."""
        self.register_buffer("obs_scale", torch.tensor(obs_scale), persistent=False)
        limits = obs_limit or (torch.inf,) * len(obs_scale)
        self.register_buffer("obs_limit", torch.tensor(limits), persistent=False)
        factors = torch.tensor(reflection or (1.0,) * len(obs_scale))
        predicted = factors[list(heads.predicted_dims)]
        self.register_buffer("prediction_reflection", predicted, persistent=False)
        if trial_input is not None:
            factors = trial_input.reflection(factors)
        self.register_buffer("reflection", factors, persistent=False)
        self._shapes = {name: p.shape for name, p in self.named_parameters()}
        spans = FlatParams(torch.empty(0), self._shapes).spans
        self.kernel = core.kernel(
            [(spans[f"heads.{n}.weight"][0], h.out_features) for n, h in heads.readouts.items()]
        )
        self._num_parameters = sum(shape.numel() for shape in self._shapes.values())
        self._sizes = (core.input_dim, core.hidden_size * (2 if self.mirror else 1))
        self.step_size = nn.Parameter(torch.full((self._num_parameters,), float(inner_lr)))

    @property
    def in_context(self) -> bool:
        """Whether it remembers from episode to episode, and sees what its actions brought."""
        return self.trial_input is not None

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return self.obs_scale.shape[0]

    @property
    def input_dim(self) -> int:
        """Size of what `unroll` takes at a step."""
        return self.core.input_dim

    @property
    def action_space(self) -> ActionSpace:
        """The actions that it chooses among."""
        return self.heads.action_space

    def meta_params(self) -> dict[str, Tensor]:
        """The parameters that an inner step adapts, by name."""
        return {name: p for name, p in self.named_parameters() if name != "step_size"}

    def step_sizes(self) -> FlatParams:
        """The learned step size of every meta-parameter, by name."""
        return FlatParams(self.step_size, self._shapes)

    def num_parameters(self) -> int:
        """Size of the model: parameters of core and heads, without the step sizes."""
        return self.step_size.numel()

    def init_hidden(self, num_tasks: int, num_envs: int) -> Tensor:
        """The state before the first step: zeros, shape (K, N, P), or (K, N, 2 P) if mirrored."""
        return self.step_size.new_zeros(num_tasks, num_envs, self._sizes[1])

    def unroll(
        self, params: Params, obs: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[PolicyOutput, Tensor]:
        """Run over a rollout's observations, as a pure function of ``params``.

        Args:
            params: From `meta_params`, shared or with a leading K axis.
            obs: Shape (T, K, N, O); for an in-context policy its inputs (`inputs`), (T, K, N, I).
            hidden: State before the first step, as `init_hidden` gives it.
            reset: True where the state is cleared, shape (T, K, N): where an episode starts, for
                an in-context policy where a trial does.

        Raises:
            ValueError: A shape does not fit.
        """
        flat = flatten(params, self._shapes)
        obs, hidden, reset = sequence(
            flat, self._num_parameters, obs, hidden, reset, self._sizes, name="obs"
        )
        x = obs if self.in_context else self.scaled(obs)
        if not self.memory:
            reset = torch.ones_like(reset)
        if self.mirror:  # the history and its mirror image, as twice the environments
            x, reset = torch.cat([x, x * self.reflection], dim=2), torch.cat([reset, reset], dim=2)
            hidden = torch.cat(hidden.chunk(2, dim=-1), dim=1)
        if not (isinstance(params, FlatParams) and params.shapes is self._shapes):
            params = FlatParams(flat, self._shapes)
        if self.kernel is not None and can_fuse(params.flat, x, hidden):
            output, hidden = fused_unroll(
                self.kernel, params.flat, x.transpose(0, 1), hidden, reset.transpose(0, 1)
            )
        else:
            features, hidden = self.core.unroll(params.under("core."), x, hidden, reset)
            output = self.heads.readout(params, features.transpose(0, 1))
        distribution = self.heads.actions(params, output)
        if self.mirror:
            hidden = torch.cat(hidden.chunk(2, dim=1), dim=-1)
            distribution = distribution.mirror_mean()
        return PolicyOutput(distribution.transpose(0, 1), output.transpose(0, 1)), hidden

    def scaled(self, obs: Tensor) -> Tensor:
        """Observations (..., O), clipped and scaled."""
        limit = self.obs_limit
        return obs.clamp(-limit, limit) * self.obs_scale

    def inputs(self, rollout: Rollout, trial_start: Tensor) -> Tensor:
        """What an in-context policy sees of a (cleaned) rollout, shape (T, K, N, I).

        Args:
            rollout: Steps in K x N environments.
            trial_start: True where a trial starts, shape (T, K, N).
        """
        assert self.trial_input is not None
        code = self.action_space.code(rollout.action).to(rollout.obs.dtype)
        z, limit = rollout.obs * self.obs_scale, self.obs_limit * self.obs_scale
        return self.trial_input.of_sequences(
            z, limit, code, rollout.reward, rollout.reset, trial_start
        )

    def look(self, params: Params, rollout: Rollout) -> PolicyOutput:
        """What it says about a (cleaned) rollout, from an empty memory.

        For an in-context policy an environment's steps are one trial.

        Raises:
            ValueError: Observations or actions are none of this policy's.
        """
        return self.read(params, rollout)[0]

    def read(self, params: Params, rollout: Rollout) -> tuple[PolicyOutput, Tensor]:
        """`look`, and the state that the rollout leaves."""
        check_actions(self.action_space, rollout)
        hidden = self.init_hidden(rollout.num_tasks, rollout.num_envs)
        seen, reset = rollout.obs, rollout.reset
        if self.in_context:
            reset = trial_starts(rollout.reset, None)
            seen = self.inputs(rollout, reset)
        return self.unroll(params, seen, hidden, reset)

    def value(self, output: Tensor) -> Tensor:
        """Predicted return-to-go, shape (T, K, N), from `PolicyOutput.output`.

        Raises:
            TypeError: The heads predict none (`SliceHeads`).
        """
        if isinstance(self.heads, SliceHeads):
            raise TypeError("value: expected heads that predict one, received SliceHeads")
        value = output[..., self.action_space.logits_dim]
        return torch.stack(value.chunk(2, dim=2)).mean(0) if self.mirror else value

    def predict(self, output: Tensor, code: Tensor) -> Tensor:
        """Predicted change of the observation dimensions ``heads.predicted_dims``.

        Args:
            output: `PolicyOutput.output`.
            code: Of the actions taken (``action_space.code``), shape (T, K, N, C).

        Returns:
            Shape (T, K, N, len(predicted_dims)), in units of the targets' spread.
        """
        if not self.mirror:
            return self._predict(output, code)
        here, image = output.chunk(2, dim=2)
        mirrored = self._predict(image, self.action_space.mirror_code(code))
        return (self._predict(here, code) + self.prediction_reflection * mirrored) / 2

    def _predict(self, output: Tensor, code: Tensor) -> Tensor:
        alone, of_action = self.heads.effects(output)
        effect = (of_action * code[..., None, :]).sum(-1)
        return effect if alone is None else alone + effect

    @usual_modes()
    def actor(
        self,
        params: Params,
        num_tasks: int,
        num_envs: int,
        *,
        noise: TaskNoise | None = None,
        num_steps: int = 0,
        trial_episodes: int | None = None,
    ) -> SizedActor:
        """An actor with a hidden state of its own.

        It starts every episode with an empty memory; an in-context policy's, every trial.

        Args:
            params: Shared or per-task parameters.
            num_tasks: K.
            num_envs: N.
            noise: The tasks' streams to sample actions from; None acts greedily.
            num_steps: Steps that will be asked for, where it samples.
            trial_episodes: Episodes of a trial (in-context policies); None for one trial without
                an end.

        Raises:
            ValueError: A number below 1, parameters of another policy, noise of other tasks.
        """
        counts(num_tasks=num_tasks, num_envs=num_envs)
        if trial_episodes is not None:
            counts(trial_episodes=trial_episodes)
        samples = None
        if noise is not None:
            drawn = self.action_space.draw_noise(noise, num_steps, num_envs).to(self.step_size)
            shape = (num_steps, num_tasks, num_envs, drawn.shape[-1])
            samples = _one_by_one(shaped("noise", drawn, shape, drawn.dtype, "T, K, N, ."))
        flat = parameters(flatten(params, self._shapes), self._num_parameters, num_tasks)
        params = FlatParams(flat.detach(), self._shapes)
        if self.in_context:
            return TrialActor(
                self, params, num_tasks, num_envs, samples, trial_episodes=trial_episodes
            )
        hidden = self.init_hidden(num_tasks, num_envs)
        fused = isinstance(self.action_space, Discrete) and self.kernel is not None
        if fused and can_fuse(params.flat, self.obs_scale, hidden):
            return FusedActor(self, params, num_tasks, num_envs, samples)
        return PlainActor(self, params, num_tasks, num_envs, samples)


def check_actions(space: ActionSpace, rollout: Rollout) -> None:
    """Raise ValueError unless the actions of a rollout's taken steps are of a space."""
    space.checked(rollout.action, rollout.mask.shape, "T, K, N", taken=rollout.mask)


def _one_by_one(drawn: Tensor) -> Iterator[Tensor]:
    """Each step's noise; whoever asks for more steps than were announced hears of it."""
    yield from drawn
    raise ValueError(f"num_steps: expected as many as are asked for, received {len(drawn)}")


@usual_modes()
def build_policy(config: PolicyConfig, *, seed: int, inner_lr: float) -> Policy:
    """A freshly initialised policy of the given architecture.

    Args:
        config: The architecture.
        seed: Names the initial weights.
        inner_lr: Initial step size of every parameter.
    """
    action_space: ActionSpace = (
        Continuous(config.action_dim, config.action_low, config.action_high)
        if config.num_actions is None
        else Discrete(config.num_actions)
    )
    obs_dim, trial_input = len(config.obs_scale), None
    if config.in_context:
        trial_input = TrialInput(
            obs_dim, action_space.code_dim, config.actions_seen, config.identifies
        )
    # torch's initialisers draw from the global generator: fork it, so that it is left as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeding.generator(seed, "initial-weights").integers(2**63)))
        if config.core == "state_space":
            nonlinear = StateSpaceModel(
                state_dim=config.state_dim,
                input_dim=obs_dim,
                output_dim=config.output_dim,
                hidden_dim=config.hidden_dim,
            )
            if config.obs_limit:  # start as sensitive to an angle as to a position
                with torch.no_grad():
                    for layer in (nonlinear.input_projection, nonlinear.feedthrough):
                        layer.weight.div_(torch.tensor(config.obs_limit))
            core: SequenceModel = nonlinear
            heads: LinearHeads | SliceHeads = SliceHeads(
                config.output_dim, action_space, config.predicted_dims
            )
        else:
            core = DiagonalSSM(
                obs_dim if trial_input is None else trial_input.size,
                config.hidden_dim,
                config.state_dim,
                config.num_layers,
                norm_dim=config.norm_dim,
            )
            heads = LinearHeads(
                config.hidden_dim, action_space, obs_dim, scaled=config.action_scaled
            )
        return Policy(
            core,
            heads,
            obs_scale=config.obs_scale,
            obs_limit=config.obs_limit,
            reflection=config.reflection,
            trial_input=trial_input,
            memory=config.memory,
            inner_lr=inner_lr,
            config=config,
        )


def as_policy(model: Policy | StateSpaceModel) -> Policy:
    """The policy of a model: itself, or a raw `StateSpaceModel` read as the documents say.

    A raw model's first two outputs are action logits; with four inputs and four outputs (the
    documented CartPole shape) the others predict the action's effect on the two velocities.
    """
    if isinstance(model, Policy):
        return model
    if not isinstance(model, StateSpaceModel):
        raise TypeError(
            f"policy: expected a Policy or a StateSpaceModel, received {type(model).__name__}"
        )
    cartpole_shaped = model.input_dim == 4 and model.output_dim == 4
    config = PolicyConfig(
        core="state_space",
        state_dim=model.state_dim,
        hidden_dim=model.hidden_dim,
        output_dim=model.output_dim,
        obs_scale=(1.0,) * model.input_dim,
        num_actions=2,
        predicted_dims=CARTPOLE_VELOCITIES if cartpole_shaped else (),
    )
    heads = SliceHeads(model.output_dim, Discrete(2), config.predicted_dims)
    return Policy(model, heads, obs_scale=config.obs_scale, inner_lr=0.01, config=config)
