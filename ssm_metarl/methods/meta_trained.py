"""How a model was meta-trained, where the defaults of adapting it come from.

Place in the flow: stage 7, read from a checkpoint; methods and evaluations begin with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ssm_metarl.config import (
    HybridAdaptationConfig,
    Objective,
    OnlineAdaptationConfig,
    StandardAdaptationConfig,
    SupportPolicy,
)
from ssm_metarl.core.policy import Policy


@dataclass(frozen=True)
class MetaTrained:
    """How a model was meta-trained, where an evaluation's defaults come from."""

    objective: Objective = "prediction"
    support_policy: SupportPolicy = "random"
    gamma: float = 0.99
    gae_lambda: float = 0.98
    experience_weight: float = 0.5
    gradient: bool = True
    """Whether for a gradient step: an in-context training prepares for none, and neither does one
    without inner steps."""

    @classmethod
    def from_training(cls, training: Mapping[str, Any]) -> MetaTrained:
        """From the training configuration in a checkpoint; empty gives the defaults."""
        if training.get("mode") == "in_context":
            return cls(gradient=False)
        known = {name: training[name] for name in cls.__dataclass_fields__ if name in training}
        return cls(**known, gradient=training.get("adaptation_steps") != 0)

    def adaptation(
        self, *, objective: Objective | None = None, **settings: Any
    ) -> StandardAdaptationConfig:
        """The inner step as it was meta-trained, but for what is given."""
        return StandardAdaptationConfig(
            objective=objective or self.objective,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            **settings,
        )

    def hybrid(
        self,
        standard: StandardAdaptationConfig,
        *,
        experience_weight: float | None = None,
        **settings: Any,
    ) -> HybridAdaptationConfig:
        """The same inner step on replayed experience too, weighed as it was meta-trained."""
        weight = self.experience_weight if experience_weight is None else experience_weight
        return HybridAdaptationConfig(**asdict(standard), experience_weight=weight, **settings)

    def online(self) -> OnlineAdaptationConfig:
        """Adapting inside an episode, with gradient steps only where it was trained for one."""
        return OnlineAdaptationConfig(num_adapt_steps=1 if self.gradient else 0)


def can_adapt(policy: Policy, objective: Objective) -> bool:
    """Whether the policy has the outputs that the inner objective needs."""
    return objective != "prediction" or len(policy.heads.predicted_dims) > 0
