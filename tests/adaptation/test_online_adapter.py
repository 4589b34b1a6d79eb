"""Adapting inside a running episode: what is noticed, what the window holds, what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from float32 import assert_only_rounded
from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import load_pretrained
from ssm_metarl.config import OnlineAdaptationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.types import Params, RewardedActor, Rollout, flatten

FLIP, STEPS = 60, 240
MEMORY_ALONE = OnlineAdaptationConfig(num_adapt_steps=0)


@dataclass
class Flipping:
    """Worlds whose actuators change direction after some steps, in the middle of an episode."""

    worlds: TaskBatch
    after: int = FLIP
    steps: int = field(default=0)

    def __getattr__(self, name: str) -> object:
        return getattr(self.worlds, name)

    def step(self, action: Tensor) -> object:
        """Flip when it is time, then step."""
        if self.steps == self.after:
            signs = self.worlds._parameters
            signs["sign"] = -signs["sign"]
        self.steps += 1
        return self.worlds.step(action)


@pytest.fixture(scope="module")
def pretrained() -> Policy:
    return as_policy(load_pretrained("cartpole"))


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """What the adapter is given to adapt to, each time."""
    seen: list[Rollout] = []
    adapt_tasks = StandardAdapter.adapt_tasks

    def spy(self: StandardAdapter, policy: Policy, rollout: Rollout) -> object:
        seen.append(rollout)
        return adapt_tasks(self, policy, rollout)

    monkeypatch.setattr(StandardAdapter, "adapt_tasks", spy)
    return seen


def make_worlds(num_tasks: int, start: int = 0) -> TaskBatch:
    tasks = CARTPOLE.sample("id", num_tasks, seed=7, start=start)
    return TaskBatch(tasks, 1, seed=7, purpose="online", max_episode_steps=10_000)


def lives(rollout: Rollout) -> list[int]:
    return rollout.mask[:, :, 0].sum(dim=0).tolist()


def test_a_pole_survives_the_flip_of_its_actuator_without_a_reset(pretrained: Policy) -> None:
    before = {name: p.clone() for name, p in pretrained.meta_params().items()}
    online = OnlineAdapter(pretrained, num_tasks=8)
    assert lives(collect_rollout(Flipping(make_worlds(8)), online, STEPS)) == [STEPS] * 8
    for name, p in pretrained.meta_params().items():
        assert torch.equal(p, before[name])
    noticed = {e.task: e.step for e in reversed(online.events) if e.kind == "changed"}
    late = [step - FLIP for step in noticed.values() if step >= FLIP]
    assert len(late) >= 6 and max(late) <= 6
    # One set of parameters does not hold both plants: it falls before the flip or after it.
    frozen = pretrained.actor(online._params, 8, 1)
    assert max(lives(collect_rollout(Flipping(make_worlds(8)), frozen, STEPS))) < STEPS


def test_it_needs_no_data_to_begin_with(pretrained: Policy) -> None:
    online = OnlineAdapter(pretrained, num_tasks=6)
    assert lives(collect_rollout(make_worlds(6), online, 100)) == [100] * 6
    settled = [e.step for e in online.events if e.kind == "settled"]
    assert settled[:6] == [online.config.window] * 6
    unadapted = pretrained.actor(pretrained.meta_params(), 6, 1)
    assert min(lives(collect_rollout(make_worlds(6), unadapted, 100))) < 60


def test_tasks_do_not_feel_each_other(pretrained: Policy) -> None:
    together = collect_rollout(
        Flipping(make_worlds(3), 30), OnlineAdapter(pretrained, num_tasks=3), 90
    )
    for k in range(3):
        alone = collect_rollout(
            Flipping(make_worlds(1, start=k), 30), OnlineAdapter(pretrained), 90
        )
        assert torch.equal(alone.action[:, 0], together.action[:, k])


def test_the_window_holds_the_transitions_since_the_change_and_no_end_of_an_episode(
    policy: Policy, windows: list[Rollout]
) -> None:
    config = OnlineAdaptationConfig(window=200)  # it never settles: an untrained policy falls
    taken = collect_rollout(make_worlds(1), OnlineAdapter(policy, config), 80, autoreset=True)
    ends = taken.terminated[:-1, 0, 0]
    assert ends.sum() >= 2
    last = windows[-1]
    assert torch.equal(last.mask[:, 0, 0], ~ends)
    for name in ("obs", "action", "next_obs", "reset"):
        kept, all_of_it = getattr(last, name)[:, 0, 0], getattr(taken, name)[:-1, 0, 0]
        assert torch.equal(kept[~ends], all_of_it[~ends]), name


def test_each_adaptation_is_the_standard_one_from_the_meta_parameters(
    pretrained: Policy, windows: list[Rollout]
) -> None:
    online = OnlineAdapter(pretrained)
    collect_rollout(make_worlds(1), online, 15)
    assert [w.num_steps for w in windows] == list(range(2, 15))
    expected, _ = StandardAdapter(online.config).adapt_tasks(pretrained, windows[-1])
    assert torch.equal(online._params.flat, expected.flat)
    assert online.num_adaptations.tolist() == [13]


def test_a_policy_that_broke_counts_as_a_change(pretrained: Policy) -> None:
    online = OnlineAdapter(pretrained)
    worlds = make_worlds(1)
    collect_rollout(worlds, online, 30)
    assert not online._adapting.any()
    online._params.flat.fill_(torch.nan)
    collect_rollout(worlds, online, 10)
    assert "changed" in [e.kind for e in online.events]
    assert torch.isfinite(online._params.flat).all()


def test_what_is_refused() -> None:
    blind = StateSpaceModel(state_dim=4, input_dim=3, output_dim=2, hidden_dim=4)
    with pytest.raises(ValueError, match="prediction outputs"):
        OnlineAdapter(blind)
    for wrong in ({"detect_steps": 0}, {"detect_steps": 21}, {"max_error": 0.0},
                  {"max_surprise": 0.0}, {"objective": "policy_gradient"}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            OnlineAdaptationConfig(**wrong)


def step_by_step(policy: Policy, taken: Rollout, first: int, until: int) -> Tensor:
    """Log-probabilities (T,) of one plant's actions in a trial that starts at step ``first``."""
    actor = policy.actor(policy.meta_params(), 1, 1)
    assert isinstance(actor, RewardedActor)
    found = []
    for t in range(first, until):
        action, log_prob = actor(taken.obs[t], taken.reset[t] | (t == first))
        assert torch.equal(action, taken.action[t])
        actor.rewarded(taken.reward[t])
        found.append(log_prob[0, 0])
    return torch.stack(found)


