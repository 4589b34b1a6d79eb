"""Shrinking drops the weakest, and undoes a growth exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ssm_metarl.checkpoint import Checkpoint
from ssm_metarl.config import PolicyConfig
from ssm_metarl.recursive_self_improvement.growth import (
    resize,
)

from .grown import (
    Case,
    all_cases,
    diagonal,
    random_checkpoint,
    sized,
)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return all_cases()


def test_growing_and_shrinking_again_gives_the_old_tensors(cases: list[Case]) -> None:
    for case in cases:
        old = PolicyConfig.from_dict(case.old.policy_config)
        back = resize(case.new, sized(old), seed=0)
        assert PolicyConfig.from_dict(back.policy_config) == old
        assert back.training == case.old.training
        assert back.tensors.keys() == case.old.tensors.keys()
        for name, value in case.old.tensors.items():
            exact = name != "policy.step_size"  # multiplied by a root and by its inverse
            rtol, atol = (0.0, 0.0) if exact else (1e-6, 1e-8)
            assert torch.allclose(back.tensors[name], value, rtol, atol), f"{case.config}: {name}"


def weakened(checkpoint: Checkpoint, columns: dict[str, list[int]]) -> Checkpoint:
    """With small weights wherever the named parameters read the given units."""
    tensors = dict(checkpoint.tensors)
    for name, units in columns.items():
        value = tensors[f"policy.{name}"].clone()
        value[..., units] *= 1e-3
        tensors[f"policy.{name}"] = value
    return replace(checkpoint, tensors=tensors)


def without(value: Tensor, *dropped: list[int]) -> Tensor:
    for axis, units in enumerate(dropped):
        keep = [i for i in range(value.shape[axis]) if i not in units]
        value = value.index_select(axis, torch.tensor(keep))
    return value


def test_shrinking_drops_the_weakest_channels_modes_and_layers() -> None:
    config = diagonal(state_dim=6, hidden_dim=8, num_layers=3, norm_dim=5)
    width = {f"heads.{n}.weight": [1, 6] for n in ("action", "value", "prediction")}
    width |= {f"core.layers.{i}.{n}.weight": [1, 6] for i in (0, 2) for n in ("B", "gate")}
    modes = {"core.layers.0.C.weight": [0], "core.layers.2.C.weight": [5]}
    layer = {f"core.layers.1.{n}": list(range(6)) for n in ("C.weight", "C.bias", "D")}
    old = weakened(random_checkpoint(config, 0), width | modes | layer)
    new = resize(old, sized(config, state_dim=5, hidden_dim=6, num_layers=2), seed=1)
    assert new.policy_config["norm_dim"] == new.training["norm_dim"] == 4
    for part, tail in (("policy.", ""), ("optimizer.", ".exp_avg"), ("optimizer.", ".exp_avg_sq")):

        def both(name: str, source: str, part: str = part, tail: str = tail) -> list[Tensor]:
            return [new.tensors[f"{part}{name}{tail}"], old.tensors[f"{part}{source}{tail}"]]

        for there, here, mode in ((0, 0, 0), (1, 2, 5)):
            at, source = f"core.layers.{there}.", f"core.layers.{here}."
            for name, dropped in (
                ("log_rate", [[mode]]), ("D", [[1, 6]]), ("B.bias", [[mode]]),
                ("B.weight", [[mode], [1, 6]]), ("C.weight", [[1, 6], [mode]]),
                ("gate.weight", [[1, 6], [1, 6]]), ("gate.bias", [[1, 6]]),
            ):  # fmt: skip
                shrunk, whole = both(at + name, source + name)
                assert torch.equal(shrunk, without(whole, *dropped)), name
        shrunk, whole = both("heads.action.weight", "heads.action.weight")
        assert torch.equal(shrunk, without(whole, [], [1, 6]))
    new.policy()  # all shapes fit, the flat step sizes' too
    assert new.tensors["policy.step_size"].numel() == new.policy().num_parameters()


def test_shrinking_a_state_space_model_drops_the_weakest() -> None:
    config = diagonal(core="state_space", output_dim=3)
    old = weakened(
        random_checkpoint(config, 0),
        {
            "core.state_transition.0.weight": [2],
            "core.output_network.0.weight": [2],
            "core.state_transition.2.weight": [0, 5],
            "core.output_network.2.weight": [3, 4],
        },
    )
    new = resize(old, sized(config, state_dim=3, hidden_dim=4), seed=1)
    for name, dropped in (
        ("state_transition.0.weight", [[0, 5], [2]]),
        ("state_transition.0.bias", [[0, 5]]),
        ("state_transition.2.weight", [[2], [0, 5]]),
        ("input_projection.weight", [[2]]),
        ("output_network.0.weight", [[3, 4], [2]]),
        ("output_network.2.weight", [[], [3, 4]]),
        ("feedthrough.weight", []),
    ):
        expected = without(old.tensors[f"policy.core.{name}"], *dropped)
        assert torch.equal(new.tensors[f"policy.core.{name}"], expected), name
    new.policy()


@pytest.mark.parametrize(
    ("norm_dim", "weak", "expected"),
    [(4, [4, 5], None), (None, [0, 1], None), (4, [0, 5], 3), (1, [0, 1], 1)],
)
def test_the_norm_keeps_its_channels(
    norm_dim: int | None, weak: list[int], expected: int | None
) -> None:
    config = diagonal(norm_dim=norm_dim)
    readers = [f"heads.{n}.weight" for n in ("action", "value", "prediction")]
    readers += [f"core.layers.{i}.{n}.weight" for i in (0, 1) for n in ("B", "gate")]
    old = weakened(random_checkpoint(config, 0), dict.fromkeys(readers, weak))
    new = resize(old, sized(config, hidden_dim=4), seed=1)
    assert new.policy_config["norm_dim"] == expected
    bias = old.tensors["policy.core.encoder.bias"]
    kept = new.tensors["policy.core.encoder.bias"]
    assert (kept[0] == bias[0]) == (0 not in weak or norm_dim == 1), "one channel must stay"
