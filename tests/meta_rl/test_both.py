"""A gradient step on top of a context: the same meta-training, of a policy that remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.evaluation.meta_evaluator import evaluate
from ssm_metarl.meta_rl import training_run
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.meta_rl.training_run import TrainingRun
from ssm_metarl.methods.meta_trained import MetaTrained

SIZES = {"state_dim": 4, "hidden_dim": 6, "num_layers": 1, "tasks_per_epoch": 4}


def tiny(**changes: Any) -> MetaTrainingConfig:
    settings = {"num_epochs": 2, "horizon": 20, "full_horizon_every": 0, "in_context": True}
    return MetaTrainingConfig(**(SIZES | settings | changes))


@pytest.fixture(autouse=True)
def no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard takes longer to import than these trainings."""
    monkeypatch.setattr(training_run, "_event_writer", lambda *_: None)


def context_run(out: Path, **changes: Any) -> Path:
    """A folder with an in-context training."""
    settings = {"steps_per_epoch": 32, "sequence_steps": 16, "num_epochs": 1}
    TrainingRun.start(InContextConfig(**(SIZES | settings | changes)), out).train()
    return out


def test_the_outer_gradient_runs_through_the_step_of_a_remembering_policy() -> None:
    trainer = MetaTrainer(tiny())
    assert trainer.policy.in_context
    before = {n: p.detach().clone() for n, p in trainer.policy.named_parameters()}
    metrics = trainer.run_epoch()
    assert metrics.left_out == 0 and metrics.grad_norm > 0
    # The step sizes learn too: they have a gradient only through the inner step.
    changed = {n for n, p in trainer.policy.named_parameters() if not torch.equal(p, before[n])}
    assert {"step_size", "core.encoder.weight", "heads.action.weight"} <= changed


def test_some_epochs_go_without_a_step_and_train_the_context() -> None:
    trainer = MetaTrainer(tiny(num_epochs=20))
    steps = set()
    for _ in range(20):
        sizes = trainer.policy.step_size.detach().clone()
        metrics = trainer.run_epoch()
        steps.add(metrics.inner_steps)
        if metrics.inner_steps == 0:
            assert metrics.grad_norm > 0 and metrics.left_out == 0
            moments = trainer.steps.optimizer.state[trainer.policy.step_size]["exp_avg"]
            drift = (trainer.policy.step_size - sizes).abs().max()
            assert drift <= 2 * trainer.config.outer_lr  # nothing but what momentum is left
            assert moments.isfinite().all()
    assert steps == {0, 1, 2, 3}


def test_it_starts_from_a_model_that_remembers(tmp_path: Path) -> None:
    start = str(context_run(tmp_path / "context"))
    config = tiny(start=start, inner_lr=0.125)
    run = TrainingRun.start(config, tmp_path / "both")
    given = training_run.load_pretrained(start)
    for name, weights in given.meta_params().items():
        assert torch.equal(run.trainer.policy.get_parameter(name), weights)
    assert run.trainer.policy.step_size.unique().tolist() == [0.125]
    run.train()
    # What it started from is in the training's weights: resuming needs it no more.
    (tmp_path / "context").rename(tmp_path / "elsewhere")
    assert TrainingRun.resume(tmp_path / "both").trainer.epoch == 2


def test_another_architecture_is_no_start(tmp_path: Path) -> None:
    start = str(context_run(tmp_path / "context", state_dim=5))
    with pytest.raises(ValueError, match=r"start: expected a model of PolicyConfig\(.*received"):
        TrainingRun.start(tiny(start=start), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_the_arms_of_a_policy_that_does_both() -> None:
    trainer = MetaTrainer(tiny())
    trained = MetaTrained.from_training(vars(trainer.config))
    config = EvaluationConfig(num_tasks=3, episodes_per_task=2)
    result = evaluate(trainer.policy, trainer.family, config, model="m", trained=trained)
    assert list(result["arms"])[1:5] == ["frozen", "in_context", "standard", "both"]
    assert "both-in_context" in result["paired"]
    assert len(result["arms"]["both"]["by_episode"]) == 2
    assert result["arms"]["both"]["env_steps"] > 0


def test_a_state_space_model_has_no_context() -> None:
    with pytest.raises(ValueError, match="in_context: expected False, or core 'diagonal'"):
        tiny(core="state_space")
