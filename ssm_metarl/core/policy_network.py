"""What a policy says: a sequence model, and the heads that read its output, run over rollouts.

Place in the flow: stage 3, the half of a `policy` that has parameters; `acting` is the other. All
of it is a pure function of parameters and state.

What is adapted and what is not: `meta_params` holds the weights that an inner step changes;
`step_sizes` (one for each of them, Meta-SGD) are learned by the outer step only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssm_metarl.action_space import ActionSpace
from ssm_metarl.config import Calibration, PolicyConfig
from ssm_metarl.core.distributions import ActionDistribution
from ssm_metarl.core.fused import can_fuse, fused_unroll
from ssm_metarl.core.heads import LinearHeads, SliceHeads
from ssm_metarl.core.trial_input import TrialInput, trial_starts
from ssm_metarl.entrance import sequence
from ssm_metarl.types import FlatParams, Params, Rollout, SequenceModel, flatten


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says about T steps in K x N environments."""

    distribution: ActionDistribution
    """Over actions, leading shape (T, K, N)."""
    output: Tensor
    """All that the heads read, shape (T, K, N, M), or (T, K, 2 N, M) where the policy also sees the
    mirrored histories; `Policy.predict` and `Policy.value` take it apart."""


class PolicyNetwork(nn.Module):
    """A sequence model with heads, and a learned step size for each parameter.

    Where it has a reflection, each output is averaged with that of the mirrored history, mirrored
    back: van der Pol et al. 2020 (arXiv 2006.16908), for the group of one reflection. A policy that
    is not symmetric leans to one side, and a plant with a weak actuator falls that way. Where it is
    in context, the core's input is that of `trial_input`, and its state runs through all episodes
    of a trial.

    Args:
        core: The sequence model; its input is the clipped observation times ``config.obs_scale``.
        heads: What reads the output.
        config: The architecture as data: what the two are, and all that surrounds them.
        inner_lr: Initial step size of every parameter.
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
        config: PolicyConfig,
        *,
        inner_lr: float,
    ) -> None:
        super().__init__()
        holder: object = core  # apart, or the type checker takes `core` for a Module alone
        if not isinstance(holder, nn.Module):
            raise TypeError(f"core: expected a torch module, received {type(core).__name__}")
        self.trial_input = TrialInput.of(config, heads.action_space.code_dim)
        obs_scale = torch.tensor(config.obs_scale)
        needed = len(obs_scale) if self.trial_input is None else self.trial_input.size
        if core.input_dim != needed:
            raise ValueError(f"core: expected {needed} inputs, received {core.input_dim}")
        self.core, self.heads, self.config = core, heads, config
        self.mirror, self.memory = config.mirror, config.memory
        self.calibration: Calibration | None = None
        """Limits for adapting and for drift, where they were set (`evaluation.calibration`)."""
        self.trained_on: tuple[str, str] | None = None
        """Name and fingerprint of the task family that it was trained on, where they are known."""
        self.register_buffer("obs_scale", obs_scale, persistent=False)
        limits = config.obs_limit or (torch.inf,) * len(obs_scale)
        self.register_buffer("obs_limit", torch.tensor(limits), persistent=False)
        factors = torch.tensor(config.reflection or (1.0,) * len(obs_scale))
        predicted = factors[list(heads.predicted_dims)]
        self.register_buffer("prediction_reflection", predicted, persistent=False)
        if self.trial_input is not None:
            factors = self.trial_input.reflection(factors)
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
        distribution = distribution.map(lambda x: x.transpose(0, 1))
        return PolicyOutput(distribution, output.transpose(0, 1)), hidden

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
        return self.unroll(params, *self.unroll_inputs(rollout))

    def unroll_inputs(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """What `unroll` takes to look at a (cleaned) rollout: no parameter changes any of it."""
        check_actions(self.action_space, rollout)
        hidden = self.init_hidden(rollout.num_tasks, rollout.num_envs)
        if not self.in_context:
            return rollout.obs, hidden, rollout.reset
        reset = trial_starts(rollout.reset, None)
        return self.inputs(rollout, reset), hidden, reset

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


def check_actions(space: ActionSpace, rollout: Rollout) -> None:
    """Raise ValueError unless the actions of a rollout's taken steps are of a space."""
    space.checked(rollout.action, rollout.mask.shape, "T, K, N", taken=rollout.mask)
