"""Which policy a training builds for a family.

Place in the flow: stage 5, the first thing that a trainer does.
"""

from __future__ import annotations

from typing import Any

from ssm_metarl.action_space import Discrete
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig, SingleTaskConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.env_runner.observation_scale import measured_scale
from ssm_metarl.tasks.task_family import TaskFamily

ACTIONS_SEEN = 3
"""Least number of last actions that an in-context policy is told. A plant may be slower than its
family declares: an actuator's lag shows in the coefficients of earlier actions."""
MAX_IDENTIFIED = 16
"""Most observations whose effect on each other is an input of an in-context policy."""


def architecture(
    config: MetaTrainingConfig | InContextConfig | SingleTaskConfig,
    family: TaskFamily,
    *,
    like: PolicyConfig | None = None,
) -> PolicyConfig:
    """The policy's architecture for a family.

    A `StateSpaceModel` sees observations in their own units, as the documents say, and has as many
    outputs as the action logits and the family's predicted effects need. A `DiagonalSSM` sees them
    times the factors that the family declares, or that are measured here.

    Args:
        config: The training's settings.
        family: Whose observations and actions it has.
        like: The architecture of weights that are to go on: what the family does not declare stays
            as it is there.
    """
    if isinstance(config, InContextConfig):
        config = MetaTrainingConfig(
            state_dim=config.state_dim,
            hidden_dim=config.hidden_dim,
            num_layers=config.num_layers,
            in_context=True,
        )
    meta = config if isinstance(config, MetaTrainingConfig) else MetaTrainingConfig()
    obs_dim, space = family.spaces
    nonlinear = config.core == "state_space"
    fitted: dict[str, Any] = {}
    if isinstance(space, Discrete):
        fitted["num_actions"] = space.n
    else:
        fitted |= {"action_dim": space.dim, "action_low": space.low, "action_high": space.high}
        fitted["action_scaled"] = like is None or like.action_scaled
    if meta.in_context and like is not None and like.in_context:
        fitted |= {n: getattr(like, n) for n in ("actions_seen", "identifies", "foresees")}
    elif meta.in_context:
        fitted["actions_seen"] = max(ACTIONS_SEEN, family.dead_time + 1)
        fitted["identifies"] = fitted["foresees"] = obs_dim <= MAX_IDENTIFIED
    obs_limit = family.limits
    if nonlinear:
        obs_scale = (1.0,) * obs_dim
    elif family.obs_scale is not None:
        obs_scale = family.obs_scale
    elif like is not None and len(like.obs_scale) == obs_dim:
        obs_scale, obs_limit = like.obs_scale, like.obs_limit
    else:
        obs_scale = measured_scale(family)
    return PolicyConfig(
        core=config.core,
        state_dim=config.state_dim,
        hidden_dim=config.width,
        num_layers=config.num_layers,
        norm_dim=meta.norm_dim,
        output_dim=space.logits_dim + space.code_dim * len(family.effect_dims),
        obs_scale=obs_scale,
        obs_limit=obs_limit,
        predicted_dims=family.effect_dims if nonlinear else (),
        mirror=family.mirror,
        reflection=family.reflection,
        in_context=meta.in_context,
        memory=meta.memory,
        told_dims=family.told_dims,
        **fitted,
    )
