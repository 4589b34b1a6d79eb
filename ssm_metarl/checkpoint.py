"""Checkpoints: one safetensors file with weights, optimiser and everything else as JSON in it.

Place in the flow: stage 6. `meta_rl.trainer` gives the tensors and counters; the command line,
the evaluator and `load_pretrained` read them.

One file is one ``os.replace``, so a kill at any instant leaves the old checkpoint or the new one,
never a mixture. Loading runs no code: safetensors and JSON, and ``.pth`` files through
``weights_only=True`` (see `core.ssm`). The header's JSON has a format name, the version that
wrote it, the policy's architecture, the training's configuration and its counters.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import Calibration, PolicyConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.experience.experience_buffer import ExperienceBuffer
from ssm_metarl.reproducibility import is_reproducible
from ssm_metarl.settings import rebuild, require
from ssm_metarl.version import __version__

FORMAT = "ssm-metarl-checkpoint-1"
FILE_NAME = "checkpoint.safetensors"
FINGERPRINT = "family_fingerprint"
"""Entry of `Checkpoint.training` beside the training's configuration: what its family declares."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A policy's weights, and what is known of how they came about."""

    policy_config: dict[str, Any]
    """Fields of `PolicyConfig`."""
    tensors: dict[str, Tensor]
    """``policy.*``; a training's checkpoint also has ``optimizer.*`` and ``experience.*``."""
    training: dict[str, Any] = field(default_factory=dict)
    """The training's configuration, and the `FINGERPRINT` of its family where one was recorded;
    empty where it is not known."""
    counters: dict[str, Any] = field(default_factory=dict)
    """Epochs and environment steps."""
    card: dict[str, Any] = field(default_factory=dict)
    """Figures recorded with the model: the command that made it, its verification."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Fields of `Calibration`; empty where none was made."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions that wrote it."""

    @classmethod
    def of(
        cls, policy: Policy, experience: ExperienceBuffer | None = None, **known: Any
    ) -> Checkpoint:
        """A policy with its limits, and what it may replay.

        Args:
            policy: It.
            experience: Saved beside it; None for none.
            known: Other fields.
        """
        assert policy.config is not None
        held = {} if experience is None else experience.tensors()
        return cls(
            policy_config=asdict(policy.config),
            tensors={f"policy.{n}": v for n, v in policy.state_dict().items()}
            | {f"experience.{n}": v for n, v in held.items()},
            calibration={} if policy.calibration is None else asdict(policy.calibration),
            **known,
        )

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part, such as ``policy``, by their names in it."""
        prefix = f"{name}."
        return {n.removeprefix(prefix): v for n, v in self.tensors.items() if n.startswith(prefix)}

    @property
    def adapted(self) -> bool:
        """Whether the weights are a task's, as ``ssm-metarl adapt`` saves them."""
        report = self.card.get("report")
        kept = report.get("num_steps") if isinstance(report, dict) else None
        return "adapted_to" in self.card and kept != 0  # without a step they are still the model's

    @property
    def adapted_from(self) -> str:
        """The model that it was adapted from, as that was called; empty where not known."""
        try:
            words = shlex.split(self.card.get("command") or "")
            return words[words.index("--model") + 1] if self.adapted else ""
        except (ValueError, IndexError, AttributeError):  # no command, or not of this package
            return ""

    @usual_modes()
    def policy(self) -> Policy:
        """The policy with its weights."""
        config = PolicyConfig.from_dict(self.policy_config)
        received = self.part("policy")
        _check_size(config, sum(value.numel() for value in received.values()))
        policy = build_policy(config, seed=0, inner_lr=0.0)
        expected = {n: tuple(v.shape) for n, v in policy.state_dict().items()}
        for name, shape in expected.items():
            value = received.get(name)
            if value is None or value.shape != shape:
                what = "no such tensor" if value is None else tuple(value.shape)
                raise ValueError(f"policy.{name}: expected shape {shape}, received {what}")
            if not value.is_floating_point():
                raise ValueError(f"policy.{name}: expected real numbers, received {value.dtype}")
        if unknown := sorted(set(received) - set(expected)):
            raise ValueError(f"policy: expected tensors {sorted(expected)}, received {unknown} too")
        policy.load_state_dict(received)
        policy.trained_on = self.trained_on
        if self.calibration:
            policy.calibration = rebuild(Calibration, self.calibration, "calibration")
        policy.adapted = self.adapted
        return policy

    @property
    def settings(self) -> dict[str, Any]:
        """The training's configuration alone."""
        return {name: value for name, value in self.training.items() if name != FINGERPRINT}

    @property
    def trained_on(self) -> tuple[str, str] | None:
        """Name and fingerprint of the training's family; None where they were not recorded."""
        recorded = self.training.get("family"), self.training.get(FINGERPRINT)
        return None if None in recorded else (str(recorded[0]), str(recorded[1]))

    @usual_modes()
    def experience(self) -> ExperienceBuffer | None:
        """The experience that was saved with the model, or None.

        It may grow as far as in the training.
        """
        tensors = self.part("experience")
        if not tensors:
            return None
        max_size = max(1, len(tensors["reward"]), self.training.get("buffer_size", 1))
        return ExperienceBuffer(max_size, self.training.get("family")).restore(tensors)


def _check_size(config: PolicyConfig, held: int) -> None:
    """Raise ValueError where a policy would be larger than the numbers that are held for it.

    It is built before shapes are compared, and a file may claim any: memory is taken for what is
    there alone.
    """
    matrices = [config.state_dim * config.hidden_dim]
    if config.core == "diagonal":
        matrices[0] *= config.num_layers
        matrices.append(config.hidden_dim * (config.num_actions or config.action_dim))
        if config.in_context:
            matrices.append(config.hidden_dim * config.actions_seen)
    else:
        matrices.append(config.hidden_dim * config.output_dim)
    if held < max(matrices):
        raise ValueError(
            f"policy: expected at least {max(matrices)} numbers for the sizes in policy_config, "
            f"received {held}"
        )


