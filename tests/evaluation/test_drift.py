"""Plants that change inside an episode: shares against counts by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch

from ssm_metarl.adaptation.online_adapter import OnlineAdapter, OnlineEvent
from ssm_metarl.checkpoint import load_pretrained
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.env_runner.changing_task_batch import ChangingTaskBatch
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.evaluation import drift
from ssm_metarl.evaluation.episodes import MetaTrained
from ssm_metarl.meta_rl.architecture import in_context_architecture
from ssm_metarl.meta_rl.in_context import InContextTrainer
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily

CONFIG = EvaluationConfig(num_tasks=5, seed=3)


@pytest.fixture(scope="module")
def remembering() -> Policy:
    """Untrained."""
    small = InContextConfig(state_dim=4, hidden_dim=8, num_layers=1)
    return build_policy(in_context_architecture(small, CARTPOLE), seed=0, inner_lr=0.01)


def test_the_shares_are_counts_of_first_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "EARLIEST", 30)
    monkeypatch.setattr(drift, "LATEST", 60)
    monkeypatch.setattr(drift, "LOOK_AFTER", 40)
    monkeypatch.setattr(drift, "HORIZON", 130)
    policy = as_policy(load_pretrained("cartpole"))
    result = drift.measure_drift(policy, CARTPOLE, "flip", CONFIG, MetaTrained())
    arms = result["arms"]
    assert arms["standard"]["up_at_change"] == 1.0 and arms["standard"]["up_after"] == 0.0
    assert arms["online"]["up_after"] == 1.0 and arms["online"]["notice_steps"] <= 4
    assert set(result["control_step_ms"]) == {"adapting", "quiet"}

    tasks = CARTPOLE.sample("id", 5, seed=3)
    later, at = drift.changes(tasks, "flip", CONFIG)
    assert torch.equal(later.values["sign"], -tasks.values["sign"])
    assert torch.equal(later.values["force"], tasks.values["force"])
    assert at.min() >= 30 and at.max() < 60 and len(set(at.tolist())) > 1
    worlds = ChangingTaskBatch(
        tasks, later, at, seed=3, purpose="evaluation-drift", max_episode_steps=130
    )
    lives = collect_rollout(worlds, policy.actor(policy.meta_params(), 5, 1), 130).mask.sum(0)[:, 0]
    frozen = arms["frozen"]
    assert frozen["up_at_change"] == (lives >= at).double().mean()
    assert frozen["mean_return"] == lives.double().mean()
    assert 0 < frozen["up_at_change"] < 1, "a case that tells the counts apart"


@pytest.mark.parametrize("gradient", [False, True])
def test_the_arms_of_a_model_that_remembers(
    monkeypatch: pytest.MonkeyPatch, remembering: Policy, gradient: bool
) -> None:
    for name, value in (("EARLIEST", 5), ("LATEST", 9), ("LOOK_AFTER", 10), ("HORIZON", 60)):
        monkeypatch.setattr(drift, name, value)
    told: list[float] = []
    result = drift.measure_drift(
        remembering, CARTPOLE, "flip", CONFIG, MetaTrained(gradient=gradient),
        on_step=lambda share, what: told.append(share),
    )  # fmt: skip
    arms = result["arms"]
    assert list(arms) == ["in_context", "in_context_restarted", *(["both"] if gradient else [])]
    assert set(arms) <= result["definitions"].keys()
    assert arms["in_context_restarted"]["adaptations"] in (0, None), "no gradient step"
    assert "quiet" in result["control_step_ms"]
    assert ("adapting" in result["control_step_ms"]) == gradient
    assert told == [i / (len(arms) + 1) for i in range(len(arms) + 1)]

    tasks = CARTPOLE.sample("id", 5, seed=3)
    later, at = drift.changes(tasks, "flip", CONFIG)
    worlds = ChangingTaskBatch(
        tasks, later, at, seed=3, purpose="evaluation-drift", max_episode_steps=60
    )
    actor = remembering.actor(remembering.meta_params(), 5, 1)
    lives = collect_rollout(worlds, actor, 60).mask.sum(0)[:, 0]
    assert arms["in_context"]["mean_return"] == lives.double().mean()


@pytest.mark.slow
def test_after_a_flip_a_new_trial_saves_what_the_old_ones_memory_loses() -> None:
    policy = InContextTrainer(InContextConfig(max_env_steps=1_000_000)).train()
    settings = EvaluationConfig(num_tasks=60, seed=77)
    arms = drift.measure_drift(policy, CARTPOLE, "flip", settings, MetaTrained(gradient=False))[
        "arms"
    ]
    assert arms["in_context"]["up_at_change"] >= 0.95 and arms["in_context"]["up_after"] <= 0.05
    assert arms["in_context_restarted"]["up_after"] >= 0.95
    assert arms["in_context_restarted"]["notice_steps"] <= 2


def test_moving_physics_keep_the_sign_and_leave_nothing_else() -> None:
    tasks = CARTPOLE.sample("id", 5, seed=3)
    later, _ = drift.changes(tasks, "parameters", CONFIG)
    assert torch.equal(later.values["sign"], tasks.values["sign"])
    assert all((later.values[n] != v).all() for n, v in tasks.values.items() if n != "sign")


def test_what_was_noticed_is_told_from_false_alarms() -> None:
    adapter = OnlineAdapter(as_policy(load_pretrained("cartpole")), num_tasks=2)
    adapter.events = [
        OnlineEvent(20, 0, "settled"),
        OnlineEvent(50, 0, "changed"),  # before there was a change
        OnlineEvent(103, 0, "changed"),
        OnlineEvent(140, 0, "changed"),
        OnlineEvent(95, 1, "changed"),  # its episode had ended
    ]
    adapter.num_adaptations = torch.tensor([30, 900])  # the second one's pole has fallen
    found = drift._noticed(
        adapter, torch.tensor([1000, 80]).numpy(), torch.tensor([100, 90]).numpy()
    )
    assert found == {
        "notice_steps": 3.0, "noticed": 0.5, "false_alarms": 1000 / 180, "adaptations": 30.0
    }  # fmt: skip


def test_a_family_that_cannot_change_is_refused() -> None:
    policy = as_policy(load_pretrained("cartpole"))
    stepped = TaskFamily.from_gymnasium("CartPole-v1", {})
    for what in ("flip", "parameters"):
        with pytest.raises(ValueError, match="drift: expected a family with batched physics"):
            drift.measure_drift(policy, stepped, what, CONFIG, MetaTrained())
