"""A policy under a plant's own reflection, in which some observations stay as they are.

The pendulum's: the cosine of its angle stays, the sine and the angle's rate change sign.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from float32 import assert_identity
from ssm_metarl.compiled import plain_operations
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.trial_input import trial_starts
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.types import RewardedActor, Rollout

STEPS, TASKS, ENVS = 12, 2, 3
FACTORS = torch.tensor(PENDULUM.reflection)
KINDS: dict[str, dict[str, Any]] = {
    "two actions": {"num_actions": 2},
    "three actions": {"num_actions": 3},
    "continuous": {"action_dim": 2},
    "memoryless": {"action_dim": 1, "memory": False},
    "state_space": {"core": "state_space", "num_actions": 2, "predicted_dims": (0, 2)},
    "in context": {"num_actions": 2, "in_context": True},
    "in context continuous": {"action_dim": 2, "in_context": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_policy(kind: str, reflection: tuple[float, ...] = PENDULUM.reflection) -> Policy:
    sizes = {"state_dim": 5, "hidden_dim": 6, "mirror": True, "reflection": reflection}
    config = PolicyConfig(obs_scale=(0.5, 1.0, 0.2), **sizes, **KINDS[kind])
    policy = build_policy(config, seed=0, inner_lr=0.1)
    with torch.no_grad():  # away from the uniform start, so that a mix-up would show
        for p in policy.meta_params().values():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return policy


def history(policy: Policy) -> Rollout:
    """Steps of three episodes in each environment."""
    rng = torch.Generator().manual_seed(1)
    lead = (STEPS, TASKS, ENVS)
    obs = torch.randn(STEPS + 1, TASKS, ENVS, policy.obs_dim, generator=rng)
    space = policy.action_space
    number = torch.rand(*lead, space.logits_dim, generator=rng)
    action = number.argmax(-1) if policy.config.num_actions else 2 * number - 1
    no = torch.zeros(lead, dtype=torch.bool)
    reset = no.clone()
    reset[[0, 4, 9]] = True
    return Rollout(
        obs=obs[:-1], action=action, reward=torch.randn(lead, generator=rng), next_obs=obs[1:],
        terminated=no, truncated=no, reset=reset, mask=~no, log_prob=torch.zeros(lead),
    )  # fmt: skip


def mirrored_action(policy: Policy, action: Tensor) -> Tensor:
    return policy.action_space.logits_dim - 1 - action if action.dtype is torch.int64 else -action


def image_of(policy: Policy, rollout: Rollout) -> Rollout:
    """The rollout under the pendulum's reflection."""
    turned = {
        name: getattr(rollout, name) * FACTORS.to(rollout.obs) for name in ("obs", "next_obs")
    }
    return replace(rollout, action=mirrored_action(policy, rollout.action), **turned)


def acted(policy: Policy, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """What an actor does that sees these observations and rewards; it acts as it likes."""
    with torch.no_grad():
        actor = policy.actor(policy.meta_params(), TASKS, ENVS)
        steps = []
        for t in range(STEPS):
            steps.append(actor(rollout.obs[t], rollout.reset[t]))
            if isinstance(actor, RewardedActor):
                actor.rewarded(rollout.reward[t])
    return torch.stack([a for a, _ in steps]), torch.stack([p for _, p in steps])


@every_kind
@pytest.mark.parametrize("how", ["compiled", "plain"])
def test_every_actor_meets_a_mirrored_history_with_mirrored_actions(kind: str, how: str) -> None:
    policy = make_policy(kind)
    rollout = history(policy)
    with plain_operations() if how == "plain" else nullcontext():
        (action, log_prob), (turned, its_log_prob) = (
            acted(policy, seen) for seen in (rollout, image_of(policy, rollout))
        )
        wrong, _ = acted(policy, replace(rollout, obs=-rollout.obs))
    torch.testing.assert_close(turned, mirrored_action(policy, action))
    torch.testing.assert_close(its_log_prob, log_prob)
    assert not torch.allclose(wrong, mirrored_action(policy, action), rtol=1e-2)
    assert action.unique().numel() > 1


@every_kind
def test_minus_everything_would_not_do(kind: str) -> None:
    policy = make_policy(kind, (-1.0, -1.0, -1.0))
    rollout = history(policy)
    (action, _), (turned, _) = (acted(policy, r) for r in (rollout, image_of(policy, rollout)))
    assert not torch.allclose(turned, mirrored_action(policy, action), rtol=1e-2)


@every_kind
def test_values_stay_and_predictions_turn_dimension_by_dimension(kind: str) -> None:
    policy = make_policy(kind)
    factors = FACTORS[list(policy.heads.predicted_dims)]

    def sides(policy: Policy, rollout: Rollout) -> tuple[list[Tensor], list[Tensor]]:
        found = []
        for seen, turn in ((rollout, 1.0), (image_of(policy, rollout), factors)):
            output = policy.look(policy.meta_params(), seen).output
            code = policy.action_space.code(seen.action).to(output)
            said = [policy.predict(output, code) * turn]
            if policy.config.core == "diagonal":
                said.append(policy.value(output))
            found.append(said)
        return found[0], found[1]

    rollout = history(policy)
    assert_identity(sides, policy, rollout)
    assert all(said.abs().max() > 0.1 for said in sides(policy, rollout)[0])


def test_the_input_of_a_mirrored_history_is_the_mirrored_input() -> None:
    policy = make_policy("in context continuous")

    def sides(policy: Policy, rollout: Rollout) -> tuple[Tensor, Tensor]:
        start = trial_starts(rollout.reset, 2)
        image = policy.inputs(image_of(policy, rollout), start)
        return policy.inputs(rollout, start) * policy.reflection, image

    rollout = history(policy)
    assert_identity(sides, policy, rollout)
    coefficients = policy.inputs(rollout, trial_starts(rollout.reset, 2))[8, ..., 12:-3]
    assert coefficients.shape[-1] == (3 + 3 * 2) * 3
    assert (coefficients != 0).all()


def test_an_older_file_turns_all_but_what_is_told() -> None:
    sizes: dict[str, Any] = {"obs_scale": (1.0,) * 3, "num_actions": 2}
    older = PolicyConfig.from_dict({**sizes, "mirror": True, "told_dims": 1})
    assert older.reflection == (-1.0, -1.0, 1.0)
    assert older == PolicyConfig(**sizes, mirror=True, told_dims=1, reflection=(-1, -1, 1))
    assert PolicyConfig.from_dict(sizes).reflection == ()


def test_a_policy_has_the_reflection_and_the_limits_of_its_family() -> None:
    limits = (1.5, 1.5, 30.0)
    family = replace(PENDULUM, obs_limit=limits)
    for config in (
        architecture(MetaTrainingConfig(), family),
        architecture(InContextConfig(), family),
    ):
        assert (config.mirror, config.reflection) == (True, PENDULUM.reflection)
        assert (config.obs_scale, config.obs_limit) == (PENDULUM.obs_scale, limits)
    assert architecture(MetaTrainingConfig(), PENDULUM).obs_limit == PENDULUM.limits
    plain = architecture(MetaTrainingConfig(), replace(PENDULUM, reflection=()))
    assert (plain.mirror, plain.reflection) == (False, ())
