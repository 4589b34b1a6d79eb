"""The remembering actor: the same numbers as the whole sequence, and memory where it belongs."""

from dataclasses import replace

import pytest
import torch

from float32 import assert_identity, assert_only_rounded
from ssm_metarl.compiled import plain_operations
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.policy import build_policy
from ssm_metarl.core.trial_input import trial_starts
from ssm_metarl.core.trial_memory import TrialMemory
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.types import RewardedActor

TASKS, ENVS, STEPS = 3, 2, 60


def small_policy(**changes):
    settings = {"num_actions": 2, "in_context": True, "obs_scale": CARTPOLE.obs_scale}
    config = PolicyConfig(state_dim=5, hidden_dim=6, num_layers=2, **(settings | changes))
    policy = build_policy(config, seed=0, inner_lr=0.01)
    with torch.no_grad():
        policy.heads.action.weight.mul_(100)  # far from uniform: differences would show
    return policy


def sampled_rollout(policy, params, trial_episodes):
    tasks = CARTPOLE.sample("train", TASKS, seed=0)
    worlds = make_worlds(tasks, ENVS, seed=0, purpose="test", max_episode_steps=15)
    noise = TaskNoise(0, "test-action", tasks.indices)
    actor = policy.actor(
        params, TASKS, ENVS, noise=noise, num_steps=STEPS, trial_episodes=trial_episodes
    )
    assert isinstance(actor, RewardedActor)
    return collect_rollout(worlds, actor, STEPS, autoreset=True)


def told(trial_episodes):
    """A function that computes a rollout's log-probabilities from the whole sequence."""

    def log_prob(policy, params, rollout):
        start = trial_starts(rollout.reset, trial_episodes)
        with torch.no_grad():
            hidden = policy.init_hidden(TASKS, ENVS)
            out, _ = policy.unroll(params, policy.inputs(rollout, start), hidden, start)
        return out.distribution.log_prob(rollout.action)

    return log_prob


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("trial_episodes", [None, 2])
def test_acting_is_the_sequence_step_by_step(per_task, trial_episodes, mirror):
    policy = small_policy(mirror=mirror)
    params = {n: p.detach() for n, p in policy.meta_params().items()}
    if per_task:
        params = {
            n: torch.stack([p * (1 + 0.1 * k) for k in range(TASKS)]) for n, p in params.items()
        }
    rollout = sampled_rollout(policy, params, trial_episodes)
    assert rollout.reset.sum() > 2 * TASKS * ENVS  # episodes did end
    by_sequence = told(trial_episodes)
    for log_prob in (rollout.log_prob, by_sequence(policy, params, rollout)):
        assert_only_rounded(log_prob, by_sequence, policy, params, rollout)


def test_the_memory_crosses_an_episodes_end_and_not_a_trials():
    policy = small_policy()
    params = policy.meta_params()
    rollout = sampled_rollout(policy, params, 2)
    first = rollout.reset.long().cumsum(0) % 2 == 1  # episodes of each trial
    forgetful = told(1)  # what a memory of one episode would make of it

    def of_first(*arguments):
        return forgetful(*arguments)[first]

    assert_only_rounded(rollout.log_prob[first], of_first, policy, params, rollout)
    difference = (forgetful(policy, params, rollout) - rollout.log_prob).abs()
    assert (difference[~first] <= difference[first].max()).double().mean() < 0.2


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "layout",
    [{}, {"actions_seen": 5}, {"identifies": False}, {"foresees": True},
     {"foresees": True, "actions_seen": 5}],
)  # fmt: skip
def test_the_plain_actor_acts_alike(monkeypatch, mirror, layout):
    policy = small_policy(mirror=mirror, **layout)
    compiled = sampled_rollout(policy, policy.meta_params(), 2)
    monkeypatch.setattr(TrialMemory, "observe", TrialMemory.observe_plainly)
    with plain_operations():
        plain = sampled_rollout(policy, policy.meta_params(), 2)
    assert torch.equal(plain.action, compiled.action)
    for rollout in (plain, compiled):
        assert_only_rounded(rollout.log_prob, told(2), policy, policy.meta_params(), plain)


def test_a_new_actor_remembers_nothing():
    policy = small_policy()
    first = sampled_rollout(policy, policy.meta_params(), None)
    again = sampled_rollout(policy, policy.meta_params(), None)
    assert torch.equal(first.action, again.action)


