"""An adapter of either kind behind one interface, and what tests compare of a policy."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ssm_metarl.adaptation.adapter import AdaptationReport, AdaptedPolicy
from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.config import HybridAdaptationConfig, Objective, StandardAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.types import Rollout

OBJECTIVES: tuple[Objective, ...] = ("prediction", "policy_gradient")
UNGUARDED: dict[str, object] = {"rollback": False}
"""Untrained policies' steps are not good for much: what they do is looked at, harmful or not."""
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


@dataclass
class Arm:
    """An adapter behind one interface; the hybrid one brings its buffer."""

    kind: str
    buffer: ExperienceBuffer

    def adapt(
        self, policy: Policy | StateSpaceModel, data: Rollout, **settings: object
    ) -> AdaptedPolicy:
        settings = UNGUARDED | settings
        if self.kind == "standard":
            return StandardAdapter(StandardAdaptationConfig(**settings)).adapt(policy, data)  # type: ignore[arg-type]
        hybrid = HybridAdapter(HybridAdaptationConfig(**settings))  # type: ignore[arg-type]
        return hybrid.adapt(policy, data, self.buffer)

    def adapt_tasks(
        self, policy: Policy | StateSpaceModel, data: Rollout, **settings: object
    ) -> tuple[dict[str, Tensor], list[AdaptationReport]]:
        settings = UNGUARDED | settings
        if self.kind == "standard":
            return StandardAdapter(StandardAdaptationConfig(**settings)).adapt_tasks(policy, data)  # type: ignore[arg-type]
        hybrid = HybridAdapter(HybridAdaptationConfig(**settings))  # type: ignore[arg-type]
        return hybrid.adapt_tasks(policy, data, self.buffer)


def values(policy: Policy) -> dict[str, Tensor]:
    """Parameters, step sizes and scales, copied."""
    return {
        **{n: v.detach().clone() for n, v in policy.state_dict().items()},
        "obs_scale": policy.obs_scale.clone(),
    }


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
