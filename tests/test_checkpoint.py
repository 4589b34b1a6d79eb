"""Checkpoints: exact, atomic, and refused in one clear line where anything is wrong with them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssm_metarl.checkpoint import (
    FILE_NAME,
    FORMAT,
    Checkpoint,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
)
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.types import Rollout

ARCHITECTURE = PolicyConfig(
    state_dim=3, hidden_dim=4, num_layers=1, obs_scale=(0.3, 1.0, 5.0, 1.0), num_actions=2
)


def make_policy() -> Policy:
    return build_policy(ARCHITECTURE, seed=1, inner_lr=0.07)


def make_checkpoint(**changes: Any) -> Checkpoint:
    tensors = {f"policy.{n}": v for n, v in make_policy().state_dict().items()}
    made = Checkpoint(
        policy_config=asdict(ARCHITECTURE),
        tensors=tensors,
        training={"seed": 3},
        counters={"epoch": 7, "recent_return": 0.1},
        card={"command": "train it"},
    )
    return replace(made, **changes)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    same = all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a.keys() & b.keys())
    return a.keys() == b.keys() and same


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / FILE_NAME
    save_checkpoint(path, make_checkpoint())
    return path


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, Tensor]], None]) -> None:
    """Change metadata and tensors of a file, as a foreign program would: without the checksum."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["digest"]
    change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message and "expected" in message
    return message


class TestRoundTrip:
    @pytest.mark.parametrize("as_folder", [False, True])
    def test_everything_comes_back(self, saved: Path, as_folder: bool) -> None:
        loaded, made = load_checkpoint(saved.parent if as_folder else saved), make_checkpoint()
        assert equal(loaded.tensors, made.tensors)
        for name in ("training", "counters", "card"):
            assert getattr(loaded, name) == getattr(made, name)
        assert PolicyConfig.from_dict(loaded.policy_config) == ARCHITECTURE
        assert set(loaded.versions) == {"ssm_metarl", "torch", "numpy"}

    def test_the_policy_acts_as_before(self, saved: Path) -> None:
        policy, loaded = make_policy(), load_pretrained(saved)
        assert equal(dict(loaded.state_dict()), dict(policy.state_dict()))
        assert torch.equal(loaded.obs_scale, policy.obs_scale)
        assert loaded.config == ARCHITECTURE
        assert not torch.equal(
            loaded.step_size, torch.zeros_like(loaded.step_size)
        )  # the learned step sizes are part of it

    def test_a_second_save_writes_the_same_bytes(self, saved: Path, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "again", load_checkpoint(saved))
        again = load_checkpoint(tmp_path / "again")
        assert equal(again.tensors, load_checkpoint(saved).tensors)
        assert again == replace(load_checkpoint(saved), tensors=again.tensors)

    def test_any_kind_of_tensor(self, tmp_path: Path) -> None:
        tensors = {
            "a": torch.arange(6).reshape(2, 3).T,  # not contiguous
            "b": torch.tensor(True),
            "c": torch.zeros(0, 4),
            "d": torch.tensor([1.5], dtype=torch.bfloat16),
            "e": torch.ones(2, requires_grad=True),
        }
        save_checkpoint(tmp_path / "x", make_checkpoint(tensors=tensors))
        loaded = load_checkpoint(tmp_path / "x").tensors
        assert equal(loaded, {n: v.detach() for n, v in tensors.items()})

    def test_a_trainings_state_and_experience(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"tasks_per_epoch": 2, "episodes_per_task": 1, "horizon": 5}
        trainer = MetaTrainer(
            MetaTrainingConfig(num_epochs=2, state_dim=3, hidden_dim=4, num_layers=1, **settings)
        )
        trainer.train()
        config = asdict(trainer.policy.config)  # type: ignore[arg-type]
        save_checkpoint(tmp_path / "x", Checkpoint(policy_config=config, tensors=trainer.tensors()))
        loaded = load_checkpoint(tmp_path / "x")
        assert equal(loaded.tensors, trainer.tensors())
        experience = loaded.experience()
        assert experience is not None
        assert equal(experience.tensors(), trainer.buffer.tensors())
        assert make_checkpoint().experience() is None

    def test_experience_may_grow_as_far_as_in_the_training(self) -> None:
        buffer = ExperienceBuffer(100, "cartpole")
        buffer.add(Rollout.from_episode(np.zeros((2, 4)), [1]), [3])
        tensors = {f"experience.{n}": v for n, v in buffer.tensors().items()}
        for training, max_size in (({}, 1), ({"buffer_size": 50, "family": "cartpole"}, 50)):
            experience = make_checkpoint(tensors=tensors, training=training).experience()
            assert experience is not None
            assert (len(experience), experience.max_size) == (1, max_size)
            assert experience.family == training.get("family")


