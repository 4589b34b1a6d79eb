"""The lock of a folder that a process writes: who is refused, and what frees it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssm_metarl.daemon.only_writer import only_writer

HOLD = """
import os, sys, time
from pathlib import Path
from ssm_metarl.daemon.only_writer import only_writer
with only_writer(Path(sys.argv[1]), "x: expected nobody"):
    child = os.fork() if sys.argv[2] == "fork" else 1
    if child == 0:  # as the workers of somebody's environment, which outlive it for a while
        os.write(1, b"forked\\n")
        sys.stdin.read()
        os._exit(0)
    os.write(1, b"held\\n")
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "x.lock"


@pytest.fixture
def holder(lock: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    kind = getattr(request, "param", "alone")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(2 if kind == "fork" else 1):
            assert process.stdout.readline() in ("held\n", "forked\n")
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_it_is(
    lock: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(ValueError, match=f"expected nobody, received one of process {holder.pid}"):
        only_writer(lock, "x: expected nobody").__enter__()
    holder.communicate("", timeout=30)
    assert not lock.exists()
    with only_writer(lock, "x: expected nobody"):
        assert lock.read_text() == str(os.getpid())
    assert not lock.exists()


@pytest.mark.parametrize("holder", ["alone", "fork"], indirect=True)
def test_a_killed_process_leaves_no_lock(lock: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait(timeout=30)
    assert lock.exists(), "its file stays, and means nothing"
    with only_writer(lock, "x: expected nobody"):
        assert lock.read_text() == str(os.getpid())


def test_a_file_system_without_locks_refuses_nobody(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with only_writer(lock, "x: expected nobody"), only_writer(lock, "x: expected nobody"):
        pass
