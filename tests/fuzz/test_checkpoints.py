"""Files that are damaged, foreign or made to deceive: opened, or refused in one line.

No other exception, no memory for sizes that a file only claims, no code run, nothing written.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from ssm_metarl.checkpoint import Checkpoint, load_pretrained, pack
from ssm_metarl.config import Calibration, Core, MetaTrainingConfig, PolicyConfig
from ssm_metarl.core.policy import build_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.evaluation.opened_model import open_model
from ssm_metarl.experience.experience_buffer import ExperienceBuffer

from .junk import damaged, json_value, pick, rng_of

COUNTS = [200, pytest.param(10_000, marks=pytest.mark.nightly)]
SIZES = (0, -1, 1, 2, 3, 10**4, 10**9, 2**40, 10**30)
DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool,
    torch.uint8, torch.complex64,
)  # fmt: skip
LIMITS = asdict(Calibration(objective="prediction", max_loss=(1.0,), max_kl=1.0))


def sound_checkpoint(core: Core, context: bool) -> Checkpoint:
    """A checkpoint of a small policy."""
    config = PolicyConfig(
        core=core,
        in_context=context,
        state_dim=3,
        hidden_dim=4,
        num_layers=1,
        obs_scale=(0.3, 1.0, 5.0, 1.0),
        num_actions=2,
        predicted_dims=(1, 3),
    )
    policy = build_policy(config, seed=1, inner_lr=0.1)
    return Checkpoint(
        policy_config=asdict(config),
        tensors={f"policy.{n}": v for n, v in policy.state_dict().items()},
        training=asdict(MetaTrainingConfig(core=config.core, state_dim=3, hidden_dim=4)),
        calibration=LIMITS,
        card={"command": "train it"},
        counters={"epoch": 1},
    )


@pytest.fixture(scope="module")
def sound() -> list[Checkpoint]:
    """One of each kind."""
    return [
        sound_checkpoint("diagonal", False),
        sound_checkpoint("state_space", False),
        sound_checkpoint("diagonal", True),
    ]


def written(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    return save({n: v.contiguous() for n, v in tensors.items()}, metadata=metadata)


def signed(header: Any, tensors: dict[str, Tensor]) -> bytes:
    """A file whose checksum is right, whatever it says."""
    text = header if isinstance(header, str) else json.dumps(header)
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return written(
        tensors,
        {"format": "ssm-metarl-checkpoint-1", "ssm_metarl": text, "digest": digest.hexdigest()},
    )


def header_of(checkpoint: Checkpoint) -> dict[str, Any]:
    names = set(Checkpoint.__dataclass_fields__) - {"tensors"}
    return {name: getattr(checkpoint, name) for name in sorted(names)}


def broken_bytes(rng: np.random.Generator, sound: Checkpoint) -> bytes:
    return damaged(rng, pack(sound))


def broken_header(rng: np.random.Generator, sound: Checkpoint) -> bytes:
    header = json.loads(json.dumps(header_of(sound)))
    name = pick(rng, [*header, "policy_config", "policy_config", "training", "another"])
    inside = header.get(name)
    if isinstance(inside, dict) and inside and rng.random() < 0.8:
        inside[pick(rng, list(inside))] = json_value(rng)
    else:
        header[name] = json_value(rng)
    if rng.random() < 0.1:
        header = json_value(rng)
    return signed(header, sound.tensors)


def claimed_sizes(rng: np.random.Generator, sound: Checkpoint) -> bytes:
    header = json.loads(json.dumps(header_of(sound)))
    config = header["policy_config"]
    for _ in range(int(rng.integers(1, 3))):
        name = pick(rng, ["state_dim", "hidden_dim", "num_layers", "output_dim", "num_actions",
                          "action_dim", "obs_scale", "predicted_dims", "told_dims",
                          "actions_seen"])  # fmt: skip
        size = pick(rng, SIZES)
        config[name] = [1.0] * (size % 50) if name == "obs_scale" else size
        if name == "predicted_dims":
            config[name] = [size]
        if name == "action_dim":
            config["num_actions"] = None
    return signed(header, sound.tensors)


def other_tensors(rng: np.random.Generator, sound: Checkpoint) -> bytes:
    tensors = dict(sound.tensors)
    name = pick(rng, sorted(tensors))
    kind = int(rng.integers(6))
    if kind == 0:
        tensors[name] = tensors[name].to(pick(rng, DTYPES))
    elif kind == 1:
        tensors[name] = torch.zeros(pick(rng, [(), (0,), (1,), (7,), (2, 3), (1, 1, 1, 1, 1)]))
    elif kind == 2:
        tensors[name] = torch.full_like(tensors[name], pick(rng, [float("nan"), float("inf")]))
    elif kind == 3:
        del tensors[name]
    elif kind == 4:
        tensors[pick(rng, ["policy.another", "optimizer.x", "", "policy.", "\n"])] = torch.ones(2)
    else:
        buffer = ExperienceBuffer(5).tensors() or {
            n: torch.ones(3) for n in ("obs", "action", "reward", "length", "task_id")
        }
        tensors |= {f"experience.{n}": v for n, v in buffer.items()}
    return signed(header_of(sound), tensors)


def other_text(rng: np.random.Generator, sound: Checkpoint) -> bytes:
    text = pick(rng, ["[" * 100_000, '{"a":' * 50_000, "9" * 5000, "", "null", "[]", '"x"', "{",
                      "{}", "\0", json.dumps(header_of(sound))[:-3]])  # fmt: skip
    if rng.random() < 0.5:
        return signed(text, sound.tensors)
    metadata = pick(rng, [{}, {"format": "pt"}, {"format": "ssm-metarl-checkpoint-1"}])
    return written(sound.tensors, metadata)


def raw_header(rng: np.random.Generator, sound: Checkpoint) -> bytes:
    """The container's own header: offsets, types, shapes, and how long it says that it is."""
    content = pack(sound)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = pick(rng, sorted(header))
    if rng.random() < 0.2 or name == "__metadata__":
        header[name] = json_value(rng)
    else:
        header[name][pick(rng, ["dtype", "shape", "data_offsets"])] = pick(
            rng, [[2**62, 2**62], [2**63], [0, 10**15], [-1, 1], [1, 0], "F64", "I8", "BOOL", None]
        )
    text = json.dumps(header).encode()
    said = pick(rng, [len(text), len(text), len(text), 2**63, 2**64 - 1, 0, len(content) * 2])
    return int(said).to_bytes(8, "little") + text + content[8 + size :]