class TestAtomic:
    @pytest.mark.parametrize("broken", ["replace", "fsync"])
    def test_a_failed_save_leaves_the_old_file_and_no_debris(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        before = saved.read_bytes()

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, broken, fail)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(saved, make_checkpoint(counters={"epoch": 8}))
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]

    def test_the_old_file_stands_until_the_new_one_is_whole(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replaced = os.replace
        seen = []

        def look(source: Path, target: Path) -> None:
            epochs = [load_checkpoint(p).counters["epoch"] for p in (source, target)]
            seen.append((Path(target), epochs))
            replaced(source, target)

        monkeypatch.setattr(os, "replace", look)
        save_checkpoint(saved, make_checkpoint(counters={"epoch": 8}))
        assert seen == [(saved, [8, 7])]
        assert load_checkpoint(saved).counters == {"epoch": 8}
        assert list(saved.parent.iterdir()) == [saved]

    def test_what_a_killed_save_left_is_no_obstacle(self, saved: Path) -> None:
        saved.with_name(f"{FILE_NAME}.tmp").write_bytes(b"half a file")
        save_checkpoint(saved, make_checkpoint(counters={"epoch": 8}))
        assert load_checkpoint(saved).counters == {"epoch": 8}
        assert list(saved.parent.iterdir()) == [saved]


class TestDamage:
    @pytest.mark.parametrize(
        "content", ["empty", "text", "random", "cut in header", "cut in data", "more data"]
    )
    def test_a_damaged_or_foreign_file_is_refused(self, saved: Path, content: str) -> None:
        whole = saved.read_bytes()
        saved.write_bytes(
            {
                "empty": b"",
                "text": b"epoch,return\n1,20\n" * 20,
                "random": np.random.default_rng(0).bytes(5000),
                "cut in header": whole[:200],
                "cut in data": whole[:-7],
                "more data": whole + b"\0" * 4,
            }[content]
        )
        with pytest.raises(ValueError) as error:
            load_checkpoint(saved)
        assert str(saved) in one_line(error)
        assert "damaged or foreign" in one_line(error)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "x"):
            with pytest.raises(FileNotFoundError, match=r"expected a checkpoint, found none"):
                load_checkpoint(path)

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": FORMAT}])
    def test_other_safetensors_are_refused(
        self, saved: Path, metadata: dict[str, str] | None
    ) -> None:
        save_file({"weight": torch.zeros(3)}, saved, metadata=metadata)
        with pytest.raises(ValueError) as error:
            load_checkpoint(saved)
        assert str(saved) in one_line(error)

    @pytest.mark.parametrize(
        ("header", "named"),
        [
            ({"policy_config": {}, "optimizer": 1}, "'optimizer'"),
            ({"policy_config": {}, "tensors": {}}, "'tensors'"),
            ({"counters": {}}, "'counters'"),
            ({}, r"\[\]"),
            ([1, 2], r"\[1, 2\]"),
            ("text", "text"),
        ],
    )
    def test_unknown_or_missing_fields_are_refused(
        self, saved: Path, header: object, named: str
    ) -> None:
        rewrite(saved, lambda metadata, _: metadata.update(ssm_metarl=json.dumps(header)))
        with pytest.raises(ValueError) as error:
            load_checkpoint(saved)
        assert re.search(rf"expected policy_config .* received .*{named}", one_line(error))

    def test_a_file_of_before_the_checksum_loads(self, saved: Path) -> None:
        rewrite(saved, lambda metadata, tensors: None)
        assert equal(load_checkpoint(saved).tensors, make_checkpoint().tensors)

    def test_every_changed_byte_of_the_header_is_found_or_harmless(self, saved: Path) -> None:
        self.flip_and_check(saved, lambda header: (0, header))

    def test_every_changed_byte_of_the_data_is_found(self, saved: Path) -> None:
        harmless = self.flip_and_check(saved, lambda header: (header, saved.stat().st_size))
        assert harmless == 0

    def flip_and_check(
        self, saved: Path, region: Callable[[int], tuple[int, int]], samples: int = 250
    ) -> int:
        """Change single bytes; what still loads must hold the same as before."""
        whole, good = saved.read_bytes(), load_checkpoint(saved)
        low, high = region(8 + int.from_bytes(whole[:8], "little"))
        rng, harmless = np.random.default_rng(0), 0
        for position in rng.choice(np.arange(low, high), samples, replace=False):
            damaged = bytearray(whole)
            damaged[position] ^= int(rng.integers(1, 256))
            saved.write_bytes(damaged)
            try:
                loaded = load_checkpoint(saved)
            except ValueError as error:
                assert "expected" in str(error)
                continue
            harmless += 1
            assert equal(loaded.tensors, good.tensors)
            assert replace(loaded, tensors=good.tensors) == good
        assert harmless < samples / 5
        return harmless