def test_where_least_squares_fails_a_policy_that_remembers_begins_a_new_trial(
    remembering: Policy,
) -> None:
    online = OnlineAdapter(remembering, MEMORY_ALONE)
    taken = collect_rollout(Flipping(make_worlds(1)), online, 110, autoreset=True)
    (noticed,) = (e.step for e in online.events if e.kind == "changed")
    assert FLIP < noticed <= FLIP + 3
    log_prob = taken.log_prob[:, 0, 0]
    parts = (0, noticed), (noticed, 110)
    one_trial = torch.cat([step_by_step(remembering, taken, *part) for part in parts])

    def looked(policy: Policy, taken: Rollout) -> Tensor:
        found = []
        for first, end in parts:
            trial = taken.map(lambda x, first=first, end=end: x[first:end].clone())
            trial.reset[0] = True
            found.append(
                policy.look(policy.meta_params(), trial).distribution.log_prob(trial.action)
            )
        return torch.cat(found)[:, 0, 0]

    for received in (log_prob, one_trial):
        assert_only_rounded(received, looked, remembering, taken)
    assert online.num_adaptations.tolist() == [0]
    assert torch.equal(
        online._params.flat[0], flatten(remembering.meta_params(), online._params.shapes)
    )


def test_without_a_change_the_trial_goes_on(remembering: Policy) -> None:
    online = OnlineAdapter(remembering, MEMORY_ALONE, num_tasks=4)
    collect_rollout(make_worlds(4), online, 200, autoreset=True)
    assert {e.kind for e in online.events} == {"settled"}


@pytest.mark.parametrize("more", [1, 7])
def test_a_policy_trained_for_both_steps_on_the_new_trial(
    remembering: Policy, windows: list[Rollout], more: int
) -> None:
    flip = FLIP + 3
    online, worlds = OnlineAdapter(remembering), Flipping(make_worlds(1), flip)
    first = flip + 1  # one step tells
    taken = collect_rollout(worlds, online, first + more + 1, autoreset=True)
    assert [e.step for e in online.events if e.kind == "changed"] == [first]
    assert not taken.terminated[first:-1].any(), "a case that has no ends of episodes"
    meta = flatten(remembering.meta_params(), online._params.shapes)
    if more < online.config.detect_steps:  # another plant's steps are worth nothing
        assert torch.equal(online._params.flat[0], meta)
        return
    last = windows[-1]
    for name in ("obs", "action", "reward", "next_obs"):
        assert torch.equal(getattr(last, name), getattr(taken, name)[first:-1]), name
    assert last.mask.all() and last.reset[:, 0, 0].tolist() == [True] + [False] * (more - 1)
    adapted, _ = StandardAdapter(online.config).adapt_tasks(remembering, last)
    assert torch.equal(online._params.flat, adapted.flat) and not torch.equal(adapted.flat[0], meta)
    # The state is what these parameters make of the new trial, from nothing.
    trial = taken.map(lambda x: x[first:])
    trial.reset[0] = True

    def at_last(policy: Policy, adapted: Params, trial: Rollout) -> Tensor:
        return policy.look(adapted, trial).distribution.log_prob(trial.action)[-1]

    assert_only_rounded(taken.log_prob[-1], at_last, remembering, dict(adapted), trial)


