"""Where a command may write: nothing is overwritten, and a mistake shows before the work.

Place in the flow: the commands ask here before they start, so that no hour of training ends in
"no such directory".
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from ssm_metarl.daemon.only_writer import only_writer


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
    """Make the first of NAME, NAME-2, NAME-3, ... that does not exist: nobody else gets it."""
    parent.mkdir(parents=True, exist_ok=True)
    for count in itertools.count(1):
        folder = parent / (name if count == 1 else f"{name}-{count}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


@contextlib.contextmanager
def only_writer_of(folder: Path) -> Iterator[None]:
    """Keep other processes of this package from writing to a folder meanwhile.

    Raises:
        ValueError: One does.
    """
    expected = f"{folder}: expected a folder that no other process writes to"
    with only_writer(folder / ".ssm-metarl.lock", expected):
        yield


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
    from ssm_metarl.meta_rl.training_log import LOG_NAME

    return (folder / FILE_NAME).is_file() and (folder / LOG_NAME).is_file()
