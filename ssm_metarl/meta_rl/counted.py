"""What every meta-training counts: how far it has come, and what its policy has earned lately.

Place in the flow: the base of `trainer` and of `in_context`; `training_run` saves the counters.
"""

from __future__ import annotations

from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig


class Counted:
    """The counters of a training by epochs."""

    config: MetaTrainingConfig | InContextConfig

    def __init__(self) -> None:
        self.epoch = 0
        """Epochs finished."""
        self.env_steps = 0
        """Environment steps taken."""
        self.recent_return = 0.0
        """Exponential average of the epochs' returns over about ten of them."""

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        shares = [0.0]
        if self.config.num_epochs is not None:
            shares.append(self.epoch / self.config.num_epochs)
        if self.config.env_step_limit is not None:
            shares.append(self.env_steps / self.config.env_step_limit)
        return min(1.0, max(shares))

    def count(self, env_steps: int, average_return: float) -> None:
        """One more epoch is finished."""
        self.epoch += 1
        self.env_steps += env_steps
        decay = min(0.9, (self.epoch - 1) / self.epoch)
        self.recent_return = decay * self.recent_return + (1 - decay) * average_return

    def counters(self) -> dict[str, int | float]:
        """The numbers that a resumed training starts from."""
        return {
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "recent_return": self.recent_return,
        }

    def restore_counters(self, counters: dict[str, int | float]) -> None:
        """Put back what :meth:`counters` gave."""
        self.epoch, self.env_steps = int(counters["epoch"]), int(counters["env_steps"])
        self.recent_return = float(counters["recent_return"])
