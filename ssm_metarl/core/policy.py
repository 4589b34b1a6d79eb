"""A policy: a `policy_network` that acts.

Place in the flow: stage 3; `env_runner.collect_rollout` runs its `actor`, `objectives` score it,
`adaptation.inner_loop` adapts its parameters.

Two ways to run it, each a pure function of parameters and state: `unroll` over a rollout, `step`
from one observation to an action. An `actor` is a closure over a state, which it passes on.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.acting import ActingState, PlainActor
from ssm_metarl.core.compiled_actor import CompiledActor
from ssm_metarl.core.diagonal_ssm import DiagonalSSM
from ssm_metarl.core.fused import can_fuse
from ssm_metarl.core.heads import LinearHeads, SliceHeads
from ssm_metarl.core.policy_network import PolicyNetwork
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.core.trial_input import TrialInput
from ssm_metarl.entrance import counts, parameters, shaped
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.types import FlatParams, Params, SequenceModel, SizedActor, flatten


class Policy(PolicyNetwork):
    """A `PolicyNetwork` that chooses actions, one observation after the other."""

    def initial_state(
        self, num_tasks: int, num_envs: int, *, trial_episodes: int | None = None
    ) -> ActingState:
        """What acting in K x N environments starts from.

        Args:
            num_tasks: K.
            num_envs: N.
            trial_episodes: Episodes of a trial (in-context policies); None for one trial without
                an end.

        Raises:
            ValueError: A number below 1.
        """
        counts(num_tasks=num_tasks, num_envs=num_envs)
        if trial_episodes is not None:
            counts(trial_episodes=trial_episodes)
        return ActingState(self, num_tasks, num_envs, trial_episodes)

    def step(
        self,
        params: Params,
        state: ActingState,
        obs: Tensor,
        reset: Tensor,
        *,
        reward: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, ActingState]:
        """Act once, as a pure function: the plain definition of what an `actor` does.

        Args:
            params: Shared or per-task parameters.
            state: From `initial_state` or the step before; it stays what it is.
            obs: Observations, shape (K, N, O).
            reset: True where an episode starts, shape (K, N).
            reward: What the last action brought, shape (K, N), which an in-context policy sees; 0
                where nobody tells.
            noise: Numbers (K, N, .) to sample with, as the action space's ``draw_noise`` makes
                them; None acts greedily.

        Returns:
            Actions (K, N[, A]), their log-probabilities (K, N), and the state after the step.

        Raises:
            ValueError: A shape does not fit, or the policy sees no rewards.
        """
        flat = parameters(flatten(params, self._shapes), self._num_parameters, state.num_tasks)
        after = state.copy()
        if reward is not None:
            after.rewarded(reward)
        drawn = None if noise is None else iter((noise,))
        said = after.observe(FlatParams(flat, self._shapes), obs, reset)
        return *after.act(said, drawn), after

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
        """An actor with a state of its own: `step` after `step`, compiled where that applies.

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
        state = self.initial_state(num_tasks, num_envs, trial_episodes=trial_episodes)
        samples = None
        if noise is not None:
            drawn = self.action_space.draw_noise(noise, num_steps, num_envs).to(self.step_size)
            shape = (num_steps, num_tasks, num_envs, drawn.shape[-1])
            samples = _one_by_one(shaped("noise", drawn, shape, drawn.dtype, "T, K, N, ."))
        flat = parameters(flatten(params, self._shapes), self._num_parameters, num_tasks)
        params = FlatParams(flat.detach(), self._shapes)
        if self.kernel is not None and can_fuse(params.flat, self.obs_scale, state.hidden):
            return CompiledActor(self, params, state, samples)
        return PlainActor(params, state, samples)


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
    obs_dim = len(config.obs_scale)
    trial_input = TrialInput.of(config, action_space.code_dim)
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
        return Policy(core, heads, config, inner_lr=inner_lr)
