"""In-context training: what the memory sees, what the update does, and that it learns."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from float32 import EPS, TIMES, assert_identity, assert_only_rounded
from ssm_metarl.checkpoint import load_checkpoint, load_pretrained
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.evaluation.episodes import run_trials
from ssm_metarl.meta_rl import training_run
from ssm_metarl.meta_rl.gradient_steps import TrainingDiverged
from ssm_metarl.meta_rl.in_context import InContextTrainer, Sequences, ppo_loss
from ssm_metarl.meta_rl.training_run import LOG_NAME, TrainingRun, recorded_config, training_record
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.task_family import TaskFamily, Uniform, teacher


def tiny(**changes: Any) -> InContextConfig:
    settings: dict[str, Any] = {
        "state_dim": 4, "hidden_dim": 6, "num_layers": 1, "num_epochs": 3, "tasks_per_epoch": 4,
        "steps_per_epoch": 48, "sequence_steps": 16, "minibatches": 2, "horizon": 12,
    }  # fmt: skip
    return InContextConfig(**(settings | changes))


@pytest.fixture(autouse=True)
def no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard takes longer to import than these trainings."""
    monkeypatch.setattr(training_run, "_event_writer", lambda *_: None)


def collected(trainer: InContextTrainer) -> Any:
    tasks = trainer.family.sample("train", trainer.config.tasks_per_epoch, seed=0)
    return trainer._collect(tasks)


def test_sequences_start_from_the_states_that_acting_had() -> None:
    trainer = InContextTrainer(tiny())
    rollout = collected(trainer)
    sequences, _ = trainer._rate(rollout, None)
    assert sequences.inputs.shape[:2] == (16, 3 * 4)

    def log_prob(policy: Policy, inputs: Tensor, hidden: Tensor) -> Tensor:
        params, reset = policy.meta_params(), sequences.reset[:, None]
        with torch.no_grad():
            out, _ = policy.unroll(params, inputs[:, None], hidden, reset)
        return out.distribution.map(lambda x: x[:, 0]).log_prob(sequences.action)

    # From the right states the weights that acted give the very probabilities of acting...
    seen = trainer.policy, sequences.inputs, sequences.hidden
    assert_only_rounded(sequences.log_prob, log_prob, *seen)
    # ... and sequences that do not start a trial do need their states.
    assert sequences.hidden[0, :4].abs().max() == 0
    assert (sequences.hidden[0, 4:].abs().amax(dim=-1) > 0).all()


def test_an_episodes_end_is_an_input_and_a_trials_end_clears() -> None:
    trainer = InContextTrainer(tiny(trial_episodes=2))
    rollout = collected(trainer)
    sequences, _ = trainer._rate(rollout, None)
    starts = rollout.reset[:48, :, 0].reshape(3, 16, 4).transpose(0, 1).flatten(1)
    flags = sequences.inputs[..., -2:]
    assert torch.equal(flags[..., 0].bool(), sequences.reset)
    assert torch.equal(flags.sum(-1).bool(), starts)
    ends = int(starts.sum())
    assert ends / 2 <= int(sequences.reset.sum()) < ends  # every second episode starts a trial


def test_one_step_of_ppo_is_the_policy_gradient() -> None:
    # At the weights that acted the ratio is 1 everywhere: clipping changes nothing.
    trainer = InContextTrainer(tiny())
    sequences, _ = trainer._rate(collected(trainer), None)

    def gradient(clip_coef: float, policy: Policy, columns: dict[str, Tensor]) -> Tensor:
        config = replace(trainer.config, clip_coef=clip_coef, value_coef=0.0, entropy_coef=0.0)
        loss, _ = ppo_loss(policy, Sequences(**columns), config)
        return torch.autograd.grad(loss, policy.heads.action.weight)[0]

    def sides(*seen: Any) -> tuple[Tensor, Tensor]:
        return gradient(1e6, *seen), gradient(0.2, *seen)

    assert_identity(sides, trainer.policy, vars(sequences))
    assert gradient(0.2, trainer.policy, vars(sequences)).abs().max() > 0
    mean = sequences.advantage.double().mean().item()
    assert abs(mean) < TIMES * EPS, "normalised advantages have mean 0, and size 1"


def test_the_step_sizes_are_not_trained() -> None:
    trainer = InContextTrainer(tiny())
    before = trainer.policy.step_size.detach().clone()
    trainer.run_epoch()
    assert torch.equal(trainer.policy.step_size, before)


def test_an_epoch_is_counted() -> None:
    trainer = InContextTrainer(tiny())
    metrics = [trainer.run_epoch() for _ in range(3)]
    assert [m.epoch for m in metrics] == [1, 2, 3]
    assert [m.env_steps for m in metrics] == [4 * 49 * n for n in (1, 2, 3)]
    assert all(1 <= m.average_return <= 49 for m in metrics)
    assert trainer.progress == 1


