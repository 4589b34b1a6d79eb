"""Run a command line; a mistake ends it with one clear line.

Place in the flow: the entry point. `parsing` reads the command, and lists them all and the exit
codes. Nothing here imports torch: commands import what they need when they run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ssm_metarl.cli.parsing import parse
from ssm_metarl.command_line import PROGRAM
from ssm_metarl.reproducibility import begin_again, is_reproducible
from ssm_metarl.version import __version__

BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
REFUSALS = ("gymnasium.error", "safetensors")
"""Modules whose errors tell of bad input, too: MuJoCo not installed, a disk that is full."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments; None for the process's own.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments == ["--version"]:
            print(f"{PROGRAM} {__version__}")
            return 0
        command = parse(arguments)
        if getattr(command, "reproducible", False) and not is_reproducible():
            begin_again()
        code: int = command.run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not (
            isinstance(error, (ValueError, OSError)) or type(error).__module__.startswith(REFUSALS)
        ):
            raise  # a bug in this package: its traceback says where
        print(f"{PROGRAM}: {describe(error)}", file=sys.stderr)
        return BAD_INPUT


def describe(error: Exception) -> str:
    """An error's message in one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
