"""Settings of in-context meta-training: RL², recurrent PPO over trials of several episodes.

Place in the flow: beside `config`, whose rules hold here too: no torch, a docstring under each
field, ValueError with what was expected and what was received.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ssm_metarl.config import FamilyTraining, PpoSettings
from ssm_metarl.settings import Count, Positive, Share, Weight, require


@dataclass(frozen=True, kw_only=True)
class InContextConfig(PpoSettings, FamilyTraining):
    """In-context meta-training over a task family: the hidden state does the adapting."""

    DEFAULT_ENV_STEPS: ClassVar[int] = 2_000_000

    state_dim: Count = 32
    """Size of the SSM state (of each layer)."""
    hidden_dim: Count = 32
    """Width of the residual stream."""
    num_layers: Count = 2
    """Number of layers."""

    tasks_per_epoch: Count = 64
    """Tasks in a batch, each in an environment of its own."""
    steps_per_epoch: Count = 512
    """Steps in each environment; a trial that they cut is bootstrapped. They should hold a whole
    episode: with half of one, one training seed in ten let its plants drift."""
    trial_episodes: Count = 3
    """Episodes of a trial, after which the memory is cleared."""
    horizon: Count | None = None
    """Longest episode, in steps; None for the family's own limit. A cut episode is bootstrapped."""
    push_probability: Share = 0.0
    """Share of steps after which a random push changes the velocities (training only)."""
    spread_starts: Share = 0.3
    """Share of episodes that start far from the family's initial states (training only)."""

    lr: Positive = 2e-3
    """Adam's learning rate at the start; it decays linearly to 5 % of it."""
    minibatches: Count = 4
    """Gradient steps of a pass, each on its share of the sequences."""
    sequence_steps: Count = 128
    """Steps of a sequence: as far as the gradient goes back in time."""
    value_coef: Weight = 0.5
    """Weight of the value loss."""
    entropy_coef: Weight = 0.003
    """Weight of the entropy bonus."""
    episode_gamma: Share = 0.5
    """Discount factor of an episode's end: how much later episodes of the trial count in this one.
    With 1 a policy that will do better anyway has no reason to keep this episode going."""
    gae_lambda: Share = 0.95
    """Bias-variance trade-off of generalised advantage estimation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma < 1, "gamma", "less than 1", self.gamma)
        require(self.steps_per_epoch % self.sequence_steps == 0, "sequence_steps",
                f"a divisor of steps_per_epoch = {self.steps_per_epoch}",
                self.sequence_steps)  # fmt: skip
        require(self.minibatches <= self.tasks_per_epoch, "minibatches",
                f"at most tasks_per_epoch = {self.tasks_per_epoch}", self.minibatches)  # fmt: skip
