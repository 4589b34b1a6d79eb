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

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssm_metarl import seeding
from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.config import Calibration, PolicyConfig
from ssm_metarl.core.diagonal_ssm import DiagonalSSM
from ssm_metarl.core.distributions import ActionDistribution, Categorical, Gaussian
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.core.task_linear import task_linear, task_vector
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.types import Actor, Params, SequenceModel

CARTPOLE_VELOCITIES = (1, 3)


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says about T steps in K x N environments."""

    distribution: ActionDistribution
    """Over actions, leading shape (T, K, N)."""
    value: Tensor | None
    """Predicted return-to-go, shape (T, K, N), where the heads have one."""
    output: Tensor
    """The sequence model's output, shape (T, K, N, D), or (T, K, N, 2 D) where the policy also sees
    the mirrored history; `Policy.predict` reads it."""


class LinearHeads(nn.Module):
    """Heads that are linear in the sequence model's output."""

    def __init__(self, feature_dim: int, action_space: ActionSpace, obs_dim: int) -> None:
        super().__init__()
        self.action_space, self.predicted_dims = action_space, tuple(range(obs_dim))
        self.action = nn.Linear(feature_dim, action_space.logits_dim)
        self.value = nn.Linear(feature_dim, 1)
        self.prediction = nn.Linear(feature_dim, obs_dim * (1 + action_space.code_dim))
        if isinstance(action_space, Continuous):
            self.log_std = nn.Parameter(torch.full((action_space.dim,), -0.5))
        with torch.no_grad():  # start near the uniform policy and at value zero
            for head in (self.action, self.value):
                head.weight.mul_(0.01)
                head.bias.zero_()

    def read(self, params: Params, output: Tensor) -> tuple[ActionDistribution, Tensor | None]:
        """Action distribution and value (K, ...) from task-first output (K, ..., D)."""
        value = task_linear(output, params["heads.value.weight"], params["heads.value.bias"])
        action = task_linear(output, params["heads.action.weight"], params["heads.action.bias"])
        if isinstance(self.action_space, Discrete):
            return Categorical(action), value[..., 0]
        log_std = task_vector(params["heads.log_std"], action).expand_as(action)
        return Gaussian(action, log_std), value[..., 0]

    def predict(self, params: Params, output: Tensor, code: Tensor) -> Tensor:
        """Predicted change (K, ..., O) from output (K, ..., D) and action code (K, ..., C)."""
        out = task_linear(
            output, params["heads.prediction.weight"], params["heads.prediction.bias"]
        )
        out = out.reshape(*out.shape[:-1], len(self.predicted_dims), 1 + code.shape[-1])
        return out[..., 0] + (out[..., 1:] * code[..., None, :]).sum(-1)


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

    def read(self, params: Params, output: Tensor) -> tuple[ActionDistribution, Tensor | None]:
        """Action distribution from task-first output (K, ..., D); there is no value."""
        return Categorical(output[..., : self.action_space.n]), None

    def predict(self, params: Params, output: Tensor, code: Tensor) -> Tensor:
        """Predicted effect (K, ..., len(predicted_dims)) of an action of code (K, ..., C)."""
        start, size = self.action_space.n, len(self.predicted_dims) * code.shape[-1]
        effect = output[..., start : start + size]
        effect = effect.reshape(*effect.shape[:-1], len(self.predicted_dims), code.shape[-1])
        return (effect * code[..., None, :]).sum(-1)


