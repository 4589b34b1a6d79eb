"""Plain policy-gradient training: it learns, it is deterministic, and it overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssm_metarl.checkpoint import FILE_NAME, load_checkpoint, load_pretrained
from ssm_metarl.config import SingleTaskConfig
from ssm_metarl.meta_rl import single_task
from ssm_metarl.meta_rl.gradient_steps import TrainingDiverged
from ssm_metarl.meta_rl.single_task import (
    UpdateMetrics,
    run_episodes,
    train_single_task,
)
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.training import train_one_task


def small(**settings: object) -> SingleTaskConfig:
    given = {"num_episodes": 6, "episodes_per_update": 4, "state_dim": 4, "hidden_dim": 8}
    return SingleTaskConfig(**(given | settings))  # type: ignore[arg-type]


def test_cartpole_is_learnt_in_seconds() -> None:
    config = small(num_episodes=96, episodes_per_update=16, state_dim=8, hidden_dim=16, lr=1e-2)
    updates: list[UpdateMetrics] = []
    policy = train_single_task(config, CARTPOLE, updates.append)
    assert updates[0].average_return < 40
    assert updates[-1].average_return > 100
    greedy = run_episodes(policy, CARTPOLE, 10, seed=5, purpose="test", greedy=True)
    assert greedy.episode_returns().mean() > 100


@pytest.mark.parametrize("core", ["diagonal", "state_space"])
def test_the_seed_decides_everything(core: str) -> None:
    generator = torch.get_rng_state()
    one, same, other = (
        train_single_task(small(core=core, seed=seed), CARTPOLE).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_log_counts_finished_episodes_and_steps() -> None:
    updates: list[UpdateMetrics] = []
    train_single_task(small(), CARTPOLE, updates.append)
    assert [u.episodes for u in updates] == [4, 6]
    # every step of CartPole is rewarded with 1
    assert updates[0].env_steps == round(4 * updates[0].average_return)
    assert updates[1].env_steps == round(
        4 * updates[0].average_return + 2 * updates[1].average_return
    )


def test_every_update_meets_other_episodes() -> None:
    policy = train_single_task(small(num_episodes=1), CARTPOLE)
    first, same, later = (
        run_episodes(policy, CARTPOLE, 2, seed=0, purpose="single-task", index=index)
        for index in (0, 0, 4)
    )
    assert torch.equal(first.obs, same.obs)
    assert not torch.equal(first.obs[0], later.obs[0])


def test_a_gymnasium_environment_with_continuous_actions() -> None:
    family = TaskFamily.from_gymnasium("Pendulum-v1", {})
    updates: list[UpdateMetrics] = []
    config = small(env_name="Pendulum-v1", num_episodes=2, episodes_per_update=2, update_epochs=2)
    policy = train_single_task(config, family, updates.append)
    assert updates[0].env_steps == 400
    assert updates[0].average_return < 0
    assert all(torch.isfinite(p).all() for p in policy.parameters())


def test_a_number_that_is_none_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*args: object, **kwargs: object) -> torch.Tensor:
        return original(*args, **kwargs) * torch.nan  # type: ignore[arg-type]

    original = single_task.advantages
    monkeypatch.setattr(single_task, "advantages", spoiled)
    with pytest.raises(TrainingDiverged, match=r"expected a finite loss .* received loss nan"):
        train_single_task(small(), CARTPOLE)


def test_a_gradient_that_is_none_stops_it_before_it_spreads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss may be finite where its gradient is not."""
    built = []

    def build(*args: object, **kwargs: object) -> single_task.Policy:
        policy = original(*args, **kwargs)  # type: ignore[arg-type]
        next(iter(policy.core.parameters())).register_hook(lambda g: g * torch.nan)
        built.append(policy)
        return policy

    original = single_task.build_policy
    monkeypatch.setattr(single_task, "build_policy", build)
    with pytest.raises(TrainingDiverged, match="gradient norm nan"):
        train_single_task(small(), CARTPOLE)
    assert all(torch.isfinite(p).all() for p in built[0].parameters())


def test_a_saved_policy_loads_and_is_not_overwritten(tmp_path: Path) -> None:
    policy, result = train_one_task(small(), out=tmp_path / "out")
    loaded = load_pretrained(tmp_path / "out")
    assert all(torch.equal(loaded.state_dict()[n], v) for n, v in policy.state_dict().items())
    card = load_checkpoint(tmp_path / "out").card
    words = "--state-dim 4 --hidden-dim 8 --num-episodes 6 --episodes-per-update 4"
    assert card["command"] == f"ssm-metarl train --mode policy_gradient {words}"
    assert card["result"] | {"model": result["model"]} == result
    assert (card["single_task"]["num_episodes"], result["greedy_episodes"]) == (6, 50)
    before = (tmp_path / "out" / FILE_NAME).read_bytes()
    with pytest.raises(ValueError, match="expected a folder without a checkpoint"):
        train_one_task(small(), out=tmp_path / "out")
    assert (tmp_path / "out" / FILE_NAME).read_bytes() == before
