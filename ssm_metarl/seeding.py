"""Counter-based randomness: one (seed, purpose, index) names one stream, for ever.

Place in the flow: under everything that draws a number. No stream depends on what was drawn
before it, so a training resumes bit-identically, the order of tasks changes nothing, and two
purposes ("train-task", "ood-task") never share a draw. The global generators are never touched.

The generator is Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"):
its key is a hash of seed and purpose, its counter starts at ``index * 2**192``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The stream that belongs to ``(seed, purpose, index)``.

    Args:
        seed: Any integer.
        purpose: What the numbers are for; different purposes give independent streams.
        index: Counter within the purpose (a task, an iteration), in [0, 2**64).
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class TaskNoise:
    """Random numbers for K tasks, each from its own stream, drawn as (..., K, N) tensors.

    Because each task owns its stream, a task meets the same numbers whichever tasks stand
    beside it. That is what makes arms of an evaluation paired.
    """

    def __init__(self, seed: int, purpose: str, indices: Sequence[int]) -> None:
        self._generators = [generator(seed, purpose, int(index)) for index in indices]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1): a block of ``shape`` per task.

        Returns:
            Shape (shape[0], K, *shape[1:]), float32: the task axis stands second.
        """
        blocks = [g.random(shape, dtype=np.float32) for g in self._generators]
        return torch.from_numpy(np.stack(blocks, axis=1))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers; shapes as in :meth:`uniform`."""
        blocks = [g.standard_normal(shape, dtype=np.float32) for g in self._generators]
        return torch.from_numpy(np.stack(blocks, axis=1))