def test_a_trial_has_no_steps_that_were_not_taken(
    remembering: Policy, windows: list[Rollout]
) -> None:
    config = OnlineAdaptationConfig(window=200)
    taken = collect_rollout(make_worlds(1), OnlineAdapter(remembering, config), 80, autoreset=True)
    ends = taken.terminated[:-1, 0, 0]
    assert ends.sum() >= 2
    last = windows[-1]
    assert last.mask[:, 0, 0].tolist() == [False] * int(ends.sum()) + [True] * int((~ends).sum())
    for name in ("obs", "action", "reward", "next_obs", "reset"):
        kept, all_of_it = getattr(last, name)[:, 0, 0], getattr(taken, name)[:-1, 0, 0]
        assert torch.equal(kept[last.mask[:, 0, 0]], all_of_it[~ends]), name


def driven(
    online: OnlineAdapter, spoil: Callable[[int, Tensor], None], steps: int, reward: float = 1.0
) -> int:
    """Steps that a pole stays up, at most ``steps``, where ``spoil`` changes what is seen of it."""
    worlds = make_worlds(1)
    obs, ended, up = worlds.reset(), torch.ones(1, 1, dtype=torch.bool), 0
    for t in range(steps):
        seen = obs.clone()
        spoil(t, seen)
        action, log_prob = online(seen, ended)
        assert online._state.hidden.isfinite().all() and log_prob.isfinite().all()
        step = worlds.step(action)
        online.rewarded(step.reward * reward)
        up += int(not step.terminated) if up == t else 0
        ended = step.terminated | step.truncated
        obs = worlds.reset(ended)
    return up


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("when", [(100,), (100, 101, 102), (0,), (5,), (101, 103, 105)])
@pytest.mark.parametrize("name", ["cartpole", "cartpole_hybrid_real_model"])
def test_a_bad_reading_moves_no_parameter_and_is_no_change(
    name: str, when: tuple[int, ...], bad: float, windows: list[Rollout]
) -> None:
    online = OnlineAdapter(load_pretrained(name))

    def spoil(t: int, seen: Tensor) -> None:
        if t in when:
            seen[..., 2] = bad

    assert driven(online, spoil, 200) == 200
    assert online.bad_readings.tolist() == [[len(when)]]
    told = [e.step for e in online.events if e.kind == "bad reading"]
    assert told == [t for t in when if t - 1 not in when]
    assert all(e.kind != "changed" or e.step < 100 for e in online.events)
    for window in windows:
        for name_, values in (("obs", window.obs), ("next_obs", window.next_obs)):
            assert values[window.mask].abs().max() < 100, name_


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("kind", ["cartpole", "cartpole_hybrid_real_model", "in context"])
def test_a_dead_sensor_and_rewards_that_are_none_stop_nothing(
    kind: str, bad: float, remembering: Policy
) -> None:
    policy = remembering if kind == "in context" else load_pretrained(kind)
    online = OnlineAdapter(policy)

    def spoil(t: int, seen: Tensor) -> None:
        seen[..., 3] = bad

    driven(online, spoil, 120, reward=torch.nan)
    assert online.bad_readings.tolist() == [[120]]
    assert [e.kind for e in online.events] == ["bad reading"]
    assert online.num_adaptations.tolist() == [0], "there was nothing to adapt to"


def test_a_reward_that_is_no_number_is_the_last_one(pretrained: Policy) -> None:
    """Predictions need no reward: the pole is held as with the right ones."""
    online, other = OnlineAdapter(pretrained), OnlineAdapter(pretrained)
    assert driven(online, lambda t, seen: None, 60, torch.nan) == 60
    assert driven(other, lambda t, seen: None, 60) == 60
    assert torch.equal(online._params.flat, other._params.flat)
    assert online.bad_readings.tolist() == [[0]]


def test_it_refuses_other_worlds_and_other_observations(pretrained: Policy) -> None:
    with pytest.raises(ValueError, match=r"actor: expected one for \(K, N\) = \(8, 1\) .*OnlineAd"):
        collect_rollout(make_worlds(8), OnlineAdapter(pretrained), 5)
    online, first = OnlineAdapter(pretrained), torch.tensor([[True]])
    with pytest.raises(
        ValueError, match=r"obs: expected shape \(K, 1, O\) = \(1, 1, 4\), received"
    ):
        online(torch.zeros(1, 1, 5), first)
    with pytest.raises(ValueError, match=r"reward: expected shape \(K, 1\) = \(1, 1\), received"):
        online.rewarded(torch.ones(2, 1))
    with pytest.raises(ValueError, match="num_tasks: expected a whole number of at least 1"):
        OnlineAdapter(pretrained, num_tasks=0)
