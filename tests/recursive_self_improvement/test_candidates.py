"""One candidate: the champion's own training, changed as proposed, and what refuses it."""

from dataclasses import replace

import pytest
import torch

from ssm_metarl.checkpoint import load_checkpoint, pack, unpack
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.meta_rl import trainer as trainer_module
from ssm_metarl.meta_rl.gradient_steps import TrainingDiverged
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.recursive_self_improvement import candidates
from ssm_metarl.recursive_self_improvement.candidates import Training, prepare, recipe_for
from ssm_metarl.settings import rebuild
from ssm_metarl.tasks.registry import family_of_env

FAMILY = family_of_env("cartpole")
STEPS = 1500


@pytest.fixture(scope="module")
def parent(generation_zero):
    return load_checkpoint(generation_zero)


def training(parent, changes=None, **settings):
    defaults = {"seed": 3, "env_steps": STEPS, "max_parameters": 50_000}
    return Training(
        parent=pack(parent), family=FAMILY, changes=changes or {}, **(defaults | settings)
    )


def test_a_control_is_the_plain_training_gone_on_with(parent):
    trained = training(parent)()
    config = recipe_for(rebuild(MetaTrainingConfig, parent.settings, "x"), 3, STEPS)
    plain = MetaTrainer(config, FAMILY)
    plain.restore(parent.tensors, {"epoch": 0, "env_steps": 0, "recent_return": 0.0})
    plain.train()
    result = unpack(trained.weights, "x")
    assert result.tensors.keys() == plain.tensors().keys()
    for name, value in plain.tensors().items():
        assert torch.equal(result.tensors[name], value), name
    assert trained.env_steps == plain.env_steps >= STEPS and plain.epoch > 1
    assert any(not torch.equal(result.tensors[n], v) for n, v in parent.tensors.items())
    again = training(parent)()
    assert again == trained
    assert training(parent, seed=4)().weights != trained.weights
    fresh = MetaTrainer(config, FAMILY)  # not the same as from nothing: the optimiser moves along
    fresh.policy.load_state_dict(parent.policy().state_dict())
    fresh.train()
    assert any(not torch.equal(result.tensors[n], v) for n, v in fresh.tensors().items())


def test_changes_are_applied(parent):
    changes = {"outer_lr": 1e-3, "tasks_per_epoch": 5, "state_dim": 6, "hidden_dim": 5}
    trained = training(parent, changes)()
    result = unpack(trained.weights, "x")
    for name, value in changes.items():
        assert result.training[name] == value
    assert (result.policy_config["state_dim"], result.policy_config["hidden_dim"]) == (6, 5)
    policy = result.policy()
    assert policy.num_parameters() == trained.parameters > parent.policy().num_parameters()
    assert result.training["seed"] == 3 and result.training["max_env_steps"] == STEPS
    assert (result.calibration, result.card) == ({}, {})


def test_the_static_gate_refuses_before_anything_is_trained(parent, monkeypatch):
    def never(*arguments):
        raise AssertionError("trained")

    monkeypatch.setattr(candidates.Training, "_trainer", never)
    for changes, message in (
        ({"gamma": 0.9}, "expected fields among"),
        ({"max_grad_norm": 5.0, "outer_lr": 1e-3}, "max_grad_norm"),
        ({"clip_coef": -1.0}, "clip_coef: expected a number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            training(parent, changes)()
    with pytest.raises(ValueError, match="parameters: expected at most 10, received"):
        training(parent, max_parameters=10)()
    monkeypatch.setattr(
        "ssm_metarl.recursive_self_improvement.growth.relative_change", lambda *a, **k: 1e-4
    )
    with pytest.raises(ValueError, match="growth: expected a relative change"):
        training(parent, {"state_dim": 6})()


@pytest.mark.parametrize("changes", [{}, {"hidden_dim": 3}], ids=["control", "shrunk"])
def test_a_killed_training_goes_on_bit_for_bit(parent, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(candidates, "SAVE_EVERY", 2)
    expected = training(parent, changes)()
    run_epoch, epochs = MetaTrainer.run_epoch, []

    def killed(self):
        if len(epochs) == 3:
            raise KeyboardInterrupt
        epochs.append(self.epoch)
        return run_epoch(self)

    monkeypatch.setattr(MetaTrainer, "run_epoch", killed)
    job = training(parent, changes, work=str(tmp_path / "work"))
    with pytest.raises(KeyboardInterrupt):
        job()
    epochs.clear()
    epochs += [None] * 4
    assert job() == expected
    assert epochs[4] == 2, "it went on from the checkpoint, not from the start"


def test_a_checkpoint_of_another_training_is_not_gone_on_with(parent, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "SAVE_EVERY", 1)
    work = str(tmp_path / "work")
    training(parent, seed=9, work=work)()
    assert training(parent, work=work)() == training(parent)()


def kl_to(teacher, policy):
    """Mean KL of a policy to its teacher on the states of a rollout, nats a step."""
    trainer = MetaTrainer(MetaTrainingConfig(num_epochs=1), FAMILY)
    support = trainer._collect_support(FAMILY.sample("id", 8, seed=5), 30)
    with torch.no_grad():
        there, here = (p.look(p.meta_params(), support).distribution for p in (teacher, policy))
    return float(there.kl(here).mean())


def sharpened(parent):
    """With actions that are clear, so that losing half of the width loses something."""
    tensors = dict(parent.tensors)
    rng = torch.Generator().manual_seed(0)
    for name in ("policy.heads.action.weight", "policy.core.encoder.weight"):
        tensors[name] = torch.randn(tensors[name].shape, generator=rng) * 2
    return replace(parent, tensors=tensors)


def test_what_was_shrunk_learns_from_what_it_was_shrunk_from(parent, monkeypatch):
    teacher = sharpened(parent)
    changes = {"hidden_dim": 2, "outer_lr": 2e-2}
    _, shrunk = prepare(teacher, changes, FAMILY, 3, STEPS)
    assert shrunk
    assert not prepare(teacher, {"hidden_dim": 5}, FAMILY, 3, STEPS)[1]
    teachers, run_epoch = [], MetaTrainer.run_epoch

    def watched(self):
        teachers.append(self.teacher)
        return run_epoch(self)

    monkeypatch.setattr(MetaTrainer, "run_epoch", watched)
    distances = {}
    for weight in (10.0, 0.0):
        monkeypatch.setattr(trainer_module, "KICKSTART", weight)
        trained = training(teacher, changes, env_steps=6 * STEPS)()
        distances[weight] = kl_to(teacher.policy(), unpack(trained.weights, "x").policy())
    assert distances[10.0] < 0.9 * distances[0.0], distances
    assert all(t is not None and t.config.hidden_dim == 4 for t in teachers)
    teachers.clear()
    training(teacher)()
    assert teachers and set(teachers) == {None}


def test_a_training_that_diverges_says_so(parent):
    name = next(n for n in parent.tensors if n.endswith("encoder.weight"))
    broken = replace(parent, tensors=parent.tensors | {
        name: parent.tensors[name] * float("nan")})  # fmt: skip
    with pytest.raises(TrainingDiverged, match="finite"):
        training(broken)()