BREAKERS: dict[str, Callable[[np.random.Generator, Checkpoint], bytes]] = {
    function.__name__: function
    for function in (
        broken_bytes, broken_header, claimed_sizes, other_tensors, other_text, raw_header,
    )
}  # fmt: skip


def opened_or_refused(path: Path, open_it: Callable[[Path], object]) -> bool:
    """Whether a file opens; it is refused in one line, and stays what it is."""
    before = path.read_bytes()
    try:
        open_it(path)
        return True
    except (ValueError, FileNotFoundError) as error:
        assert str(error) and "\n" not in str(error), error
        return False
    finally:
        assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


OPENERS = (load_pretrained, lambda path: open_model(str(path)))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("breaker", BREAKERS)
def test_a_checkpoint_is_opened_or_refused(
    sound: list[Checkpoint], breaker: str, count: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    refused = 0
    for index in range(count):
        path.write_bytes(BREAKERS[breaker](rng_of(4, index), sound[index % len(sound)]))
        refused += not all([opened_or_refused(path, open_it) for open_it in OPENERS])
    assert refused > 0


class Runs:
    """What a pickle would do if it were let."""

    def __reduce__(self) -> Any:
        return (Path.write_text, (Path("ran"), "code"))


def other_pth(rng: np.random.Generator, path: Path, sound: bytes) -> None:
    kind = int(rng.integers(5))
    if kind == 0:
        path.write_bytes(damaged(rng, sound))
        return
    model = StateSpaceModel(state_dim=3, input_dim=4, output_dim=4, hidden_dim=5)
    state: Any = dict(model.state_dict())
    config: Any = {"state_dim": 3, "input_dim": 4, "output_dim": 4, "hidden_dim": 5}
    if kind == 1:
        config[pick(rng, list(config))] = pick(rng, [*SIZES, None, "3", 3.5, float("nan"), [3]])
    elif kind == 2:
        name = pick(rng, sorted(state))
        state[name] = pick(rng, [
            None, 3, state[name].to(pick(rng, DTYPES)), torch.zeros(2), state[name].to_sparse(),
            torch.full_like(state[name], float("nan")), torch.empty(0),
            state[name].to("meta"), torch.nn.Parameter(state[name]),
        ])  # fmt: skip
    elif kind == 3:
        state, config = pick(rng, [(None, config), (state, None), (json_value(rng), config),
                                   (state, json_value(rng)), ({}, {})])  # fmt: skip
    content: Any = {"state_dict": state, "config": config}
    if kind == 4:
        content = pick(rng, [json_value(rng), Runs(), {"state_dict": Runs(), "config": config},
                             state, [content], model])  # fmt: skip
        if rng.random() < 0.3:
            path.write_bytes(pickle.dumps(pick(rng, [Runs(), config, 3])))
            return
    torch.save(content, path)


@pytest.mark.parametrize("count", COUNTS)
def test_a_pth_file_is_opened_or_refused(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path = tmp_path / "files" / "model.pth"
    StateSpaceModel(state_dim=3, input_dim=4, output_dim=4, hidden_dim=5).save(path)
    sound, refused = path.read_bytes(), 0
    for index in range(count):
        other_pth(rng_of(5, index), path, sound)
        refused += not all([opened_or_refused(path, open_it) for open_it in OPENERS])
    assert refused > 0
    assert list((tmp_path / "cwd").iterdir()) == [], "no code ran"
