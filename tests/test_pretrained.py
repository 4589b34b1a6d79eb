"""Models by name and by file: what is shipped, and the documented ``.pth`` of a prototype."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssm_metarl import checkpoint as checkpoint_module
from ssm_metarl.checkpoint import (
    FILE_NAME,
    Checkpoint,
    find_model,
    load_model,
    load_pretrained,
    save_checkpoint,
    shipped_models,
)
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.policy import build_policy
from ssm_metarl.core.ssm import StateSpaceModel

ARCHITECTURE = PolicyConfig(
    state_dim=3, hidden_dim=4, num_layers=1, obs_scale=(0.3, 1.0, 5.0, 1.0), num_actions=2
)


def make_checkpoint() -> Checkpoint:
    return Checkpoint.of(build_policy(ARCHITECTURE, seed=1, inner_lr=0.07))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / FILE_NAME
    save_checkpoint(path, make_checkpoint())
    return path


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message and "expected" in message
    return message


class RunsCode:
    """Pickles as a call: loading it with plain pickle would make the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (open, (str(self.path), "w"))


@pytest.fixture
def prototype(tmp_path: Path) -> Path:
    """A ``.pth`` as the prototype wrote it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StateSpaceModel(state_dim=32, input_dim=4, output_dim=4, hidden_dim=64)
    config = {"state_dim": 32, "input_dim": 4, "hidden_dim": 64, "output_dim": 4, "device": "cpu"}
    path = tmp_path / "old.pth"
    torch.save({"state_dict": model.state_dict(), "config": config}, path)
    return path


class TestPth:
    def test_it_loads_as_a_policy(self, prototype: Path) -> None:
        policy, model = load_pretrained(prototype), StateSpaceModel.from_pth(prototype)
        assert equal(dict(policy.core.state_dict()), dict(model.state_dict()))  # type: ignore[attr-defined]
        assert policy.num_parameters() == 6_744
        assert policy.heads.predicted_dims == (1, 3)
        assert load_model(prototype).training == {}

    def test_the_file_beside_it_gives_step_sizes_and_card_not_weights(
        self, prototype: Path
    ) -> None:
        alone = load_model(prototype)
        other = {
            n: torch.full_like(v, 0.4) if n == "policy.step_size" else v + 1
            for n, v in alone.tensors.items()
        }
        beside = replace(alone, tensors=other, card={"command": "x"}, training={"seed": 1})
        save_checkpoint(prototype.with_suffix(".safetensors"), beside)
        both = load_model(prototype)
        assert (both.card, both.training) == ({"command": "x"}, {"seed": 1})
        policy = both.policy()
        assert torch.equal(policy.step_size, torch.full((6_744,), 0.4))
        assert equal(
            dict(policy.core.state_dict()),  # type: ignore[attr-defined]
            dict(StateSpaceModel.from_pth(prototype).state_dict()),
        )

    def test_a_file_beside_it_that_does_not_fit_is_refused(self, prototype: Path) -> None:
        save_checkpoint(prototype.with_suffix(".safetensors"), make_checkpoint())
        with pytest.raises(ValueError, match=r"policy: expected tensors .*state_transition"):
            load_pretrained(prototype)
        prototype.with_suffix(".safetensors").write_bytes(b"")
        with pytest.raises(ValueError, match=r"old\.safetensors: .*damaged or foreign"):
            load_pretrained(prototype)

    def test_one_that_carries_code_is_refused_and_nothing_runs(self, tmp_path: Path) -> None:
        path, proof = tmp_path / "evil.pth", tmp_path / "proof"
        content = {"state_dict": {}, "config": {}, "more": RunsCode(proof)}
        for write in (torch.save, lambda c, p: Path(p).write_bytes(pickle.dumps(c, protocol=2))):
            write(content, path)
            with pytest.raises(ValueError) as error:
                load_pretrained(path)
            assert "it was not loaded" in one_line(error)
            assert not proof.exists()
        pickle.loads(path.read_bytes())["more"].close()
        assert proof.exists()  # so it would have run

    @pytest.mark.parametrize("content", [b"", b"no model\n", b"\x80\x02]."])
    def test_a_damaged_one_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "bad.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            load_pretrained(path)
        assert "bad.pth" in one_line(error)


class TestNames:
    @pytest.fixture
    def shipped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prototype: Path) -> Path:
        """A package with two models: one of each kind."""
        folder = tmp_path / "package" / "models"
        save_checkpoint(folder / "small.safetensors", make_checkpoint())
        (folder / "old.pth").write_bytes(prototype.read_bytes())
        save_checkpoint(folder / "old.safetensors", load_model(prototype))
        monkeypatch.setattr(checkpoint_module.resources, "files", lambda _: folder.parent)
        return folder

    def test_shipped_models_go_by_their_names(self, shipped: Path) -> None:
        expected = {"old": shipped / "old.pth", "small": shipped / "small.safetensors"}
        assert list(shipped_models().items()) == list(expected.items())
        assert find_model("old") == shipped / "old.pth"
        assert load_pretrained("small").config == ARCHITECTURE
        assert load_pretrained("old").num_parameters() == 6_744

    def test_a_path_a_folder_and_a_string_do_as_well(self, shipped: Path, saved: Path) -> None:
        for given in (saved, str(saved), saved.parent, f"{saved.parent}/"):
            assert find_model(given) == saved

    def test_an_unknown_name_lists_the_known_ones(self, shipped: Path, tmp_path: Path) -> None:
        for given in ("large", tmp_path / "nowhere", tmp_path / "package"):
            with pytest.raises(FileNotFoundError) as error:
                load_pretrained(given)
            assert re.search(r"shipped name \(old, small\) or the path", one_line(error))
            assert repr(str(given)) in one_line(error)

    def test_what_is_shipped_loads(self) -> None:
        for name in shipped_models():
            load_pretrained(name)
