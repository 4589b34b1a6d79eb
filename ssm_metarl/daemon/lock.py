"""The lock that makes a lineage's daemon the only one, and the file that says which one it is.

Place in the flow: below everything. `rsi_daemon` takes the lock and hands it to the daemon;
`control` has what is said between them.

The traps: only the lock says whether a daemon runs. What its file says outlives the daemon, and the
pid in it may be somebody else's by now. And a lock lives as long as any copy of its descriptor:
start workers by exec (subprocess, or multiprocessing's "spawn"); a bare fork keeps the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LOCK = "daemon.lock"
BLOCK = 4096  # bytes of a file that is rewritten in place


def take_lock(lineage: Path, arguments: Sequence[str], cwd: str | None = None) -> int | None:
    """Become the lineage's one daemon, or the parent of it; makes its folder.

    Args:
        lineage: Its folder.
        arguments: What the work is started with, kept for a restart.
        cwd: Where it is started, kept as well; None for here.

    Returns:
        The locked descriptor, to close or to hand on; None if another holds the lock.
    """
    lineage.mkdir(parents=True, exist_ok=True)
    path = lineage / LOCK
    while True:
        descriptor, kept = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), False
        try:
            if _locked(descriptor, fcntl.LOCK_EX):
                if is_file(descriptor, path):  # and was not replaced before it was locked
                    record = {
                        "life": os.urandom(8).hex(), "pid": None, "create_time": None,
                        "since": time.monotonic(), "cwd": cwd or os.getcwd(),
                        "arguments": list(arguments),
                    }  # fmt: skip
                    write_in_place(descriptor, record)
                    kept = True
                    return descriptor
            elif not _locked(descriptor, fcntl.LOCK_SH):
                return None
            # Whoever shares the lock is only looking: try again.
        finally:
            if not kept:
                os.close(descriptor)
        time.sleep(0.002)


def adopt_lock(lineage: Path, descriptor: int) -> None:
    """Take over the lock from the process that took it, and say so in its file.

    Raises:
        ValueError: The descriptor is not that of the lineage's lock, or another holds the lock.
    """
    path = lineage / LOCK
    ours = False
    with suppress(OSError):
        os.set_inheritable(descriptor, False)  # a worker that outlives the daemon has no lock
        ours = is_file(descriptor, path) and _locked(descriptor, fcntl.LOCK_EX)
    if not ours:
        raise ValueError(f"lock-fd: expected a locked descriptor of {path}, received {descriptor}")
    pid = os.getpid()
    write_in_place(
        descriptor, read_in_place(path) | {"pid": pid, "create_time": seconds_from_boot(pid)}
    )


def lock_is_held(lineage: Path) -> bool:
    """Whether a daemon runs, or is being started: for an instant this takes a shared lock."""
    try:
        descriptor = os.open(lineage / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def read_record(lineage: Path) -> dict[str, Any]:
    """What the lock's file says of the last daemon: life, pid, create_time, arguments, cwd."""
    return read_in_place(lineage / LOCK)


def verified_pid(record: Mapping[str, Any]) -> int | None:
    """The daemon's pid, if the process with that pid is still the same one."""
    pid, started = record.get("pid"), record.get("create_time")
    if not isinstance(pid, int) or started is None or seconds_from_boot(pid) != started:
        return None
    return pid


def seconds_from_boot(pid: int) -> float | None:
    """When a process started, in seconds from boot; None if there is none.

    psutil adds the boot time, which it reads off the wall clock: when that jumps, a process would
    no longer be itself. So the boot time is taken off again.
    """
    import psutil

    try:
        return round(float(psutil.Process(pid).create_time() - psutil.boot_time()), 2)
    except (psutil.Error, ValueError, OverflowError):  # no such process, or no such pid
        return None


def write_in_place(descriptor: int, values: Mapping[str, Any]) -> None:
    """Rewrite a JSON file without changing its length, so that it needs no space on the disk."""
    text = json.dumps(values).encode() + b"\n"
    size = max(BLOCK, len(text), os.fstat(descriptor).st_size)
    os.pwrite(descriptor, text.ljust(size), 0)


def read_in_place(path: Path) -> dict[str, Any]:
    """Read such a file; empty if it is not there, or is no such file.

    A reader may see half of a write. Then the JSON is broken, or its first and last entries, `beat`
    and `end`, differ; it looks again.
    """
    for _ in range(5):
        with suppress(ValueError):
            try:
                values = json.loads(path.read_bytes())
            except FileNotFoundError:
                break
            if isinstance(values, dict) and values.get("beat") == values.get("end"):
                return values
        time.sleep(0.005)
    return {}


def is_file(descriptor: int, path: Path) -> bool:
    """Whether a descriptor is that of the file which stands at the path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
