"""The flag that several commands share.

Place in the flow: used by the commands; `command_line` turns fields into flags and back.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelArgument:
    """The flag of every command that opens a model; a base, so that ``--help`` lists it first."""

    model: str
    """A shipped name, a run's folder, a checkpoint or a .pth file."""
