"""Which policy a training builds for a family.

Place in the flow: stage 5, the first thing that `trainer` and `single_task` do.
"""

from __future__ import annotations

from typing import Any

from ssm_metarl.action_space import Discrete
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig, SingleTaskConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.env_runner.worlds import observation_and_action
from ssm_metarl.tasks.task_family import TaskFamily


def architecture(config: MetaTrainingConfig | SingleTaskConfig, family: TaskFamily) -> PolicyConfig:
    """The policy's architecture for a family.

    A `StateSpaceModel` sees observations in their own units, as the documents say, and has as many
    outputs as the action logits and the family's predicted effects need.
    """
    obs_dim, space = observation_and_action(family)
    nonlinear = config.core == "state_space"
    meta = config if isinstance(config, MetaTrainingConfig) else MetaTrainingConfig()
    effects = space.code_dim * len(family.effect_dims)
    actions: dict[str, Any] = (
        {"num_actions": space.n}
        if isinstance(space, Discrete)
        else {"action_dim": space.dim, "action_low": space.low, "action_high": space.high}
    )
    return PolicyConfig(
        core=config.core,
        state_dim=config.state_dim,
        hidden_dim=config.width,
        num_layers=config.num_layers,
        norm_dim=meta.norm_dim,
        output_dim=space.logits_dim + effects,
        obs_scale=(1.0,) * obs_dim if nonlinear or not family.obs_scale else family.obs_scale,
        obs_limit=tuple(1 / scale for scale in family.obs_scale or ()),
        predicted_dims=family.effect_dims if nonlinear else (),
        mirror=family.mirror,
        in_context=meta.in_context,
        memory=meta.memory,
        told_dims=family.told_dims,
        **actions,
    )


def in_context_architecture(config: InContextConfig, family: TaskFamily) -> PolicyConfig:
    """The architecture of an in-context policy for a family."""
    sizes = MetaTrainingConfig(
        state_dim=config.state_dim,
        hidden_dim=config.hidden_dim,
        num_layers=config.num_layers,
        in_context=True,
    )
    return architecture(sizes, family)
