"""Fine-tuning: every task by itself, on the episodes that it is charged for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.adaptation import fine_tuning
from benchmarks.adaptation.fine_tuning import FineTuningConfig, FineTuningCurve, fine_tune
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.evaluation.episodes import run_arm
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.types import FlatParams, Rollout

TASKS = CARTPOLE.sample("train", 5, seed=77)


def fresh(**changes: Any) -> Policy:
    sizes = {"state_dim": 4, "hidden_dim": 8, "num_layers": 1} | changes
    return build_policy(architecture(MetaTrainingConfig(**sizes), CARTPOLE), seed=0, inner_lr=0.01)


def config(**changes: Any) -> FineTuningConfig:
    return FineTuningConfig(**({"lr": 0.01, "rounds": (2, 3), "update_epochs": 3} | changes))


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """What was learnt from, in order."""
    seen: list[Rollout] = []

    def collect(*args: Any, **kwargs: Any) -> Rollout:
        seen.append(collect_rollout(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(fine_tuning, "collect_rollout", collect)
    return seen


VARIANTS: dict[str, dict[str, Any]] = {
    "policy gradient": {},
    "prediction": {"objective": "prediction"},
    "prediction of random actions": {"objective": "prediction", "behaviour": "random"},
    "plain descent": {"optimizer": "sgd", "lr": 1.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_task_learns_the_same_whichever_stand_beside_it(variant: str) -> None:
    policy, settings = fresh(), config(**VARIANTS[variant])
    together = fine_tune(policy, TASKS, settings)
    for k in (0, 3):
        alone = fine_tune(policy, TASKS[[k]], settings)
        assert (alone.env_steps[:, 0] == together.env_steps[:, k]).all()
        np.testing.assert_allclose(alone.returns[:, 0], together.returns[:, k], atol=2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_what_is_learnt_from_is_counted_and_the_policy_stays(
    variant: str, rollouts: list[Rollout]
) -> None:
    policy = fresh()
    before = {n: v.clone() for n, v in policy.state_dict().items()}
    curve = fine_tune(policy, TASKS, config(**VARIANTS[variant]))
    assert all(torch.equal(v, before[n]) for n, v in policy.state_dict().items())
    assert curve.episodes.tolist() == [0, 2, 5]
    assert [r.num_envs for r in rollouts] == [2, 3]
    taken = np.stack([r.mask.sum(dim=(0, 2)).numpy() for r in rollouts]).cumsum(axis=0)
    assert (curve.env_steps[0] == 0).all() and (curve.env_steps[1:] == taken).all()
    assert len(set(curve.returns[-1] - curve.returns[0])) > 1


def test_the_greedy_episode_is_that_of_any_other_arm() -> None:
    policy = fresh()
    curve = fine_tune(policy, TASKS, config(seed=9))
    actor = policy.actor(policy.meta_params(), len(TASKS), 1)
    expected = run_arm(TASKS, actor, EvaluationConfig(num_tasks=5, episodes_per_task=1, seed=9))
    assert (curve.returns[0] == expected[:, 0]).all()


def test_a_step_is_adams_on_each_tasks_own_gradient() -> None:
    """One step of Adam moves every number by the learning rate, against its gradient."""
    policy = fresh()
    starts: list[torch.Tensor] = []

    class Spy(fine_tuning._Learner):
        def _measure(self) -> None:
            starts.append(self.params.flat.detach().clone())
            super()._measure()

    learner = Spy(policy, TASKS, config(update_epochs=1, lr=0.01), None)
    learner.run_round(2)
    moved = starts[1] - starts[0]
    assert (moved.abs() <= 0.01 + 1e-6).all()
    assert not torch.equal(moved[0], moved[1])
    assert ((moved.abs() > 0.009).sum(dim=1) > 10).all()


def test_a_start_of_each_tasks_own() -> None:
    policy = fresh()
    flat = torch.cat([p.detach().flatten() for p in policy.meta_params().values()])
    shapes = {n: p.shape for n, p in policy.meta_params().items()}
    rows = flat + 0.3 * torch.randn(5, len(flat), generator=torch.Generator().manual_seed(0))
    params = FlatParams(rows, shapes)
    curve = fine_tune(policy, TASKS, config(rounds=(1,)), start=params)
    actor = policy.actor(params, 5, 1)
    expected = run_arm(TASKS, actor, EvaluationConfig(num_tasks=5, episodes_per_task=1))
    assert (curve.returns[0] == expected[:, 0]).all()


def test_a_task_that_is_done_costs_nothing_more(rollouts: list[Rollout]) -> None:
    policy = fresh()
    first = fine_tune(policy, TASKS, config(rounds=(2,)))
    middle = float(np.median(first.returns[-1]))
    rollouts.clear()
    curve = fine_tune(policy, TASKS, config(rounds=(2, 2, 2), stop_return=middle))
    done = (curve.returns[:2] >= middle).any(axis=0)
    assert 0 < done.sum() < 5
    assert (curve.env_steps[2:, done] == curve.env_steps[1, done]).all()
    assert (np.diff(curve.env_steps[:, ~done], axis=0)[1] > 0).all()
    assert rollouts[1].num_tasks == (~done).sum()
    short = fine_tune(policy, TASKS, config(rounds=(2,) * 9, stop_return=0.0))
    assert short.episodes.tolist() == [0]


def test_reading_a_curve() -> None:
    curve = FineTuningCurve(
        np.array([0, 1, 3]),
        np.array([[0, 0, 0], [20, 30, 40], [50, 60, 40]]),
        np.array([[500.0, 10.0, 9.0], [3.0, 475.0, 9.0], [9.0, 10.0, 9.0]]),
    )
    assert curve.after(1).tolist() == [3, 475, 9]
    assert curve.steps_to(475).tolist() == [0, 30, np.inf]
    with pytest.raises(ValueError, match=re.escape("episodes: expected one of [0, 1, 3]")):
        curve.after(2)


def test_what_cannot_be_fine_tuned_is_refused() -> None:
    remembering = fresh(in_context=True)
    with pytest.raises(ValueError, match="received one that adapts in context"):
        fine_tune(remembering, TASKS, config())
    other = TaskFamily.from_gymnasium("Acrobot-v1", {}, name="other")
    with pytest.raises(ValueError, match="model: expected one for other"):
        fine_tune(fresh(), replace(TASKS, family=other), config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": ()}, "rounds: expected at least one, of at least 1 episode, received ()"),
        ({"rounds": (1, 0)}, "rounds: expected at least one, of at least 1 episode"),
        ({"lr": 0.0}, "lr: expected a number above 0, received 0.0"),
        ({"update_epochs": 0}, "update_epochs: expected at least 1, received 0"),
        ({"behaviour": "random"}, "behaviour: expected 'policy' where objective is"),
        ({"optimizer": "lion"}, "optimizer: expected one of 'adam', 'sgd', received 'lion'"),
        ({"gamma": 1.5}, "gamma: expected 0 to 1, received 1.5"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**changes)


def test_it_learns() -> None:
    curve = fine_tune(
        fresh(hidden_dim=16, state_dim=8), TASKS, config(rounds=(8,) * 6, lr=5e-3, update_epochs=10)
    )
    assert curve.returns[0].mean() < 150 < curve.returns[1:].max(axis=0).mean()
