"""A whole training from Python: any family object, every mode, and what the command line does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssm_metarl import training
from ssm_metarl.checkpoint import load_checkpoint
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig, SingleTaskConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.env_runner.worlds import fingerprint
from ssm_metarl.evaluation.opened_model import open_model
from ssm_metarl.meta_rl import training_run
from ssm_metarl.meta_rl.training_run import TrainingRun
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily, Uniform
from ssm_metarl.training import finish, train

LONG_POLES = replace(
    CARTPOLE,
    name="long_poles",
    parameters=tuple(
        replace(p, id=Uniform(2, 3), ood=Uniform(3.1, 4)) if p.name == "length" else p
        for p in CARTPOLE.parameters
    ),
)
SIZES: dict[str, Any] = {"state_dim": 4, "hidden_dim": 6, "num_layers": 1}
META: dict[str, Any] = SIZES | {
    "num_epochs": 2, "tasks_per_epoch": 3, "episodes_per_task": 2, "horizon": 8,
    "full_horizon_every": 0, "max_support_steps": 9, "calibration_tasks": 180,
}  # fmt: skip
MODES = {
    "meta_rl": MetaTrainingConfig(**META),
    "both": MetaTrainingConfig(**META | {"calibration_tasks": 0}, in_context=True),
    "in_context": InContextConfig(
        **SIZES, num_epochs=2, tasks_per_epoch=4, steps_per_epoch=32, sequence_steps=16, horizon=12
    ),
}
ARMS = {"meta_rl": "standard", "both": "both", "in_context": "in_context"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short evaluation, none on the way, and no TensorBoard, which takes longer to import."""
    monkeypatch.setattr(training, "FINAL_TASKS", 3)
    monkeypatch.setattr(training, "_curve_point", lambda *_: {})
    monkeypatch.setattr(training_run, "_event_writer", lambda *_: None)


@pytest.mark.parametrize("mode", MODES)
def test_a_family_of_ones_own_is_trained_saved_opened_and_evaluated(
    mode: str, tmp_path: Path
) -> None:
    told: list[float] = []
    trained = train(
        MODES[mode], tmp_path, family=LONG_POLES, on_progress=lambda share, _: told.append(share)
    )
    assert told[1] == 1.0, "the second of two epochs ends the training"
    assert (trained.result["family"], trained.result["epochs"]) == ("long_poles", 2)
    assert ARMS[mode] in trained.result["arms"]
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.trained_on == ("long_poles", fingerprint(LONG_POLES))
    assert checkpoint.card["command"].endswith("  # its family was handed over")
    assert checkpoint.card["verification"]["seed"] == 0
    assert (trained.policy.calibration is not None) == (mode == "meta_rl")
    opened = open_model(str(tmp_path), LONG_POLES)
    again = opened.evaluate(EvaluationConfig(num_tasks=3), lambda *_: None)
    assert again["arms"] == trained.result["arms"]
    with pytest.raises(ValueError, match="expected a folder without a training"):
        train(MODES[mode], tmp_path, family=LONG_POLES)


def test_one_environment_without_adaptation(tmp_path: Path) -> None:
    config = SingleTaskConfig(num_episodes=4, episodes_per_update=2, update_epochs=1, **SIZES)
    trained = train(config, tmp_path / "out", family=replace(LONG_POLES, gymnasium_id=None))
    assert (trained.result["episodes"], trained.result["env_name"]) == (4, "long_poles")
    opened = open_model(str(tmp_path / "out"), LONG_POLES)
    assert all(
        torch.equal(v, opened.policy.state_dict()[n])
        for n, v in trained.policy.state_dict().items()
    )


def test_a_simulator(tmp_path: Path) -> None:
    family = TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15, unit="m/s²")})
    config = replace(MODES["meta_rl"], num_epochs=1, calibration_tasks=0)
    trained = train(config, tmp_path, family=family)
    assert trained.result["arms"]["standard"]["mean"] < 0
    assert load_checkpoint(tmp_path).training["push_probability"] == 0.0


def test_a_stopped_training_is_finished_alike(tmp_path: Path) -> None:
    config = MODES["meta_rl"]
    whole = train(config, tmp_path / "whole", family=LONG_POLES)
    stopped = TrainingRun.start(config, tmp_path / "stopped", family=LONG_POLES)
    stopped.on_epoch = lambda *_: stopped.request_stop()
    stopped.train()
    assert stopped.stopped
    run = TrainingRun.resume(tmp_path / "stopped", family=LONG_POLES)
    run.train()
    result = finish(run).result
    assert result["arms"] == whole.result["arms"]
    one, other = (load_checkpoint(tmp_path / name) for name in ("whole", "stopped"))
    assert one.card == other.card and one.calibration == other.calibration
    assert all(torch.equal(v, other.tensors[n]) for n, v in one.tensors.items())


def test_a_state_space_model_leaves_its_pth(tmp_path: Path) -> None:
    config = replace(MODES["meta_rl"], core="state_space", calibration_tasks=0)
    trained = train(config, tmp_path, family=LONG_POLES)
    assert {p.name for p in tmp_path.iterdir()} >= {"model.pth", "model.safetensors"}
    beside = open_model(str(tmp_path / "model.pth"), LONG_POLES).policy
    for name, value in trained.policy.state_dict().items():
        assert torch.equal(value, beside.state_dict()[name]), name