def test_trainings_repeat_bit_for_bit_and_resume_as_if_nothing_had_been(tmp_path: Path) -> None:
    config = tiny(num_epochs=4)
    whole = TrainingRun.start(config, tmp_path / "whole")
    whole.train()
    broken = TrainingRun.start(config, tmp_path / "broken")
    broken.on_epoch = lambda metrics, _: metrics.epoch == 2 and broken.request_stop()
    broken.train()
    assert broken.stopped
    TrainingRun.resume(tmp_path / "broken").train()
    one, other = (load_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    assert one.counters == other.counters
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(v, other.tensors[n]) for n, v in one.tensors.items())
    logs = [(tmp_path / n / LOG_NAME).read_text().splitlines() for n in ("whole", "broken")]
    assert len(logs[0]) == 4
    rows = [[json.loads(x) | {"seconds": 0} for x in log] for log in logs]
    assert rows[0] == rows[1]


def test_a_checkpoint_is_a_model(tmp_path: Path) -> None:
    run = TrainingRun.start(tiny(), tmp_path / "run")
    policy = run.train()
    loaded = load_pretrained(tmp_path / "run")
    assert loaded.in_context and loaded.obs_dim == 4
    tasks = CARTPOLE.sample("id", 3, seed=0)
    config = EvaluationConfig(num_tasks=3, episodes_per_task=2)
    one, other = (
        run_trials(tasks, p.actor(p.meta_params(), 3, 1), config) for p in (policy, loaded)
    )
    assert (one == other).all()


def test_a_configuration_survives_its_record() -> None:
    config = tiny(gamma=0.9)
    record = json.loads(json.dumps(training_record(config)))
    assert recorded_config(record, "training") == config
    assert record == {**asdict(config), "mode": "in_context"}
    with pytest.raises(ValueError, match="training: expected fields among"):
        recorded_config(record | {"inner_lr": 1.0}, "training")


def test_a_gymnasium_family_trains_too() -> None:
    family = TaskFamily.from_gymnasium("Pendulum-v1", {"g": Uniform(5, 15, unit="m/s²")})
    trainer = InContextTrainer(tiny(tasks_per_epoch=2), family)
    metrics = trainer.run_epoch()
    assert metrics.env_steps == 2 * 49
    assert metrics.average_return < 0


def test_a_diverged_training_says_so() -> None:
    trainer = InContextTrainer(tiny())
    with torch.no_grad():
        trainer.policy.heads.value.weight.fill_(torch.inf)
    with pytest.raises(TrainingDiverged, match="expected a finite loss"):
        trainer.run_epoch()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_steps": 17}, "sequence_steps: expected a divisor of steps_per_epoch = 48"),
        ({"minibatches": 5}, "minibatches: expected at most tasks_per_epoch = 4, received 5"),
        ({"gamma": 1.0}, "gamma: expected less than 1, received 1.0"),
        ({"episode_gamma": 1.5}, "episode_gamma: expected 0 to 1, received 1.5"),
        ({"trial_episodes": 0}, "trial_episodes: expected at least 1, received 0"),
        ({"lr": 0.0}, "lr: expected a number above 0, received 0.0"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_the_default_limit() -> None:
    assert InContextConfig().env_step_limit == 2_000_000
    assert InContextConfig(num_epochs=5).env_step_limit is None


def test_imitation_makes_the_experts_actions_likelier() -> None:
    family = CARTPOLE_SCRAMBLED
    config = tiny(imitation_coef=1.0, value_coef=0.0, entropy_coef=0.0, lr=1e-3)
    trainer = InContextTrainer(config, family)
    tasks = family.sample("train", 4, seed=0)
    rollout = trainer._collect(tasks)
    expert = teacher(tasks)(rollout.obs, rollout.action, rollout.reset)
    sequences, _ = trainer._rate(rollout, expert)
    untouched = replace(sequences, advantage=torch.zeros_like(sequences.advantage))

    def agreement() -> float:
        loss, _ = ppo_loss(trainer.policy, untouched, config)
        return -loss.item()

    before = agreement()
    for _ in range(5):
        trainer._update(untouched)
    assert agreement() > before + 0.001


def test_imitation_needs_an_expert() -> None:
    family = TaskFamily.from_gymnasium("Pendulum-v1", {})
    with pytest.raises(ValueError, match="received 'Pendulum-v1'"):
        InContextTrainer(tiny(imitation_coef=1.0), family)


@pytest.mark.slow
def test_it_learns_to_tell_the_actuators_sign_and_remembers_it() -> None:
    trainer = InContextTrainer(InContextConfig(max_env_steps=1_000_000))
    policy = trainer.train()
    config = EvaluationConfig(num_tasks=100, episodes_per_task=2)
    tasks = CARTPOLE.sample("id", 100, seed=0)
    actor = policy.actor(policy.meta_params(), 100, 1)
    first, second = run_trials(tasks, actor, config).mean(axis=0)
    assert first > 450
    assert second > 450