def test_the_reward_is_told():
    policy = small_policy()
    told, untold = (policy.actor(policy.meta_params(), 1, 1) for _ in range(2))
    obs, start = torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    for actor in (told, untold):
        actor(obs, start)
    told.rewarded(torch.ones(1, 1))
    assert told(obs, ~start)[1].item() != untold(obs, ~start)[1].item()


def test_continuous_actions():
    config = PolicyConfig(
        state_dim=4, hidden_dim=4, num_layers=1, obs_scale=(1.0, 1.0, 1.0), action_dim=1,
        in_context=True,
    )  # fmt: skip
    policy = build_policy(config, seed=0, inner_lr=0.01)
    actor = policy.actor(policy.meta_params(), 2, 3)
    action, log_prob = actor(torch.zeros(2, 3, 3), torch.ones(2, 3, dtype=torch.bool))
    assert (action.shape, log_prob.shape) == ((2, 3, 1), (2, 3))


def test_a_mirrored_history_is_met_with_mirrored_actions():
    policy = small_policy(mirror=True)
    params = policy.meta_params()
    rollout = sampled_rollout(policy, params, 2)
    start = trial_starts(rollout.reset, 2)

    def sides(policy, params, rollout):
        image = replace(rollout, obs=-rollout.obs, action=1 - rollout.action)
        hidden = policy.init_hidden(TASKS, ENVS)
        with torch.no_grad():
            here, there = (
                policy.unroll(params, policy.inputs(r, start), hidden, start)[0].distribution.logits
                for r in (rollout, image)
            )
        return here, there.flip(-1)

    assert_identity(sides, policy, params, rollout)
    here, turned = sides(policy, params, rollout)
    assert (here - turned.flip(-1)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core": "state_space"}, "in_context: expected False, or core 'diagonal'"),
        ({"mirror": True, "num_actions": 3}, "mirror: expected False in context with more"),
    ],
)
def test_what_in_context_does_not_go_with(changes, message):
    with pytest.raises(ValueError, match=message):
        small_policy(**changes)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_number_of_threads_changes_the_last_bit_at_most(monkeypatch, mirror):
    policy = small_policy(mirror=mirror)
    alone = sampled_rollout(policy, policy.meta_params(), 2)
    monkeypatch.setattr("ssm_metarl.core.compiled_actor.threads_worth", lambda rows: 3)
    shared = sampled_rollout(policy, policy.meta_params(), 2)
    assert torch.equal(alone.action, shared.action)
    for rollout in (alone, shared):
        assert_only_rounded(rollout.log_prob, told(2), policy, policy.meta_params(), alone)


def squared_change(obs, before, scale):
    return ((obs - before / scale) * scale).square().sum(-1)


@pytest.mark.parametrize("plainly", [False, True])
def test_least_squares_is_surprised_by_another_plant_only(monkeypatch, plainly):
    if plainly:
        monkeypatch.setattr(TrialMemory, "observe", TrialMemory.observe_plainly)
    policy, memory = small_policy(), TrialMemory(small_policy(), 2, None)
    pull = torch.tensor([0.01, 0.02, 0.03, 0.04])
    rng = torch.Generator().manual_seed(0)
    obs, reset, surprises = torch.zeros(2, 4), torch.ones(2, dtype=torch.bool), []
    for t in range(40):
        memory.observe(obs, reset)
        action = torch.randint(2, (2,), generator=rng)
        memory.acted(action)
        push = (2.0 * action[:, None] - 1) * torch.tensor([[1.0], [1.0 if t < 30 else -1.0]])
        obs, reset = 0.9 * obs + push * pull, torch.zeros(2, dtype=torch.bool)
        error, size = memory.surprise(obs)
        assert_only_rounded(size, squared_change, obs, memory._before, policy.obs_scale)
        surprises.append(error / size)
    share = torch.stack(surprises)
    assert (share[0] == 1).all(), "nothing is known yet: no change is expected"
    assert share[15:30].max() < 1e-3 and share[30:, 0].max() < 1e-3
    assert share[30, 1] > 0.7


def test_what_is_forgotten_starts_a_trial_and_nothing_else_does():
    memory = TrialMemory(small_policy(), 3, None)
    begins = torch.ones(3, dtype=torch.bool)
    memory.observe(torch.randn(3, 4), begins)
    memory.forget(torch.tensor([False, True, False]))
    _, first = memory.observe(torch.randn(3, 4), begins)
    assert first.tolist() == [False, True, False]
    assert memory._plant.gram[1].abs().max() == 0
