"""Experience replay of whole sequences, so that a recurrent policy can relive them.

Place in the flow: beside `objectives`; `adaptation.hybrid_adapter` replays from it.

A sequence is a piece of one episode, from its first step. No hidden state is stored: it is
recomputed under the parameters that replay it, never reused stale. Each step keeps the
behaviour's log-probability, and each sequence the task that it came from.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ssm_metarl.types import Rollout

FORMAT = "ssm-metarl-experience-1"
STORED = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "log_prob")


class ExperienceBuffer:
    """The latest sequences, at most ``max_size`` transitions; the oldest leave first, whole.

    Args:
        max_size: Capacity in transitions.
        family: Name of the task family that the experience is of; None where it is not known.
    """

    def __init__(self, max_size: int = 10_000, family: str | None = None) -> None:
        if max_size < 1:
            raise ValueError(f"max_size: expected at least 1, received {max_size}")
        self.max_size, self.family = max_size, family
        self._held: deque[tuple[int, dict[str, Tensor]]] = deque()  # task and steps, oldest first
        self._size = 0

    def __len__(self) -> int:
        """Transitions held."""
        return self._size

    @property
    def num_sequences(self) -> int:
        """Sequences held."""
        return len(self._held)

    @property
    def task_ids(self) -> tuple[int, ...]:
        """The task each sequence came from, oldest first."""
        return tuple(task_id for task_id, _ in self._held)

    @property
    def next_task_id(self) -> int:
        """An identity that no task held has."""
        return max(self.task_ids, default=-1) + 1

    def add(self, rollout: Rollout, task_ids: Sequence[int]) -> None:
        """Store the episodes of K tasks with these identities; the oldest sequences make room.

        Raises:
            ValueError: ``task_ids`` of another length, or steps of another kind than those held.
        """
        if len(task_ids) != rollout.num_tasks:
            raise ValueError(
                f"task_ids: expected {rollout.num_tasks}, one a task, received {len(task_ids)}"
            )
        stored = {name: getattr(rollout, name).detach().cpu() for name in STORED}
        for name, held in self._held[0][1].items() if self._held else ():
            expected, received = _kind(held[0]), _kind(stored[name][0, 0, 0])
            if expected != received:
                raise ValueError(
                    f"{name}: expected {expected} a step, as in the buffer, received {received}"
                )
        starts = (rollout.reset & rollout.mask).cpu().numpy()
        lengths = rollout.mask.sum(dim=0).cpu().numpy()
        for k, task_id in enumerate(task_ids):
            for n in range(rollout.num_envs):
                first = np.flatnonzero(starts[:, k, n])
                for start, end in pairwise([*first, lengths[k, n]]):
                    piece = {name: v[start:end, k, n].clone() for name, v in stored.items()}
                    self._append(piece, int(task_id))

    def _append(self, sequence: dict[str, Tensor], task_id: int) -> None:
        length = sequence["reward"].shape[0]
        if length > self.max_size:
            return  # it could only stay by breaking the bound
        self._held.append((task_id, sequence))
        self._size += length
        while self._size > self.max_size:
            self._size -= self._held.popleft()[1]["reward"].shape[0]

    def sample(self, num_sequences: int, rng: np.random.Generator) -> Rollout:
        """Draw M sequences uniformly, with replacement only if there are too few.

        Returns:
            A rollout of shape (T, 1, M): padded and masked to the longest sequence drawn.

        Raises:
            ValueError: The buffer is empty, or no sequence is asked for.
        """
        if num_sequences < 1:
            raise ValueError(f"num_sequences: expected at least 1, received {num_sequences}")
        if not self._held:
            raise ValueError("experience buffer: expected at least one sequence, received none")
        count = len(self._held)
        chosen = rng.choice(count, num_sequences, replace=num_sequences > count)
        return _padded([self._held[int(i)][1] for i in chosen])

    def tensors(self) -> dict[str, Tensor]:
        """The content as flat tensors, for checkpoints; empty if the buffer is."""
        if not self._held:
            return {}
        sequences = [sequence for _, sequence in self._held]
        joined = {name: torch.cat([s[name] for s in sequences]) for name in STORED}
        joined["length"] = torch.tensor([s["reward"].shape[0] for s in sequences])
        joined["task_id"] = torch.tensor(self.task_ids)
        return joined

    def restore(self, tensors: dict[str, Tensor]) -> ExperienceBuffer:
        """Replace the content by what :meth:`tensors` gave; returns the buffer.

        Raises:
            ValueError: Tensors are missing, or their lengths do not fit; nothing was replaced.
        """
        if tensors:
            missing = sorted({*STORED, "length", "task_id"} - set(tensors))
            if missing:
                raise ValueError(f"experience: expected tensors {missing}, received none")
            lengths = tensors["length"].tolist()
            expected = {name: sum(lengths) for name in STORED} | {"task_id": len(lengths)}
            for name, count in expected.items():
                if len(tensors[name]) != count:
                    raise ValueError(
                        f"experience.{name}: expected {count} rows, received {len(tensors[name])}"
                    )
        self._held.clear()
        self._size = 0
        if tensors:
            pieces = {name: tensors[name].split(lengths) for name in STORED}
            for i, task_id in enumerate(tensors["task_id"].tolist()):
                self._append({name: p[i].clone() for name, p in pieces.items()}, task_id)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the buffer as safetensors, atomically."""
        temporary = Path(f"{path}.tmp")
        metadata = {"format": FORMAT, "max_size": str(self.max_size)}
        if self.family is not None:
            metadata["family"] = self.family
        try:
            temporary.write_bytes(save(self.tensors(), metadata=metadata))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExperienceBuffer:
        """Read a saved buffer.

        Raises:
            ValueError: Not a saved buffer.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())  # it quotes the file, lines and all
            raise ValueError(f"{path}: expected a saved experience buffer ({reason})") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path}: expected format {FORMAT!r}, received {metadata.get('format')!r}"
            )
        max_size = metadata.get("max_size", "")
        if not max_size.isdecimal():
            raise ValueError(f"{path}: max_size: expected a number, received {max_size!r}")
        try:
            return cls(int(max_size), metadata.get("family")).restore(tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def is_saved_buffer(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is what :meth:`ExperienceBuffer.save` writes."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _kind(step: Tensor) -> str:
    """What a tensor holds for one step, in words."""
    return f"{tuple(step.shape)} of {str(step.dtype).removeprefix('torch.')}"


def _padded(sequences: list[dict[str, Tensor]]) -> Rollout:
    """Sequences as one rollout (T, 1, M), T the longest."""
    lengths = torch.tensor([s["reward"].shape[0] for s in sequences])
    columns = {
        name: torch.nn.utils.rnn.pad_sequence([s[name] for s in sequences])[:, None]
        for name in STORED
    }
    steps = torch.arange(int(lengths.max()))[:, None, None]
    mask = steps < lengths
    return Rollout(**columns, mask=mask, reset=(steps == 0).expand_as(mask))
