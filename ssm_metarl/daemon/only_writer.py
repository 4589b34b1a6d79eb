"""Be the only process that writes a folder: refused at once where another one does.

Place in the flow: below everything, beside `lock`, whose lock names a daemon; this one is for work
that ends with its process. The system frees it when its holder dies, however it dies; the file that
may stay behind means nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_HELD: set[int] = set()
"""Descriptors of this process's locks."""


@contextlib.contextmanager
def only_writer(path: Path, expected: str) -> Iterator[None]:
    """Hold a lock while this lasts; it is no lock within the process.

    Args:
        path: Its file, removed at the end. Where there are no locks, nobody is refused.
        expected: What the error says was expected, before "received one of process 123".

    Raises:
        ValueError: Another process holds it.
    """
    descriptor = _take(path, expected)
    if descriptor is None:
        yield
        return
    _HELD.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _HELD:  # not in a forked child
            _HELD.discard(descriptor)
            path.unlink(missing_ok=True)  # while it is still locked: it is nobody else's
            os.close(descriptor)


def _take(path: Path, expected: str) -> int | None:
    """The locked descriptor; None where there are no locks."""
    try:
        import fcntl

        from ssm_metarl.daemon.lock import is_file
    except ImportError:  # Windows
        return None

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace")
            os.close(descriptor)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise ValueError(f"{expected}, received one of {who}") from None
        except OSError:
            os.close(descriptor)
            return None
        if is_file(descriptor, path):  # and was not removed before it was locked
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            return descriptor
        os.close(descriptor)


def _close_in_child() -> None:
    """A forked child must not keep a lock that its parent has left, by dying say."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_child)
