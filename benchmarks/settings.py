"""How thorough a benchmark is: whole, quick, or as small as a test wants it.

Place in the flow: what `performance` hands to every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from ssm_metarl.config import MetaTrainingConfig

T = TypeVar("T")
Size = Literal["whole", "quick", "tiny"]


def _silent(share: float, message: str) -> None:
    """Nobody looks on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a row is told."""

    size: Size = "whole"
    """whole: for published figures; quick: a look, two minutes in all; tiny: does it run at all."""
    progress: Callable[[float, str], None] = _silent
    """Called with the row's share that is done, in [0, 1], and what it is at."""
    training: MetaTrainingConfig | None = None
    """Overrides the meta-training's settings (tests)."""

    @property
    def quick(self) -> bool:
        """Whether it is anything less than whole."""
        return self.size != "whole"

    def choose(self, whole: T, quick: T, tiny: T) -> T:
        """The value that belongs to the size."""
        return {"whole": whole, "quick": quick, "tiny": tiny}[self.size]
