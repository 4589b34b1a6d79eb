"""Acting step by step: a pure function of a state, and the actors that pass one on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from float32 import assert_only_rounded
from ssm_metarl.compiled import plain_operations
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.acting import ActingState, PlainActor
from ssm_metarl.core.compiled_actor import CompiledActor
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.types import RewardedActor

STEPS, TASKS, ENVS, OBS = 20, 3, 2, 3
BOX = {"action_dim": 2, "action_low": (-2.0, -0.5), "action_high": (2.0, 0.5)}
TURNED = {"mirror": True, "reflection": (1.0, -1.0, -1.0)}
KINDS: dict[str, dict[str, Any]] = {
    "discrete": {"num_actions": 3},
    "discrete mirrored": {"num_actions": 3, **TURNED},
    "memoryless": {"num_actions": 2, "memory": False},
    "state_space": {"core": "state_space", "num_actions": 2, "predicted_dims": (1,)},
    "continuous": {**BOX, "action_low": (0.0, -1.0), "action_scaled": True},
    "continuous mirrored": {**BOX, **TURNED, "action_scaled": True},
    "in context": {"num_actions": 2, "in_context": True, **TURNED},
    "in context continuous": {**BOX, "in_context": True},
    "in context wide": {**BOX, "in_context": True, "identifies": False, **TURNED},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_policy(kind: str) -> Policy:
    config = PolicyConfig(obs_scale=(0.5, 1.0, 0.2), state_dim=5, hidden_dim=6, **KINDS[kind])
    policy = build_policy(config, seed=0, inner_lr=0.1)
    with torch.no_grad():  # away from the uniform start, so that a mix-up would show
        for p in policy.meta_params().values():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return policy


def per_task(policy: Policy) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(7)
    return {
        name: p.detach() + 0.1 * torch.randn(TASKS, *p.shape, generator=rng)
        for name, p in policy.meta_params().items()
    }


def history() -> tuple[Tensor, Tensor, Tensor]:
    """Observations, some of which are no numbers; where episodes start; rewards."""
    rng = torch.Generator().manual_seed(1)
    obs = torch.randn(STEPS, TASKS, ENVS, OBS, generator=rng)
    obs[4, 0, 1, 2] = torch.nan
    reset = torch.rand(STEPS, TASKS, ENVS, generator=rng) < 0.2
    reset[0] = True
    return obs, reset, torch.randn(STEPS, TASKS, ENVS, generator=rng)


def drawn(policy: Policy) -> Tensor:
    return policy.action_space.draw_noise(TaskNoise(0, "x", range(TASKS)), STEPS, ENVS).float()


def stepped(policy: Policy, params: Any, sampled: bool) -> tuple[Tensor, Tensor, ActingState]:
    """Actions and log-probabilities of step after step, and the last state."""
    obs, reset, reward = history()
    noise = drawn(policy).to(policy.step_size)
    state = policy.initial_state(TASKS, ENVS, trial_episodes=2)
    found, last = [], None
    with torch.no_grad():
        for t in range(STEPS):
            action, log_prob, state = policy.step(
                params, state, obs[t].to(policy.step_size), reset[t],
                reward=last, noise=noise[t] if sampled else None,
            )  # fmt: skip
            found.append((action, log_prob))
            last = reward[t] if policy.in_context else None
    return torch.stack([a for a, _ in found]), torch.stack([p for _, p in found]), state


@every_kind
@pytest.mark.parametrize("how", ["compiled", "plain"])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_an_actor_is_step_after_step(kind: str, how: str, sampled: bool, shared: bool) -> None:
    policy = make_policy(kind)
    params = policy.meta_params() if shared else per_task(policy)
    obs, reset, reward = history()
    noise = TaskNoise(0, "x", range(TASKS)) if sampled else None
    with plain_operations() if how == "plain" else nullcontext():
        actor = policy.actor(params, TASKS, ENVS, noise=noise, num_steps=STEPS, trial_episodes=2)
        assert isinstance(actor, PlainActor if how == "plain" else CompiledActor)
        assert isinstance(actor, RewardedActor) is policy.in_context
        found = []
        with torch.no_grad():
            for t in range(STEPS):
                found.append(actor(obs[t], reset[t]))
                if isinstance(actor, RewardedActor):
                    actor.rewarded(reward[t])
    action, log_prob, state = stepped(policy, params, sampled)
    assert actor.bad_readings.tolist() == state.bad_readings.tolist() == [[0, 1], [0, 0], [0, 0]]

    def of(which: int) -> Any:
        return lambda policy, params: stepped(policy, params, sampled)[which]

    actions, log_probs = torch.stack([a for a, _ in found]), torch.stack([p for _, p in found])
    assert (actions.dtype, log_probs.dtype) == (action.dtype, torch.float32)
    assert_only_rounded(log_probs, of(1), policy, params)
    if action.dtype is torch.int64:
        assert torch.equal(actions, action)
    else:
        assert_only_rounded(actions, of(0), policy, params)
    assert log_prob.isfinite().all() and max(len(x.unique()) for x in (action, log_prob)) > 5


@every_kind
def test_a_step_leaves_its_state_as_it_was(kind: str) -> None:
    policy, params = make_policy(kind), make_policy(kind).meta_params()
    obs, reset, reward = history()
    state = policy.initial_state(TASKS, ENVS)
    told = reward[0] if policy.in_context else None
    with torch.no_grad():
        for t in range(8):
            _, _, state = policy.step(params, state, obs[t], reset[t], reward=told)
        once, again = (policy.step(params, state, obs[8], reset[8], reward=told) for _ in range(2))
        other = policy.step(params, state, -obs[9], reset[8], reward=told)
        later = [
            policy.step(params, s, obs[9], reset[9], reward=told)[:2] for s in (once[2], again[2])
        ]
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])
    assert torch.equal(later[0][0], later[1][0]) and torch.equal(later[0][1], later[1][1])
    if policy.memory:
        assert not torch.equal(once[2].hidden, state.hidden)
        assert not torch.equal(once[2].hidden, other[2].hidden)


def test_what_a_step_refuses() -> None:
    policy = make_policy("discrete")
    params, (obs, reset, reward) = policy.meta_params(), history()
    state = policy.initial_state(TASKS, ENVS)
    with pytest.raises(ValueError, match=r"^reward: expected none, for the policy is no in-cont"):
        policy.step(params, state, obs[0], reset[0], reward=reward[0])
    with pytest.raises(ValueError, match=r"^obs: expected shape \(K, N, O\) = \(3, 2, 3\), rec"):
        policy.step(params, state, obs[0, :2], reset[0])
    with pytest.raises(ValueError, match=r"^params: expected shape"):
        other = {name: p.expand(2, *p.shape) for name, p in params.items()}
        policy.step(other, state, obs[0], reset[0])
    with pytest.raises(ValueError, match="num_envs: expected"):
        policy.initial_state(TASKS, 0)
