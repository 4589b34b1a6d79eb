"""What the documents say of a raw `StateSpaceModel`, such as the prototype's ``.pth`` files hold.

Place in the flow: stage 3, in front of whatever takes a policy and may be given such a model.
"""

from __future__ import annotations

from ssm_metarl.action_space import Discrete
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.heads import SliceHeads
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.ssm import StateSpaceModel

CARTPOLE_VELOCITIES = (1, 3)


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
    return Policy(model, heads, config, inner_lr=0.01)
