"""Between a command's fields and its flags: which there are, which were given, typed again.

Place in the flow: used by the commands; `parsing` reads them from the command line.
"""

from __future__ import annotations

import shlex
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PROGRAM = "ssm-metarl"

Settings = TypeVar("Settings", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class ModelArgument:
    """The flag of every command that opens a model; a base, so that ``--help`` lists it first."""

    model: str
    """A shipped name, a run's folder, a checkpoint or a .pth file."""


def flag(name: str) -> str:
    """The flag of a field."""
    return f"--{name.replace('_', '-')}"


def changed(settings: DataclassInstance) -> dict[str, Any]:
    """The fields that differ from their defaults, in the order of their declaration."""
    result = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.default is MISSING or value != field.default:
            result[field.name] = value
    return result


def part_of(command: DataclassInstance, kind: type[Settings]) -> Settings:
    """The fields of ``kind`` that a command has among its flags."""
    return kind(**{field.name: getattr(command, field.name) for field in fields(kind)})


def command_line(command: str, settings: DataclassInstance) -> str:
    """The shell command with these settings, as one would type it again.

    It is built from the settings and not from what was typed: a run that was resumed, or started
    from Python, is recorded by the same line.
    """
    words = [PROGRAM, *command.split()]
    for name, value in changed(settings).items():
        if name == "json":
            continue
        if isinstance(value, bool):  # a switch, whose flag says what its default is not
            words.append(flag(name) if value else flag(f"no_{name}"))
        else:
            words += [flag(name), str(value)]
    return shlex.join(words)
