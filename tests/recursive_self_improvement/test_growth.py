"""Growth keeps the function, takes everything along, and a training goes on from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssm_metarl.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.recursive_self_improvement import growth
from ssm_metarl.recursive_self_improvement.growth import (
    relative_change,
    resize,
)
from ssm_metarl.settings import rebuild
from ssm_metarl.types import FlatParams

from .grown import (
    FLOAT64,
    MOMENTS,
    SIZES,
    Case,
    all_cases,
    assert_function_kept,
    diagonal,
    joints,
    old_block,
    random_checkpoint,
    shapes_of,
    sized,
)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return all_cases()


def test_growth_keeps_the_function(cases: list[Case]) -> None:
    for seed, case in enumerate(cases):
        assert_function_kept(case, seed)


def test_growth_twice_keeps_the_function() -> None:
    old = random_checkpoint(diagonal(), 0)
    once = resize(old, sized(diagonal(), hidden_dim=8), seed=1)
    twice = resize(once, sized(diagonal(), hidden_dim=9, state_dim=6, num_layers=3), seed=2)
    assert_function_kept(Case(old, diagonal(), twice), 0)
    assert twice.policy_config["norm_dim"] == 6


@pytest.mark.parametrize("core", ["diagonal", "state_space"])
@pytest.mark.parametrize("name", SIZES)
def test_without_the_zeros_the_function_changes(
    core: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if core == "state_space" and name == "num_layers":
        return  # it has none
    config = diagonal(core=core)
    old, larger = random_checkpoint(config, 0), sized(config, **{name: getattr(config, name) + 2})
    new = resize(old, larger, seed=1)
    assert relative_change(old, new, seed=0, dtype=torch.float64) <= FLOAT64
    monkeypatch.setattr(growth, "silenced", lambda fresh, plan: fresh.meta_params())
    with torch.no_grad():
        wrong = resize(old, larger, seed=1)
    assert relative_change(old, wrong, seed=0) > 0.01


def test_with_the_norm_over_new_channels_too_the_function_changes() -> None:
    old = random_checkpoint(diagonal(), 0)
    new = resize(old, sized(diagonal(), hidden_dim=8), seed=1)
    wrong = replace(new, policy_config=new.policy_config | {"norm_dim": None})
    assert relative_change(old, wrong, seed=0) > 0.01


def test_nan_is_no_small_change() -> None:
    old = random_checkpoint(diagonal(), 0)
    broken = replace(old, tensors={n: v * torch.nan for n, v in old.tensors.items()})
    for pair in ((old, broken), (broken, old), (broken, broken)):
        assert not relative_change(*pair, seed=0) <= 1
    assert relative_change(old, old, seed=0) == 0


def test_weights_step_sizes_and_moments_move_along(cases: list[Case]) -> None:
    for case in cases:
        before, after = shapes_of(case.old), shapes_of(case.new)

        def values(
            name: str, old_name: str, key: str, case: Case = case, shapes: Any = (before, after)
        ) -> Iterator[tuple[Tensor, Tensor]]:
            """A key of a parameter and of its step sizes, before and after."""
            checkpoints, names = (case.old, case.new), (old_name, name)
            yield tuple(  # type: ignore[misc]
                c.tensors[f"optimizer.{n}.{key}"] for c, n in zip(checkpoints, names, strict=True)
            )
            yield tuple(  # type: ignore[misc]
                FlatParams(c.tensors[f"optimizer.step_size.{key}"], s)[n]
                for c, n, s in zip(checkpoints, names, shapes, strict=True)
            )

        sizes = FlatParams(case.new.tensors["policy.step_size"], after)
        old_sizes = FlatParams(case.old.tensors["policy.step_size"], before)
        numbers = [sum(shape.numel() for shape in shapes.values()) for shapes in (before, after)]
        shorter = math.sqrt(numbers[0] / numbers[1])  # as the gradient's RMS will be
        last = case.old.policy_config["num_layers"] - 1
        for name, shape in after.items():
            kept = old_block(name, before, shape)
            assert not sizes[name][~kept].any()
            source = name
            if name in before:
                weight = case.old.tensors[f"policy.{name}"]
                assert torch.equal(case.new.tensors[f"policy.{name}"][kept], weight.flatten())
                assert torch.allclose(sizes[name][kept], shorter * old_sizes[name].flatten())
            else:
                source = f"core.layers.{last}.{name.split('.', 3)[3]}"
            for key in MOMENTS:
                for old, new in values(name, source, key):
                    fill = 0.0 if key == "exp_avg" else float(old.mean())
                    assert (new[~kept] == fill).all(), name
                    assert name not in before or torch.equal(new[kept], old.flatten()), name
            assert case.new.tensors[f"optimizer.{name}.step"] == 37
        assert case.new.tensors["optimizer.step_size.step"] == 37


def test_everything_else_is_kept_and_the_old_checkpoint_left_alone(tmp_path: Path) -> None:
    old = random_checkpoint(diagonal(), 0)
    copies = {name: value.clone() for name, value in old.tensors.items()}
    new = resize(old, sized(diagonal(), hidden_dim=8, num_layers=3), seed=1)
    assert all(torch.equal(old.tensors[n], copies[n]) for n in copies)
    assert torch.equal(new.tensors["experience.reward"], old.tensors["experience.reward"])
    assert (new.counters, new.card) == (old.counters, old.card)
    assert old.calibration and new.calibration == {}
    trained = {name: new.training[name] for name in (*SIZES, "norm_dim")}
    assert trained == {"state_dim": 4, "hidden_dim": 8, "num_layers": 3, "norm_dim": 6}
    save_checkpoint(tmp_path / "grown.safetensors", new)
    loaded = load_checkpoint(tmp_path / "grown.safetensors")
    assert relative_change(old, loaded, seed=0, dtype=torch.float64) <= FLOAT64


def test_a_model_without_optimiser_or_training_grows() -> None:
    old = random_checkpoint(diagonal(), 0)
    alone = {n: v for n, v in old.tensors.items() if n.startswith("policy.")}
    new = resize(replace(old, tensors=alone, training={}), sized(diagonal(), state_dim=6), seed=1)
    assert new.training == {}
    assert all(name.startswith("policy.") for name in new.tensors)
    assert relative_change(old, new, seed=0, dtype=torch.float64) <= FLOAT64


def test_the_same_sizes_give_the_same_checkpoint() -> None:
    old = random_checkpoint(diagonal(norm_dim=4), 0)
    assert resize(old, sized(diagonal()), seed=1) is old


def test_the_seed_names_the_new_weights() -> None:
    old, larger = random_checkpoint(diagonal(), 0), sized(diagonal(), state_dim=6)
    one, same, other = (resize(old, larger, seed=seed).tensors for seed in (1, 1, 2))
    name = "policy.core.layers.0.B.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


@pytest.mark.parametrize("core", ["diagonal", "state_space"])
def test_a_grown_training_goes_on(core: Any) -> None:
    config = MetaTrainingConfig(
        core=core, state_dim=4, hidden_dim=5, num_layers=2, num_epochs=9, tasks_per_epoch=3,
        episodes_per_task=2, horizon=8, full_horizon_every=0, max_support_steps=9,
    )  # fmt: skip
    trainer = MetaTrainer(config)
    trainer.run_epoch()
    policy_config = architecture(config, trainer.family)
    old = Checkpoint(
        policy_config=asdict(policy_config),
        tensors=trainer.tensors(),
        training=asdict(config),
        counters=trainer.counters(),
    )
    layers = 3 if core == "diagonal" else 2
    larger = sized(policy_config, state_dim=6, hidden_dim=15, num_layers=layers)
    new = resize(old, larger, seed=1)
    grown = MetaTrainer(rebuild(MetaTrainingConfig, new.training, "training"))
    assert asdict(architecture(grown.config, grown.family)) == new.policy_config
    grown.restore(new.tensors, new.counters)
    final = replace(new, tensors=grown.tensors())
    assert relative_change(old, final, seed=0, dtype=torch.float64) <= FLOAT64
    metrics = grown.run_epoch()
    assert metrics.epoch == 2 and np.isfinite(metrics.meta_loss)
    after = grown.tensors()
    for name in ("core.layers.2.C.weight", "core.layers.0.C.weight", "heads.action.weight",
                 "core.state_transition.2.weight"):  # fmt: skip
        key = f"policy.{name}"
        if key in after:
            moved = after[key] != new.tensors[key]
            share = moved[joints(name, shapes_of(old), moved.shape)].float().mean()
            # some of a tiny nonlinear model's neurons never fire
            assert share == 1 if core == "diagonal" else share > 0.2, name
    assert float(after["optimizer.step_size.step"]) == 4
