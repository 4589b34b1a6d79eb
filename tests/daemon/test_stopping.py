"""Stopped by a file, restarted as it was, paused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ssm_metarl.daemon.control import Control, request
from ssm_metarl.daemon.lock import (
    lock_is_held,
    read_record,
    seconds_from_boot,
    take_lock,
    write_in_place,
)
from ssm_metarl.daemon.process import (
    LOG,
    restart,
    status,
    stop,
)
from ssm_metarl.rsi_daemon import main

from .conftest import Daemons, wait_for


def stop_at_random(daemons: Daemons, times: int) -> None:
    generator = random.Random(0)
    for _ in range(times):
        assert daemons.start()
        time.sleep(generator.uniform(0, 0.3))
        began = time.monotonic()
        assert stop(daemons.lineage)
        assert time.monotonic() - began < 10
        assert not list((daemons.lineage / "requests").iterdir())
        found = status(daemons.lineage)
        assert (found["state"], found["exit_code"]) == ("not running", 0)


def test_stops_at_any_moment(daemons: Daemons) -> None:
    stop_at_random(daemons, 3)


@pytest.mark.nightly
def test_stops_at_twenty_moments(daemons: Daemons) -> None:
    stop_at_random(daemons, 20)


def test_stops_while_it_is_being_started(daemons: Daemons) -> None:
    starter = threading.Thread(target=daemons.start)
    starter.start()
    wait_for(lambda: lock_is_held(daemons.lineage))
    assert stop(daemons.lineage)
    starter.join()
    assert not lock_is_held(daemons.lineage)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_stop(daemons: Daemons, number: int) -> None:
    assert daemons.start("seven")
    os.kill(daemons.pid(), number)
    wait_for(lambda: not lock_is_held(daemons.lineage))
    assert status(daemons.lineage)["exit_code"] in (0, 7)  # 0 where the work had not begun


def test_a_deaf_daemon_is_told_of_in_one_line(daemons: Daemons) -> None:
    assert daemons.start("deaf")
    done = daemons.run("stop", "--timeout", "0.3")
    assert done.returncode == 1
    assert done.stderr.startswith(f"rsi: stop: expected the daemon (pid {daemons.pid()}, ")
    assert done.stderr.count("\n") == 1
    wait_for(lambda: status(daemons.lineage)["state"] == "stopping")
    daemons.kill()
    assert daemons.start()  # the request was for the one that is dead
    wait_for(lambda: daemons.reported("step"))
    time.sleep(0.3)
    assert status(daemons.lineage)["state"] == "running"


def test_a_stop_ends_the_life_it_names(daemons: Daemons) -> None:
    assert daemons.start()
    request(daemons.lineage, "stop", "another")
    time.sleep(0.3)
    assert lock_is_held(daemons.lineage)
    (daemons.lineage / "requests" / "stop").touch()  # by a person
    wait_for(lambda: not lock_is_held(daemons.lineage))
    assert daemons.start()
    assert not list((daemons.lineage / "requests").iterdir())


@pytest.mark.parametrize("create_time", ["its own", "another", "none"])
def test_a_reused_pid_is_never_signalled(tmp_path: Path, create_time: str) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    times = {"its own": seconds_from_boot(bystander.pid), "another": 1.0, "none": None}
    lock = take_lock(tmp_path, [])
    assert lock is not None
    record = read_record(tmp_path) | {"pid": bystander.pid, "create_time": times[create_time]}
    write_in_place(lock, record)
    if create_time != "its own":
        assert status(tmp_path)["pid"] is None
    os.close(lock)
    assert main(["stop", "--lineage", str(tmp_path)]) == 0
    assert not stop(tmp_path)
    assert status(tmp_path)["pid"] is None
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_restart_keeps_arguments_folder_and_pause(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert daemons.start("--seed", "3", "--", "--lineage", "elsewhere")
    first = daemons.pid()
    request(daemons.lineage, "pause")
    wait_for(lambda: daemons.reported("paused"))
    folder = os.getcwd()
    monkeypatch.chdir("/")
    assert restart(daemons.lineage, command=daemons.command)
    assert daemons.pid() != first
    wait_for(lambda: daemons.reported("cwd"))
    assert daemons.reported("cwd") == folder
    assert status(daemons.lineage)["paused"]
    wait_for(lambda: daemons.reported("paused"))
    log = (daemons.lineage / LOG).read_text().splitlines()
    assert log == ["work begins --seed 3 -- --lineage elsewhere"] * 2
    request(daemons.lineage, "resume")
    wait_for(lambda: daemons.reported("paused") is False)
    assert restart(daemons.lineage, ["other"], command=daemons.command)
    assert status(daemons.lineage)["arguments"] == ["other"]


def test_an_ack_waits_for_whoever_takes_it(daemons: Daemons) -> None:
    daemons.lineage.mkdir()
    assert daemons.run("resume", "--ack").stdout == "resumed; no daemon is running\n"
    control = Control(daemons.lineage)
    assert (control.take_ack(), control.take_ack()) == (True, False)
