"""Where a command may write: nothing is overwritten, and a mistake shows before the work.

Place in the flow: the commands ask here before they start, so that no hour of training ends in
"no such directory".
"""

from __future__ import annotations

import os
from pathlib import Path


def new_folder(out: Path) -> Path:
    """Make ``out``, or take it as it is if it is empty.

    Raises:
        ValueError: Something is there already.
        OSError: It cannot be made, or nothing can be written to it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, received the file {out}")
    if out.is_dir() and any(out.iterdir()):
        hint = f"; continue its training with --resume {out}" if _holds_training(out) else ""
        raise ValueError(f"out: expected a new or empty folder, received {out}{hint}")
    make_folder(out)
    return out


def new_file(out: Path) -> Path:
    """A file that can be written, in a folder that exists or is made.

    Raises:
        ValueError: It exists already.
        OSError: Its folder cannot be made, or nothing can be written to it.
    """
    if out.exists():
        raise ValueError(f"out: expected a file that does not exist yet, received {out}")
    make_folder(out.parent)
    return out


def free_folder(parent: Path, name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... that does not exist."""
    folder, count = parent / name, 1
    while folder.exists():
        count += 1
        folder = parent / f"{name}-{count}"
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder, if it does not exist, and see that it can be written to.

    Raises:
        OSError: It cannot.
    """
    # To ask for permission is not enough: some file systems (/proc) say yes and mean no.
    probe = folder / f".ssm-metarl-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        message = f"expected a folder that can be written to, received {error.strerror!r}"
        raise OSError(error.errno, message, str(folder)) from None


def _holds_training(folder: Path) -> bool:
    from ssm_metarl.checkpoint import FILE_NAME
    from ssm_metarl.meta_rl.training_run import LOG_NAME

    return (folder / FILE_NAME).is_file() and (folder / LOG_NAME).is_file()
