"""Parse the command line, run the command, end a mistake with one clear line.

Place in the flow: the entry point; the commands stand beside it, in the order of their use:
`train`, `adapt`, `evaluate`, `models`.

Exit codes: 0 done, 2 bad input, 3 training diverged, 130 interrupted (after saving).
Nothing here imports torch: commands import what they need when they run.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tyro

from ssm_metarl.cli.adapt import Adapt
from ssm_metarl.cli.evaluate import Evaluate, Verify
from ssm_metarl.cli.models import Models
from ssm_metarl.cli.train import Train, TrainPolicyGradient
from ssm_metarl.version import __version__

PROGRAM = "ssm-metarl"
MODES = {"meta_rl": Train, "policy_gradient": TrainPolicyGradient}


class Command(Protocol):
    """A parsed command."""

    def run(self) -> int:
        """Do the work; returns the exit code."""


COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "adapt": Adapt,
    "evaluate": Evaluate,
    "verify": Verify,
    "models": Models,
}


class UsageError(ValueError):
    """The command line does not fit; the message is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"{PROGRAM} {__version__}")
        return 0
    try:
        command = parse(arguments)
        return command.run()
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130


def parse(arguments: list[str]) -> Command:
    """The command that the arguments name.

    Raises:
        UsageError: They name none, or a flag does not fit.
        SystemExit: After printing ``--help``.
    """
    commands: dict[str, Callable[..., Any]] = dict(COMMANDS)
    if arguments[:1] == ["train"]:
        mode, arguments = _take_mode(arguments)
        commands["train"] = MODES[mode]
    if not arguments:
        arguments = ["--help"]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command: Command = tyro.extras.subcommand_cli_from_dict(
                commands, prog=PROGRAM, args=arguments
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(complaint.getvalue())) from None
    return command


def _take_mode(arguments: list[str]) -> tuple[str, list[str]]:
    """Split ``--mode NAME`` off: which flags there are depends on it."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--mode":
            rest = arguments[index + 1 :]
            if not equals:
                value, rest = (rest[0] if rest else ""), rest[1:]
            if value not in MODES:
                raise UsageError(f"--mode: expected one of {sorted(MODES)}, received {value!r}")
            return value, arguments[:index] + rest
    return "meta_rl", arguments


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws around an error, up to its first rule."""
    message = []
    for line in box.splitlines()[1:]:
        text = line.strip("│┃| ").strip()
        if set(text) <= set("─━-╰╯"):
            break
        message.append(text)
    return " ".join(message) or "the command line could not be read; see --help"
