"""Settings of in-context meta-training: RL², recurrent PPO over trials of several episodes.

Place in the flow: beside `config`, whose rules hold here too: no torch, a docstring under each
field, ValueError with what was expected and what was received.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.config import check_types, require

DEFAULT_ENV_STEPS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class InContextConfig:
    """In-context meta-training over a task family: the hidden state does the adapting."""

    family: str = "cartpole"
    """Task family, or the Gymnasium id that names it."""
    state_dim: int = 32
    """Size of the SSM state (of each layer)."""
    hidden_dim: int = 32
    """Width of the residual stream."""
    num_layers: int = 2
    """Number of layers."""
    seed: int = 0
    """Names every random number of the training."""

    num_epochs: int | None = None
    """Stop after this many epochs (batches of trials); None for no limit."""
    max_env_steps: int | None = None
    """Stop after this many environment steps; None for 2,000,000 unless num_epochs is given."""
    tasks_per_epoch: int = 64
    """Tasks in a batch, each in an environment of its own."""
    steps_per_epoch: int = 512
    """Steps in each environment; a trial that they cut is bootstrapped. They should hold a whole
    episode: with 256 on cartpole one training seed in ten let the carts drift."""
    trial_episodes: int = 3
    """Episodes of a trial, after which the memory is cleared."""
    horizon: int | None = None
    """Longest episode, in steps; None for the family's own limit. A cut episode is bootstrapped."""
    push_probability: float = 0.0
    """Share of steps after which a random push changes the velocities (training only)."""
    spread_starts: float = 0.3
    """Share of episodes that start far from the family's initial states (training only)."""

    lr: float = 2e-3
    """Adam's learning rate at the start; it decays linearly to 5 % of it."""
    update_epochs: int = 2
    """Passes over each batch of trials."""
    minibatches: int = 4
    """Gradient steps of a pass, each on its share of the sequences."""
    sequence_steps: int = 128
    """Steps of a sequence: as far as the gradient goes back in time."""
    clip_coef: float = 0.2
    """Clipping range of the likelihood ratio."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.003
    """Weight of the entropy bonus."""
    imitation_coef: float = 0.0
    """Weight of imitating a regulator that is told the task, in the states that the policy got into
    (training only, and only for families that have one)."""
    gamma: float = 0.99
    """Discount factor of a step."""
    episode_gamma: float = 0.5
    """Discount factor of an episode's end: how much later episodes of the trial count in this one.
    With 1 a policy that will do better anyway has no reason to keep this episode going."""
    gae_lambda: float = 0.95
    """Bias-variance trade-off of generalised advantage estimation."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped to this."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one = (
            "state_dim", "hidden_dim", "num_layers", "tasks_per_epoch", "trial_episodes",
            "update_epochs", "minibatches", "sequence_steps", "steps_per_epoch",
        )  # fmt: skip
        for name in at_least_one:
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("num_epochs", "max_env_steps", "horizon"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "None or at least 1", value)
        for name in ("gamma", "episode_gamma", "gae_lambda", "push_probability", "spread_starts"):
            require(0 <= getattr(self, name) <= 1, name, "0 to 1", getattr(self, name))
        require(self.gamma < 1, "gamma", "less than 1", self.gamma)
        for name in ("lr", "clip_coef", "max_grad_norm"):
            require(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        for name in ("entropy_coef", "value_coef", "imitation_coef"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(self.steps_per_epoch % self.sequence_steps == 0, "sequence_steps",
                f"a divisor of steps_per_epoch = {self.steps_per_epoch}",
                self.sequence_steps)  # fmt: skip
        require(self.minibatches <= self.tasks_per_epoch, "minibatches",
                f"at most tasks_per_epoch = {self.tasks_per_epoch}", self.minibatches)  # fmt: skip

    @property
    def env_step_limit(self) -> int | None:
        """The environment steps after which training stops, if they limit it."""
        if self.max_env_steps is None and self.num_epochs is None:
            return DEFAULT_ENV_STEPS
        return self.max_env_steps
