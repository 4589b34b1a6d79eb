"""Between a command's fields and its flags: which there are, which were given, typed again.

Place in the flow: under everything that runs a command or tells how to: `cli` reads the flags,
checkpoints record the command that made them, `app` starts the commands as processes of their own.
"""

from __future__ import annotations

import shlex
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PROGRAM = "ssm-metarl"

Settings = TypeVar("Settings", bound="DataclassInstance")


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


def flags_of(settings: DataclassInstance) -> list[str]:
    """The flags of the fields that differ from their defaults, as a process is given them."""
    words = []
    for name, value in changed(settings).items():
        if name == "json":
            continue
        if isinstance(value, bool):  # a switch, whose flag says what its default is not
            words.append(flag(name) if value else flag(f"no_{name}"))
        elif isinstance(value, tuple):
            words += [flag(name), *map(str, value)]
        else:
            words += [flag(name), str(value)]
    return words


def command_line(command: str, settings: DataclassInstance) -> str:
    """The shell command with these settings, as one would type it again.

    It is built from the settings and not from what was typed: a run that was resumed, or started
    from Python, is recorded by the same line.
    """
    return shlex.join([PROGRAM, *command.split(), *flags_of(settings)])
