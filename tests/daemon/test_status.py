"""A daemon tells the truth about itself, whatever happens to it."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
import time
from pathlib import Path

import psutil
import pytest

from ssm_metarl.daemon import control as daemon_control
from ssm_metarl.daemon import process as daemon_process
from ssm_metarl.daemon.control import HEARTBEAT, Control
from ssm_metarl.daemon.lock import (
    LOCK,
    adopt_lock,
    read_in_place,
    take_lock,
)
from ssm_metarl.daemon.process import (
    LogStream,
    status,
)
from ssm_metarl.rsi_daemon import main

from .conftest import Daemons, wait_for


def test_the_command_line_tells_how_it_is(daemons: Daemons) -> None:
    assert (daemons.run("status").returncode, daemons.lineage.exists()) == (3, False)
    assert daemons.run("start", "seven").stdout.startswith("started: pid ")
    assert daemons.run("start").returncode == 4
    wait_for(lambda: daemons.reported("step"))
    done = daemons.run("status")
    assert done.returncode == 0
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["daemon"] == "running"
    assert lines["pid"] == str(daemons.pid())
    assert float(lines["heartbeat_age"].removesuffix(" s")) < 5
    assert "step" in lines
    assert json.loads(daemons.run("status", "--json").stdout)["arguments"] == ["seven"]
    assert daemons.run("pause").stdout == "paused\n"
    assert daemons.run("status").stdout.startswith("daemon: running, paused\n")
    assert daemons.run("resume").stdout == "resumed\n"
    assert daemons.run("restart").returncode == 0
    wait_for(lambda: daemons.reported("step"))
    assert daemons.run("logs", "-n", "1").stdout == "work begins seven\n"
    assert daemons.run("stop").stdout == "stopped\n"
    done = daemons.run("status")
    assert (done.returncode, "exit_code: 7" in done.stdout) == (3, True)


def test_a_jump_of_the_wall_clock_is_no_alarm(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert daemons.start()
    pid, real, boot = daemons.pid(), time.time, psutil.boot_time()
    for day in (-86400, 86400):
        monkeypatch.setattr(time, "time", lambda day=day: real() + day)
        # On Linux psutil adds the boot time, which jumps with the clock, to make a create_time.
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda day=day: boot + day, raising=False)
        assert psutil.boot_time() == boot + day or not psutil.LINUX
        found = status(daemons.lineage)
        assert found["heartbeat_age"] is not None
        assert 0 <= found["heartbeat_age"] < 5
        assert (found["state"], found["pid"]) == ("running", pid)


def test_silence_is_no_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = take_lock(tmp_path, [])
    assert lock is not None
    assert status(tmp_path)["state"] == "starting"
    adopt_lock(tmp_path, lock)
    with Control(tmp_path, lock) as control:
        control.report(generation=3)
        assert status(tmp_path)["state"] == "running"
        now = time.monotonic()
        monkeypatch.setattr(daemon_process.time, "monotonic", lambda: now + 29)
    assert status(tmp_path)["state"] == "running"
    monkeypatch.setattr(daemon_process.time, "monotonic", lambda: now + 60)
    found = status(tmp_path)
    assert (found["state"], found["status"]) == ("not responding", {"generation": 3})
    assert main(["status", "--lineage", str(tmp_path)]) == 0
    os.close(lock)
    assert status(tmp_path)["state"] == "not running"


def test_it_beats_while_the_work_is_busy(tmp_path: Path) -> None:
    with Control(tmp_path):
        before = read_in_place(tmp_path / HEARTBEAT)["beat"]
        time.sleep(1.3)
        assert read_in_place(tmp_path / HEARTBEAT)["beat"] >= before + 2


def test_the_heartbeat_needs_no_space(tmp_path: Path) -> None:
    path = tmp_path / HEARTBEAT
    with Control(tmp_path) as control:
        inode = path.stat().st_ino
        for entry in (1, "long " * 10_000, float("nan"), Path("/x"), {("a", "b"): 1}, "short"):
            control.report(entry=entry)
            assert (path.stat().st_size, path.stat().st_ino) == (4096, inode)
            shown = read_in_place(path)["status"]
            assert str(shown["entry"])[:5] in (str(entry)[:5], repr(entry)[:5])
        control.report(**{f"entry{i}": "x" * 90 for i in range(100)})
        assert read_in_place(path)["beat"] == 8
        assert len(read_in_place(path)["status"]) == 20


def test_a_failing_disk_silences_and_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Control(tmp_path) as control:
        control.report(step=1)
        monkeypatch.setattr(daemon_control, "write_in_place", full)
        monkeypatch.setattr(daemon_control, "BEAT_SECONDS", 0.01)
        control.report(step=2)
        time.sleep(0.6)
        monkeypatch.undo()
        wait_for(lambda: read_in_place(tmp_path / HEARTBEAT)["status"] == {"step": 2})
    if Path("/dev/full").exists():
        device = os.open("/dev/full", os.O_WRONLY)
        print("lost", file=LogStream(device))
        os.close(device)


def test_half_a_write_is_not_read(tmp_path: Path) -> None:
    ended, path = threading.Event(), tmp_path / HEARTBEAT
    with Control(tmp_path) as control:

        def write() -> None:
            while not ended.is_set():
                control.report(entry="x" * random.Random(time.monotonic_ns()).randrange(3000))

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(300):
            values = read_in_place(path)
            assert set(values.get("status", {}).get("entry", "x")) <= {"x"}
        ended.set()
        writer.join()
    torn = path.read_text().replace('"end": ', '"end": 1')
    path.write_text(torn)
    assert read_in_place(path) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 4096, "\xff", '{"pid": "x"}'])
def test_nonsense_in_the_files_is_survived(tmp_path: Path, content: str) -> None:
    for name in (LOCK, HEARTBEAT):
        (tmp_path / name).write_text(content, "latin-1")
    assert status(tmp_path)["state"] == "not running"
    lock = take_lock(tmp_path, [])
    assert lock is not None
    assert status(tmp_path)["state"] == "starting"
    os.close(lock)
