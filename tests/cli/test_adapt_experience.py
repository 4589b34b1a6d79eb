"""``adapt --mode hybrid``: experience that grows, is handed on, and has to fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssm_metarl.checkpoint import load_checkpoint
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.types import Rollout

from .conftest import Cli


def test_experience_grows_with_every_hybrid_adaptation(cli: Cli, model: Path) -> None:
    def adapt(out: str, *flags: object) -> dict[str, Any]:
        flags += ("--no_rollback", "--json")  # a model of seconds learns no step worth keeping
        outcome = cli("adapt", "--model", model, "--mode", "hybrid", "--out", out, *flags)
        assert outcome.code == 0, outcome.err
        experience = load_checkpoint(out).experience()
        assert experience is not None and outcome.json["experience"] == len(experience)
        assert experience.max_size == 10_000  # as in the training
        return experience.tensors()

    held = load_checkpoint(model).experience()
    assert held is not None
    first = adapt("a.safetensors", "--support_steps", 7)
    second = adapt("b.safetensors", "--experience", "a.safetensors", "--support_steps", 9)
    assert len(first["reward"]) == len(held) + 7 and len(second["reward"]) == len(held) + 16
    assert torch.equal(second["obs"][: len(held) + 7], first["obs"])
    latest = first["task_id"].max()
    assert latest == held.next_task_id and second["task_id"].max() == latest + 1
    arms = cli("evaluate", "--model", "b.safetensors", "--num_tasks", 2, "--json").json["arms"]
    assert not {"standard", "hybrid"} & set(arms)  # it is adapted already
    words = ("--model", model, "--mode", "hybrid", "--experience", "b.safetensors", "--no_rollback")
    assert f"this task's: {len(held) + 36:,} transitions\nsaved: " in cli("adapt", *words).out


def test_the_oldest_experience_makes_room(cli: Cli, model: Path, tmp_path: Path) -> None:
    held = load_checkpoint(model).experience()
    assert held is not None
    small = ExperienceBuffer(len(held), "cartpole").restore(held.tensors())
    small.save(tmp_path / "full")
    flags = ("--mode", "hybrid", "--experience", "full", "--support_steps", 7, "--json")
    flags += ("--no_rollback",)
    assert cli("adapt", "--model", model, *flags).json["experience"] <= len(held)
    grown = load_checkpoint("adapted.safetensors").tensors
    assert torch.equal(grown["experience.obs"][-8], held.tensors()["obs"][-1])
    assert not torch.equal(grown["experience.obs"][0], held.tensors()["obs"][0])


def test_experience_that_does_not_fit_is_refused_before_anything_runs(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    held = load_checkpoint(model).experience()
    assert held is not None
    named, wide = ExperienceBuffer(family="cartpole_scrambled"), ExperienceBuffer()
    named.restore(held.tensors()).save(tmp_path / "named")
    wide.add(Rollout.from_episode(np.zeros((3, 6)), [0, 1]), [0])
    wide.save(tmp_path / "wide")
    for file, message in (
        ("named", "experience: expected that of cartpole, received that of cartpole_scrambled"),
        ("wide", "experience buffer: expected observations of size 4, received 6"),
        ("none", "expected a shipped name"),
    ):
        flags = ("--mode", "hybrid", "--experience", file)
        assert message in cli("adapt", "--model", model, *flags).refusal()
    other = ("--family", "cartpole_scrambled", "--mode", "hybrid")
    assert "received that of cartpole" in cli("adapt", "--model", model, *other).refusal()
    without = ("--experience", "named")
    assert "mode 'hybrid' beside it" in cli("adapt", "--model", model, *without).refusal()
    assert not (tmp_path / "adapted.safetensors").exists()