class TestPolicy:
    def test_a_missing_tensor_is_named(self) -> None:
        made = make_checkpoint()
        del made.tensors["policy.core.encoder.bias"]
        with pytest.raises(
            ValueError, match=r"^policy\.core\.encoder\.bias: expected shape \(4,\).*no such tensor"
        ):
            made.policy()

    def test_a_tensor_of_another_shape_is_named(self) -> None:
        made = make_checkpoint()
        made.tensors["policy.step_size"] = torch.zeros(3)
        with pytest.raises(
            ValueError, match=r"^policy\.step_size: expected shape \(\d+,\), received \(3,\)$"
        ):
            made.policy()

    def test_a_tensor_too_many_is_named(self) -> None:
        made = make_checkpoint()
        made.tensors["policy.core.extra"] = torch.zeros(3)
        with pytest.raises(ValueError, match=r"received \['core\.extra'\] too"):
            made.policy()

    def test_another_architecture_is_refused(self) -> None:
        made = make_checkpoint(policy_config=asdict(ARCHITECTURE) | {"state_dim": 5})
        with pytest.raises(ValueError, match=r"^policy\.step_size: expected shape"):
            made.policy()
        with pytest.raises(ValueError, match=r"^policy config: expected fields among"):
            make_checkpoint(policy_config=asdict(ARCHITECTURE) | {"depth": 5}).policy()


def test_loading_touches_no_global_generator(saved: Path) -> None:
    state = torch.get_rng_state()
    load_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_checkpoint_loads_in_another_process(saved: Path) -> None:
    code = (
        "import sys, ssm_metarl; "
        "print(ssm_metarl.load_pretrained(sys.argv[1]).state_dict()['step_size'].sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved)], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) == make_policy().step_size.sum().item()


def test_a_file_with_lines_of_its_own_is_refused_in_one(tmp_path: Path) -> None:
    header = b'{"x": {"dtype": "line\\nline", "shape": [1], "data_offsets": [0, 4]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    for open_it in (load_checkpoint, ExperienceBuffer.load):
        with pytest.raises(ValueError, match="line line") as refused:
            open_it(path)
        assert "\n" not in str(refused.value)


def test_a_claimed_number_of_actions_costs_no_memory(tmp_path: Path) -> None:
    """An in-context policy's input grows with them."""
    config = PolicyConfig(
        state_dim=3, hidden_dim=4, num_layers=1, obs_scale=(1.0,), num_actions=2, in_context=True
    )
    policy = build_policy(config, seed=0, inner_lr=0.01)
    tensors = {f"policy.{name}": v for name, v in policy.state_dict().items()}
    claimed = Checkpoint(policy_config={**asdict(config), "actions_seen": 2**31}, tensors=tensors)
    with pytest.raises(ValueError, match="expected at least 8589934592 numbers"):
        claimed.policy()