def save_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, *, new: bool = False
) -> None:
    """Write a checkpoint atomically; ``path`` is a file, its folder is made.

    Args:
        path: Where to.
        checkpoint: What.
        new: Overwrite nothing, not even what another process has written there meanwhile.

    Raises:
        FileExistsError: There is one, and it should be new.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp" if new else f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:  # safetensors' own save_file ignores the umask
            file.write(pack(checkpoint))
            file.flush()
            os.fsync(file.fileno())
        if new and _link(temporary, path):
            return
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name; False where the file system knows no such thing.

    Raises:
        FileExistsError: The name is taken.
    """
    try:
        os.link(source, target)
        return True
    except FileExistsError:
        taken = True
    except OSError:
        taken = target.exists()
    if taken:
        raise FileExistsError(errno.EEXIST, "expected no file there yet, received one", str(target))
    return False


def pack(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the bytes of its file: equal checkpoints give equal bytes."""
    header = {k: v for k, v in vars(checkpoint).items() if k != "tensors"}
    header["versions"] = checkpoint.versions or _versions()
    text = json.dumps(header, sort_keys=True)
    contiguous = {n: v.detach().cpu().contiguous() for n, v in checkpoint.tensors.items()}
    metadata = {"format": FORMAT, "ssm_metarl": text, "digest": _digest(text, contiguous)}
    content = save(contiguous, metadata=metadata)
    # safetensors writes the metadata in an order that changes from process to process
    size = int.from_bytes(content[:8], "little")
    ordered = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True).encode()
    ordered += b" " * (-len(ordered) % 8)  # the tensors behind it stay aligned
    return len(ordered).to_bytes(8, "little") + ordered + content[8 + size :]


def _versions() -> dict[str, str]:
    """Versions of what determines a training's numbers; also, whether no processor does."""
    torch_version = torch.__version__.split("+")[0]
    versions = {"ssm_metarl": __version__, "torch": torch_version, "numpy": np.__version__}
    return versions | ({"reproducible": "true"} if is_reproducible() else {})


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Checksum of all that a file says: safetensors itself finds only a wrong length."""
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint file, or the one in a run's folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: Corrupt, truncated, or another kind of file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found none")
    return unpack(path.read_bytes(), str(path))


def unpack(content: bytes, name: str) -> Checkpoint:
    """Read what :func:`pack` made.

    Args:
        content: The bytes of a checkpoint file.
        name: What to call it in errors.

    Raises:
        ValueError: Corrupt, truncated, or another kind of file.
    """
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
        header = json.loads(metadata["ssm_metarl"]) if metadata.get("format") == FORMAT else None
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())  # it quotes the file, lines and all
        raise ValueError(
            f"{name}: expected a checkpoint, received a damaged or foreign file ({reason})"
        ) from None
    if header is None:
        raise ValueError(f"{name}: expected format {FORMAT!r}, received {metadata.get('format')!r}")
    digest = _digest(metadata["ssm_metarl"], tensors)
    if metadata.get("digest", digest) != digest:
        raise ValueError(f"{name}: expected a checkpoint, received a damaged one (wrong checksum)")
    known = set(Checkpoint.__dataclass_fields__) - {"tensors"}
    if not isinstance(header, dict) or not {"policy_config"} <= set(header) <= known:
        received = sorted(header) if isinstance(header, dict) else header
        require(False, name, f"policy_config and other fields among {sorted(known)}", received)
    for part, value in header.items():
        require(isinstance(value, dict), f"{name}: {part}", "a JSON object", value)
    return Checkpoint(tensors=tensors, **header)


def shipped_models() -> dict[str, Path]:
    """Models that come with the package, by name."""
    folder = Path(str(resources.files("ssm_metarl"))) / "models"
    # a .pth and the .safetensors beside it are one model; the .pth, its documented file, is last
    paths = {
        path.stem: path for kind in ("safetensors", "pth") for path in folder.glob(f"*.{kind}")
    }
    return dict(sorted(paths.items()))


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped name, a run's folder or a path.

    Raises:
        FileNotFoundError: Neither a shipped name nor a path.
    """
    path = Path(name_or_path)
    if path.is_dir() and (path / FILE_NAME).is_file():
        return path / FILE_NAME
    if path.is_file():
        return path
    shipped = shipped_models()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    names = ", ".join(sorted(shipped)) or "none yet"
    raise FileNotFoundError(
        f"model: expected a shipped name ({names}) or the path of a checkpoint, "
        f"received {str(name_or_path)!r}"
    )


@usual_modes()
def load_model(name_or_path: str | os.PathLike[str]) -> Checkpoint:
    """Load a shipped model, a run, a checkpoint or a ``.pth`` file, as a checkpoint.

    A ``.pth`` holds the documented weights alone; step sizes and card are taken from the
    ``.safetensors`` beside it where there is one.
    """
    path = find_model(name_or_path)
    if path.suffix != ".pth":
        return load_checkpoint(path)
    model = StateSpaceModel.from_pth(path)
    beside = path.with_suffix(".safetensors")
    if beside.is_file():
        checkpoint = load_checkpoint(beside)
        core = {f"policy.core.{n}": v for n, v in model.state_dict().items()}
        return replace(checkpoint, tensors=checkpoint.tensors | core)
    return Checkpoint.of(as_policy(model))


@usual_modes()
def load_pretrained(name_or_path: str | os.PathLike[str]) -> Policy:
    """A ready policy: a shipped name, a run's folder, a checkpoint, or a ``.pth`` file."""
    return load_model(name_or_path).policy()
