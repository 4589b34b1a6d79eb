"""The search for a fixed policy: it finds what is there to find, on training tasks alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ssm_metarl.action_space import Continuous, Discrete
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.evaluation.episodes import run_arm
from ssm_metarl.methods import fixed_policy
from ssm_metarl.methods.fixed_policy import Effort, FixedActor, search_fixed_policy
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.task_family import Choice, TaskFamily, TaskParameter

SMALL = Effort(starts=1, generations=5, population=24, elites=4, tasks=8, judged_on=32)
STEPS = 20


class Sorting:
    """A number from -1 to 1 is shown; reward 1 for naming its third, or its half, of the line.

    Tasks with sign -1 show it with the other sign: nobody without the sign gets more than half of
    them right.
    """

    obs_dim = 1
    max_episode_steps = STEPS
    push_scale: Sequence[float] = (0.0,)
    start_spread: Sequence[float] = (0.0,)

    def __init__(self, num_actions: int) -> None:
        self.action_space = Discrete(num_actions)

    def initial_state(self, uniform: Tensor) -> Tensor:
        return 2 * uniform - 1

    def observe(self, state: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return 0.01 * state * parameters["sign"][..., None]

    def step(
        self, state: Tensor, action: Tensor, parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        n = self.action_space.n
        place = ((state[..., 0] + 1) / 2 * n).long().clamp(max=n - 1)
        after = torch.remainder(state + 1 + 0.618, 2) - 1
        return after, (action == place).to(state.dtype), torch.zeros_like(action, dtype=torch.bool)


def sorting(num_actions: int, signs: tuple[float, ...] = (1.0,)) -> TaskFamily:
    sign = TaskParameter(name="sign", unit="", default=1.0, id=Choice(signs), ood=Choice(signs))
    return TaskFamily(name="sorting", parameters=(sign,), dynamics=Sorting(num_actions))


@pytest.mark.parametrize(("num_actions", "least"), [(2, 0.85), (3, 0.75)])
def test_it_finds_a_policy_that_is_there(num_actions: int, least: float) -> None:
    found = search_fixed_policy(sorting(num_actions), seed=0, effort=SMALL)
    assert found.score > least * STEPS
    config = EvaluationConfig(num_tasks=20, episodes_per_task=2, seed=3)
    tasks = sorting(num_actions).sample("id", 20, seed=3)
    returns = run_arm(tasks, found.actor(20, 2), config)
    assert returns.mean() > least * STEPS


def test_what_no_fixed_policy_can_do_it_does_not_find() -> None:
    found = search_fixed_policy(sorting(2, (-1.0, 1.0)), seed=0, effort=SMALL)
    assert found.score == pytest.approx(STEPS / 2, abs=0.2 * STEPS)


def test_a_seed_names_a_search_and_the_other_splits_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[str, str, int, int]] = []
    sample = TaskFamily.sample

    def watched(self: TaskFamily, split: Any, count: int, **named: Any) -> Any:
        drawn.append((split, named["stream"], named["start"], count))
        return sample(self, split, count, **named)

    monkeypatch.setattr(TaskFamily, "sample", watched)
    effort = Effort(starts=2, generations=2, population=6, elites=2, tasks=3, judged_on=5)
    one, same, other = (
        search_fixed_policy(CARTPOLE, seed=seed, effort=effort) for seed in (0, 0, 1)
    )
    assert torch.equal(one.weights, same.weights) and one.score == same.score
    assert not torch.equal(one.weights, other.weights)
    assert {(split, stream) for split, stream, _, _ in drawn} == {("train", "fixed-policy")}
    ours = drawn[: len(drawn) // 3]
    assert len(ours) == 2 + 2 * 2  # the spread, the generations, the last comparison
    ends = [start + count for _, _, start, count in ours]
    assert [start for _, _, start, _ in ours] == [0, *ends[:-1]], "no task is drawn twice"


def test_its_progress_rises_to_one() -> None:
    told: list[float] = []
    search_fixed_policy(
        sorting(2), seed=0, effort=SMALL, on_step=lambda share, what: told.append(share)
    )
    assert told == sorted(told) and told[0] > 0 and told[-1] <= 1


def test_a_family_of_gymnasium_environments_with_continuous_actions() -> None:
    pendulum = TaskFamily.from_gymnasium("Pendulum-v1", {})
    effort = Effort(starts=1, generations=1, population=3, elites=2, tasks=1, judged_on=1)
    found = search_fixed_policy(pendulum, seed=0, effort=effort)
    assert found.weights.shape == (3 + 3 + 1, 1)
    actor = found.actor(2, 3)
    obs, reset = 100 * torch.randn(2, 3, 3), torch.zeros(2, 3, dtype=torch.bool)
    action, log_prob = actor(obs, reset)
    assert action.shape == (2, 3, 1) and action.abs().max() <= 2
    assert (log_prob == 0).all()


class TestActor:
    def test_each_environment_has_its_own_weights(self) -> None:
        weights = torch.zeros(2, 1 + 3 + 1, 1)
        weights[:, 0, 0] = torch.tensor([1.0, -1.0])
        actor = FixedActor(weights, torch.tensor([2.0]), Discrete(2), (3, 2))
        obs = torch.tensor([0.5, -0.5, 0.1])[:, None, None].expand(3, 2, 1)
        action, _ = actor(obs, torch.ones(3, 2, dtype=torch.bool))
        assert action.tolist() == [[1, 0], [0, 1], [1, 0]]

    def test_it_sees_its_last_three_actions_and_an_episodes_start_clears_them(self) -> None:
        def play(lag: int, resets: list[bool]) -> list[int]:
            """Do what was done ``lag`` steps before; 1 where that is unknown."""
            weights = torch.zeros(1, 5, 1)
            weights[0, lag, 0], weights[0, 4, 0] = 1.0, 0.5
            actor = FixedActor(weights, torch.ones(1), Discrete(2), (1, 1))
            actions = []
            for t, reset in enumerate(resets):
                weights[0, 0, 0] = -9.0 if t == 0 else 0.0  # the first action is a 0
                action, _ = actor(torch.ones(1, 1, 1), torch.tensor([[reset]]))
                actions.append(int(action))
            return actions

        start = [True, *[False] * 6]
        assert play(1, start) == [0] * 7
        assert play(3, start) == [0, 1, 1, 0, 1, 1, 0]
        again = [True, False, False, True, False, False, False]
        assert play(3, again) == [0, 1, 1, 1, 1, 1, 1]

    def test_scores_are_scaled_by_the_spread_and_clipped_to_the_bounds(self) -> None:
        weights = torch.tensor([[[0.5], [0.0], [0.0], [0.0], [0.1]]])
        actor = FixedActor(weights, torch.tensor([4.0]), Continuous(1, -1.0, 3.0), (1, 3))
        obs = torch.tensor([[[0.8], [8.0], [-80.0]]])
        action, _ = actor(obs, torch.ones(1, 3, dtype=torch.bool))
        torch.testing.assert_close(action[0, :, 0], torch.tensor([1.4, 3.0, -1.0]))


@pytest.mark.slow
def test_what_it_finds_for_the_shipped_families() -> None:
    """CartPole: one direction of the actuator. Behind unknown wiring: next to nothing."""
    for family, low, high in ((CARTPOLE, 235, 290), (CARTPOLE_SCRAMBLED, 40, 90)):
        found = search_fixed_policy(family, seed=5)
        config = EvaluationConfig(num_tasks=200, seed=5)
        returns = run_arm(family.sample("id", 200, seed=5), found.actor(200, 4), config)
        assert low < returns.mean() < high
        assert low < found.score < high


def test_the_effort_is_what_a_family_can_afford(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Effort(starts=1, generations=1, population=2, elites=1, tasks=1, judged_on=1)
    for family, name in (
        (sorting(2), "BATCHED"),
        (TaskFamily.from_gymnasium("CartPole-v1", {}), "STEPPED"),
    ):
        monkeypatch.setattr(fixed_policy, "BATCHED", None)
        monkeypatch.setattr(fixed_policy, "STEPPED", None)
        monkeypatch.setattr(fixed_policy, name, tiny)
        assert search_fixed_policy(family, seed=0).env_steps > 0
