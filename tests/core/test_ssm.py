"""StateSpaceModel: the documented shapes and equation, and what its files accept and refuse."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from float32 import assert_identity, assert_only_rounded
from ssm_metarl.core.ssm import StateSpaceModel

SHAPES = {
    "state_transition.0.weight": (64, 32),
    "state_transition.0.bias": (64,),
    "state_transition.2.weight": (32, 64),
    "state_transition.2.bias": (32,),
    "input_projection.weight": (32, 4),
    "input_projection.bias": (32,),
    "output_network.0.weight": (64, 32),
    "output_network.0.bias": (64,),
    "output_network.2.weight": (4, 64),
    "output_network.2.bias": (4,),
    "feedthrough.weight": (4, 4),
    "feedthrough.bias": (4,),
}
CONFIG = {"state_dim": 32, "input_dim": 4, "hidden_dim": 64, "output_dim": 4, "device": "cpu"}


def make_model(seed: int = 0, **dims: int) -> StateSpaceModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return StateSpaceModel(**dims)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oracle(model: StateSpaceModel, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """One step, written from the equation: h' = A(h) + B x, y = C(h') + D x."""
    w = model.state_dict()

    def linear(name: str, v: Tensor) -> Tensor:
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    inner = linear("state_transition.0", hidden).clamp(min=0)
    new = linear("state_transition.2", inner) + linear("input_projection", x)
    inner = linear("output_network.0", new).clamp(min=0)
    return linear("output_network.2", inner) + linear("feedthrough", x), new


def no_reset(x: torch.Tensor) -> torch.Tensor:
    """Reset flags that are False for inputs of shape (T, K, N, ...)."""
    return torch.zeros(x.shape[:3], dtype=torch.bool)


def test_documented_size_names_and_shapes() -> None:
    model = StateSpaceModel(state_dim=32, input_dim=4, output_dim=4, hidden_dim=64)
    assert sum(p.numel() for p in model.parameters()) == 6_744
    assert {name: tuple(v.shape) for name, v in model.state_dict().items()} == SHAPES
    assert model.init_hidden(batch_size=3).shape == (3, 32)
    assert torch.count_nonzero(model.init_hidden(batch_size=3)) == 0


@pytest.mark.parametrize("name", ["state_dim", "input_dim", "output_dim", "hidden_dim"])
def test_dimensions_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, received 0"):
        StateSpaceModel(**{name: 0})


def test_step_sequence_and_unroll_agree_with_the_equation() -> None:
    model, steps, envs = make_model(), 6, 3
    x, hidden = draw(steps, envs, 4), draw(envs, 32, seed=2)

    def by_steps(step: Callable[..., Any], x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for t in range(steps):
            y, state = step(x[t], state)
            assert y.shape == (envs, 4)
            found.append(y)
        return torch.stack(found), state

    def expected(model: StateSpaceModel, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return by_steps(partial(oracle, model), x, hidden)

    params = dict(model.named_parameters())
    applied, applied_last = model.unroll(params, x[:, None], hidden[None], no_reset(x[:, None]))
    for received in (
        by_steps(model, x, hidden), model(x, hidden), (applied[:, 0], applied_last[0])
    ):  # fmt: skip
        assert_only_rounded(received, expected, model, x, hidden)


def test_a_reset_in_the_middle_makes_two_sequences() -> None:
    model = make_model()
    x, hidden = draw(7, 1, 2, 4), draw(1, 2, 32, seed=2)
    reset = no_reset(x)
    reset[4] = True

    def sides(model: StateSpaceModel, x: Tensor, hidden: Tensor) -> tuple[Any, Any]:
        params = dict(model.named_parameters())
        whole = model.unroll(params, x, hidden, reset)
        first, _ = model.unroll(params, x[:4], hidden, no_reset(x[:4]))
        second, end = model.unroll(params, x[4:], torch.zeros_like(hidden), no_reset(x[4:]))
        return (torch.cat([first, second]), end), whole

    assert_identity(sides, model, x, hidden)


def test_per_task_parameters_serve_each_task_its_own() -> None:
    models = [make_model(seed) for seed in (0, 1)]
    x, hidden = draw(5, 2, 3, 4), draw(2, 3, 32, seed=2)
    params = {name: torch.stack([m.state_dict()[name] for m in models]) for name in SHAPES}
    out, last = models[0].unroll(params, x, hidden, no_reset(x))
    for k, model in enumerate(models):
        assert_only_rounded(
            (out[:, k], last[k]), lambda m, *data: m(*data), model, x[:, k], hidden[k]
        )


@pytest.mark.parametrize(
    ("x", "hidden", "message"),
    [
        ((2, 5), (2, 32), r"x: expected shape \(N, 4\) or \(T, N, 4\), received \(2, 5\)"),
        ((4,), (1, 32), r"x: expected shape .* received \(4,\)"),
        ((2, 4), (1, 32), r"hidden: expected shape \(2, 32\), received \(1, 32\)"),
        ((3, 2, 4), (3, 32), r"hidden: expected shape \(2, 32\), received \(3, 32\)"),
    ],
)
def test_wrong_shapes_are_named(x: tuple[int, ...], hidden: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model()(torch.zeros(x), torch.zeros(hidden))


def test_save_and_load_give_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    saved, other = make_model(0), make_model(1)
    saved.save(path)
    content = torch.load(path, weights_only=True)
    assert content["config"] == CONFIG
    assert list(content["state_dict"]) == list(SHAPES)
    assert not torch.equal(saved.feedthrough.weight, other.feedthrough.weight)
    assert other.load(path) is other
    for loaded in (other, StateSpaceModel.from_pth(path)):
        for name, value in saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)


def test_from_pth_takes_the_dimensions_from_the_file(tmp_path: Path) -> None:
    dims = {"state_dim": 3, "input_dim": 2, "output_dim": 5, "hidden_dim": 7}
    make_model(**dims).save(tmp_path / "small.pth")
    loaded = StateSpaceModel.from_pth(str(tmp_path / "small.pth"))
    assert {name: getattr(loaded, name) for name in dims} == dims


@pytest.mark.parametrize("device", ["cpu", "cuda", torch.device("cpu")])
@pytest.mark.parametrize("new_format", [True, False])
def test_files_of_the_prototypes_format_load(
    tmp_path: Path, device: object, new_format: bool
) -> None:
    source = make_model(0)
    content = {
        "state_dict": OrderedDict(source.state_dict()),
        "config": CONFIG | {"device": device},
    }
    torch.save(content, tmp_path / "p.pth", _use_new_zipfile_serialization=new_format)
    loaded = make_model(1).load(tmp_path / "p.pth")
    assert torch.equal(loaded.feedthrough.weight, source.feedthrough.weight)


class CreatesFile:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("writer", ["torch", "torch-legacy", "pickle"])
def test_a_file_that_carries_code_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "it-ran"
    content = {
        "state_dict": make_model().state_dict(),
        "config": CONFIG | {"device": CreatesFile(trace)},
    }
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")

    for load in (make_model().load, StateSpaceModel.from_pth):
        with pytest.raises(ValueError, match=r"evil\.pth: expected .* received"):
            load(path)
    assert not trace.exists()
    with open(path, "rb") as file:  # the file would do harm: the loader is what stops it
        if writer == "pickle":
            pickle.load(file)["config"]["device"].close()
        else:
            torch.load(file, weights_only=False)["config"]["device"].close()
    assert trace.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth: expected a \.pth file, found none"):
        make_model().load(tmp_path / "none.pth")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.pth"
    make_model().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.pth: expected .* received"):
        make_model().load(path)


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.pth"
    path.write_text("These are not weights.\n" * 50)
    with pytest.raises(ValueError, match=r"notes\.pth: expected .* received"):
        make_model().load(path)


def without(name: str) -> dict[str, Tensor]:
    return {n: v for n, v in make_model().state_dict().items() if n != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected keys 'state_dict' and 'config', received list"),
        ({"model": 1}, r"expected keys 'state_dict' and 'config', received \['model'\]"),
        ({"state_dict": {}, "config": 3}, "config: expected a dictionary, received int"),
        ({"state_dict": [1], "config": CONFIG}, "state_dict: expected a dictionary, received list"),
        (
            {"state_dict": {}, "config": CONFIG | {"state_dim": 16}},
            "expected dimensions .*'state_dim': 32.* received .*'state_dim': 16",
        ),
        ({"state_dict": {}, "config": {}}, "expected dimensions .* received .*None"),
        (
            {"state_dict": without("feedthrough.bias"), "config": CONFIG},
            r"feedthrough\.bias: expected shape \(4,\), received no such tensor",
        ),
        (
            {"state_dict": without("") | {"extra": torch.zeros(1)}, "config": CONFIG},
            r"extra: expected no such tensor, received shape \(1,\)",
        ),
        (
            {"state_dict": without("") | {"feedthrough.bias": torch.zeros(5)}, "config": CONFIG},
            r"feedthrough\.bias: expected shape \(4,\), received shape \(5,\)",
        ),
        (
            {"state_dict": without("") | {"feedthrough.bias": (4,)}, "config": CONFIG},
            r"feedthrough\.bias: expected shape \(4,\), received tuple",
        ),
    ],
)
def test_other_content_is_refused_with_expected_and_received(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "other.pth")
    model = make_model()
    before = {name: v.clone() for name, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.load(tmp_path / "other.pth")
    assert all(torch.equal(model.state_dict()[name], v) for name, v in before.items())


@pytest.mark.parametrize("config", [{}, CONFIG | {"state_dim": "many"}, CONFIG | {"state_dim": 0}])
def test_from_pth_refuses_a_config_without_dimensions(
    tmp_path: Path, config: dict[str, object]
) -> None:
    torch.save({"state_dict": {}, "config": config}, tmp_path / "bad.pth")
    with pytest.raises(
        ValueError, match=r"bad\.pth: expected a config with state_dim, .* received"
    ):
        StateSpaceModel.from_pth(tmp_path / "bad.pth")


@pytest.mark.parametrize("stage", ["write", "replace"])
def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "model.pth"
    make_model(0).save(path)
    old = path.read_bytes()

    def half_write(content: object, target: str | os.PathLike[str]) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    def refuse(source: object, target: object) -> None:
        raise OSError("disk full")

    if stage == "write":
        monkeypatch.setattr(torch, "save", half_write)
    else:
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        make_model(1).save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path], "no half-written file may stay behind"