class Policy(nn.Module):
    """A sequence model with heads, and a learned step size for each parameter.

    Args:
        core: The sequence model; its input is the clipped observation times ``obs_scale``.
        heads: What reads the output.
        obs_scale: Fixed factor for each observation dimension.
        obs_limit: Bound of each observation dimension, either side of zero; empty for none. A
            plant out of the training range moves faster than any that the model has seen, and its
            weights say nothing about such inputs.
        mirror: Average each output with that of the mirrored history, mirrored back: van der Pol
            et al. 2020 (arXiv 2006.16908), for the group of one reflection. A policy that is not
            symmetric leans to one side, and a plant with a weak actuator falls that way.
        inner_lr: Initial step size of every parameter.
        config: The architecture as data, where the policy is to be saved.
    """

    obs_scale: Tensor
    obs_limit: Tensor

    def __init__(
        self,
        core: SequenceModel,
        heads: LinearHeads | SliceHeads,
        *,
        obs_scale: tuple[float, ...],
        obs_limit: tuple[float, ...] = (),
        mirror: bool = False,
        inner_lr: float,
        config: PolicyConfig | None = None,
    ) -> None:
        super().__init__()
        holder: object = core  # apart, or the type checker takes `core` for a Module alone
        if not isinstance(holder, nn.Module):
            raise TypeError(f"core: expected a torch module, received {type(core).__name__}")
        if core.input_dim != len(obs_scale):
            raise ValueError(
                f"obs_scale: expected {core.input_dim} factors, received {len(obs_scale)}"
            )
        self.core, self.heads, self.config = core, heads, config
        self.mirror = mirror
        self.calibration: Calibration | None = None
        """Limits for adapting and for drift, where they were set (`evaluation.calibration`)."""
        self.register_buffer("obs_scale", torch.tensor(obs_scale), persistent=False)
        limits = obs_limit or (torch.inf,) * len(obs_scale)
        self.register_buffer("obs_limit", torch.tensor(limits), persistent=False)
        num_params = sum(p.numel() for p in self.parameters())
        self.step_size = nn.Parameter(torch.full((num_params,), float(inner_lr)))

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return self.obs_scale.shape[0]

    @property
    def action_space(self) -> ActionSpace:
        """The actions that it chooses among."""
        return self.heads.action_space

    def meta_params(self) -> dict[str, Tensor]:
        """The parameters that an inner step adapts, by name."""
        return {name: p for name, p in self.named_parameters() if name != "step_size"}

    def step_sizes(self) -> dict[str, Tensor]:
        """The learned step size of every meta-parameter, in its shape."""
        params = self.meta_params()
        chunks = self.step_size.split([p.numel() for p in params.values()])
        return {n: c.view_as(p) for (n, p), c in zip(params.items(), chunks, strict=True)}

    def num_parameters(self) -> int:
        """Size of the model: parameters of core and heads, without the step sizes."""
        return self.step_size.numel()

    def init_hidden(self, num_tasks: int, num_envs: int) -> Tensor:
        """The state before the first step: zeros, shape (K, N, P), or (K, N, 2 P) if mirrored."""
        size = self.core.hidden_size * (2 if self.mirror else 1)
        return self.step_size.new_zeros(num_tasks, num_envs, size)

    def unroll(
        self, params: Params, obs: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[PolicyOutput, Tensor]:
        """Run over a rollout's observations, as a pure function of ``params``.

        Args:
            params: From `meta_params`, shared or with a leading K axis.
            obs: Shape (T, K, N, O).
            hidden: State before the first step, as `init_hidden` gives it.
            reset: True where an episode starts, shape (T, K, N).
        """
        core = {n[5:]: p for n, p in params.items() if n.startswith("core.")}
        x = obs.clamp(-self.obs_limit, self.obs_limit) * self.obs_scale
        if self.mirror:  # the history and its mirror image, as twice the environments
            x, reset = torch.cat([x, -x], dim=2), torch.cat([reset, reset], dim=2)
            hidden = torch.cat(hidden.chunk(2, dim=-1), dim=1)
        output, hidden = self.core.unroll(core, x, hidden, reset)
        distribution, value = self.heads.read(params, output.transpose(0, 1))
        if self.mirror:
            output = torch.cat(output.chunk(2, dim=2), dim=-1)
            hidden = torch.cat(hidden.chunk(2, dim=1), dim=-1)
            distribution = distribution.mirror_mean()
            value = None if value is None else torch.stack(value.chunk(2, dim=2)).mean(0)
        if isinstance(distribution, Categorical):
            distribution = Categorical(distribution.logits.transpose(0, 1))
        elif isinstance(distribution, Gaussian):
            distribution = Gaussian(
                distribution.mean.transpose(0, 1), distribution.log_std.transpose(0, 1)
            )
        value = None if value is None else value.transpose(0, 1)
        return PolicyOutput(distribution, value, output), hidden

    def predict(self, params: Params, output: Tensor, action: Tensor) -> Tensor:
        """Predicted change of the observation dimensions ``heads.predicted_dims``.

        Args:
            params: As given to `unroll`.
            output: `PolicyOutput.output`.
            action: The actions taken, shape (T, K, N) or (T, K, N, A).

        Returns:
            Shape (T, K, N, len(predicted_dims)), in units of the targets' spread.
        """
        code = self.action_space.code(action).to(output.dtype).transpose(0, 1)
        if not self.mirror:
            return self.heads.predict(params, output.transpose(0, 1), code).transpose(0, 1)
        here, image = output.transpose(0, 1).chunk(2, dim=-1)
        mirrored = self.heads.predict(params, image, self.action_space.mirror_code(code))
        return (self.heads.predict(params, here, code) - mirrored).transpose(0, 1) / 2

    def actor(
        self,
        params: Params,
        num_tasks: int,
        num_envs: int,
        *,
        noise: TaskNoise | None = None,
        num_steps: int = 0,
    ) -> Actor:
        """An actor with a hidden state of its own.

        Args:
            params: Shared or per-task parameters.
            num_tasks: K.
            num_envs: N.
            noise: The tasks' streams to sample actions from; None acts greedily.
            num_steps: Steps that will be asked for, where it samples.
        """
        hidden = self.init_hidden(num_tasks, num_envs)
        samples = None
        if noise is not None:
            samples = iter(self.action_space.draw_noise(noise, num_steps, num_envs))
        params = {name: p.detach() for name, p in params.items()}

        def act(obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal hidden
            out, hidden = self.unroll(params, obs[None], hidden, reset[None])
            if samples is None:
                action = out.distribution.mode()
            else:
                action = out.distribution.sample(next(samples).to(obs)[None])
            return action[0], out.distribution.log_prob(action)[0]

        return act


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
    obs_dim = len(config.obs_scale)
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
            core = DiagonalSSM(obs_dim, config.hidden_dim, config.state_dim, config.num_layers)
            heads = LinearHeads(config.hidden_dim, action_space, obs_dim)
        return Policy(
            core,
            heads,
            obs_scale=config.obs_scale,
            obs_limit=config.obs_limit,
            mirror=config.mirror,
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
