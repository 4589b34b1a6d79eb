"""The daemon's shell: one a lineage, stopped by a file, true about itself, whatever happens to it.

The daemons here do a dummy's work, from a script of their own.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ssm_metarl.daemon import control as daemon_control
from ssm_metarl.daemon import process as daemon_process
from ssm_metarl.daemon.control import HEARTBEAT, Control, request
from ssm_metarl.daemon.lock import (
    LOCK,
    adopt_lock,
    lock_is_held,
    read_in_place,
    read_record,
    seconds_from_boot,
    take_lock,
    write_in_place,
)
from ssm_metarl.daemon.process import (
    LOG,
    LOG_BYTES,
    DaemonError,
    LogStream,
    default_lineage,
    follow_log,
    restart,
    start,
    status,
    stop,
)
from ssm_metarl.rsi_daemon import main

ROOT = Path(__file__).parents[1]
MODULE = [sys.executable, "-m", "ssm_metarl.rsi_daemon"]

SCRIPT = """
import os, subprocess, sys, time
from ssm_metarl.rsi_daemon import main

def work(lineage, control, arguments):
    with open(lineage / "lives", "a") as lives:
        lives.write(f"{os.getpid()}\\n")
    worker = None
    if "raise" in arguments:
        raise RuntimeError("the work failed")
    if "worker" in arguments:  # as leaky as can be
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        worker = subprocess.Popen(command, close_fds=False).pid
    print("work begins", *arguments, flush=True)
    while "deaf" in arguments or not control.stopping():
        control.report(
            step=time.monotonic(), paused=control.paused(), worker=worker, cwd=os.getcwd(),
            ack=control.take_ack(),
        )
        time.sleep(0.01)
    return 7 if "seven" in arguments else 0

sys.exit(main(work=work, command=[sys.executable, __file__, "run"]))
"""


class Daemons:
    """Dummies' lineages, whose daemons are ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "dummy.py"
        self.script.write_text(SCRIPT)
        self.command = [sys.executable, str(self.script), "run"]
        self.lineage = folder / "lineage"

    def start(self, *arguments: str) -> bool:
        return start(self.lineage, arguments, self.command)

    def run(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, self.script, action, "--lineage", self.lineage, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def pid(self) -> int:
        pid = status(self.lineage)["pid"]
        assert isinstance(pid, int)
        return pid

    def kill(self) -> None:
        os.kill(self.pid(), signal.SIGKILL)
        wait_for(lambda: not lock_is_held(self.lineage))

    def reported(self, name: str) -> Any:
        return status(self.lineage)["status"].get(name)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    daemons = Daemons(tmp_path)
    yield daemons
    with suppress(DaemonError):
        stop(daemons.lineage, 5)
    if lock_is_held(daemons.lineage) and status(daemons.lineage)["pid"] is not None:
        daemons.kill()


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# One daemon


def race(daemons: Daemons, starters: int) -> None:
    """So many starts at once, of which one must win."""
    command = [sys.executable, daemons.script, "start", "--lineage", daemons.lineage]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(starters)
    ]
    told = [process.communicate(timeout=60) for process in processes]
    assert sorted(process.returncode for process in processes) == [0] + [4] * (starters - 1)
    assert all(err.startswith("rsi: already running") for _, err in told if err)
    wait_for(lambda: daemons.reported("step"))
    assert (daemons.lineage / "lives").read_text() == f"{daemons.pid()}\n"


def test_of_fifty_simultaneous_starts_exactly_one_wins(daemons: Daemons) -> None:
    race(daemons, 50)


@pytest.mark.nightly
def test_of_fifty_simultaneous_starts_exactly_one_wins_twenty_times(daemons: Daemons) -> None:
    for _ in range(20):
        began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        race(daemons, 50)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        # Two cores were never kept busy for 10 s; the time on the clock depends on the neighbours.
        print(
            f"50 simultaneous starts: {time.monotonic() - began:.1f} s, {busy:.1f} s of processor"
        )
        assert busy < 20
        daemons.kill()
        (daemons.lineage / "lives").unlink()


def test_a_start_that_loses_is_cheap(tmp_path: Path) -> None:
    """It is measured by what it imports: seconds of processor time differ between machines."""
    code = (
        "import sys; from ssm_metarl.rsi_daemon import main; code = main(sys.argv[1:]);"
        "print(*sys.modules); sys.exit(code)"
    )
    lock = take_lock(tmp_path, [])
    assert lock is not None
    command = [sys.executable, "-c", code, "start", "--lineage", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    os.close(lock)
    assert done.returncode == 4
    heavy = {"torch", "numpy", "tyro", "rich", "psutil", "platformdirs", "subprocess", "asyncio"}
    assert not heavy & set(done.stdout.split())


def test_looking_makes_no_start_lose(tmp_path: Path) -> None:
    tmp_path.joinpath(LOCK).touch()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            lock_is_held(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    for _ in range(50):
        lock = take_lock(tmp_path, [])
        assert lock is not None
        os.close(lock)
    ended.set()
    for looker in lookers:
        looker.join()


def test_a_killed_daemon_leaves_the_lock_free_though_its_worker_lives(daemons: Daemons) -> None:
    assert daemons.start("worker")
    wait_for(lambda: daemons.reported("worker"))
    first, worker = daemons.pid(), psutil.Process(daemons.reported("worker"))
    assert not daemons.start()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not lock_is_held(daemons.lineage))
    assert worker.is_running()
    found = status(daemons.lineage)
    assert (found["state"], found["pid"], found["exit_code"]) == ("not running", None, None)
    assert daemons.start()
    assert daemons.pid() != first
    worker.kill()


def test_whoever_removes_the_lock_file_ends_the_daemon(daemons: Daemons) -> None:
    assert daemons.start()
    process = psutil.Process(daemons.pid())
    (daemons.lineage / LOCK).unlink()
    wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    assert "was removed" in (daemons.lineage / LOG).read_text()


def test_a_descriptor_that_is_not_the_locks_is_refused(tmp_path: Path) -> None:
    lock = take_lock(tmp_path, [])
    assert lock is not None
    another = os.open(tmp_path / LOCK, os.O_RDWR)  # of the same file, but not the locked one
    for wrong in (another, 1, 999):
        with pytest.raises(ValueError, match="lock-fd: expected a locked descriptor"):
            adopt_lock(tmp_path, wrong)
    adopt_lock(tmp_path, lock)
    assert read_record(tmp_path)["pid"] == os.getpid()
    os.close(another)
    os.close(lock)


# Stopping


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


# Restarting and pausing


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


# The status and the heartbeat


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


# The log, the start that fails, bad input


def test_a_large_log_is_put_aside_at_a_start(daemons: Daemons) -> None:
    daemons.lineage.mkdir()
    log = daemons.lineage / LOG
    log.write_bytes(b"old\n" * (LOG_BYTES // 4))
    lines = follow_log(daemons.lineage, 1)
    assert next(lines) == "old\n"
    assert daemons.start("first")
    wait_for(lambda: "first" in log.read_text())
    assert not Path(f"{log}.1").exists()  # not yet larger than a megabyte
    assert next(lines) == "work begins first\n"
    assert restart(daemons.lineage, ["second"], command=daemons.command)
    assert next(lines) == "work begins second\n"
    assert log.read_text() == "work begins second\n"
    assert Path(f"{log}.1").read_text().endswith("old\nwork begins first\n")
    lines.close()  # type: ignore[attr-defined]


def test_work_that_raises_leaves_its_traceback(daemons: Daemons) -> None:
    assert daemons.start("raise")
    wait_for(lambda: not lock_is_held(daemons.lineage))
    assert status(daemons.lineage)["exit_code"] == 1
    assert "RuntimeError: the work failed" in (daemons.lineage / LOG).read_text()


def test_a_daemon_that_ends_at_once_is_no_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('broken')"]
    with pytest.raises(DaemonError, match=r"received exit code 1; .*daemon\.log: broken"):
        start(tmp_path, command=command)
    assert not lock_is_held(tmp_path)


def test_it_runs_in_the_foreground_as_under_systemd(daemons: Daemons) -> None:
    command = [sys.executable, daemons.script, "run", "--log", "--lineage", daemons.lineage, "here"]
    with subprocess.Popen(command) as process:
        wait_for(lambda: daemons.reported("step"))
        assert daemons.pid() == process.pid
        assert daemons.run("run").returncode == 4
        process.terminate()
        assert process.wait(10) == 0
    assert (daemons.lineage / LOG).read_text() == "work begins here\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bogus"], "rsi: argument ACTION: invalid choice: 'bogus'"),
        (["status", "more"], "rsi: status: expected no such argument, received more"),
        (["stop", "--timeout", "nan"], "expected a positive number of seconds, received 'nan'"),
        (["logs", "-n", "-1"], "rsi: "),
        (["start", "--lineage", __file__], "rsi: lineage: expected a folder, received the file"),
        (["pause", "--lineage", "/none"], "rsi: lineage: expected the folder of a daemon"),
        (["logs", "--lineage", "/none"], "rsi: logs: expected the log of a daemon, received"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as refused:
        code = refused.code  # type: ignore[assignment]
    told = capsys.readouterr().err
    assert (code, told.count("\n"), line in told) == (2, 1, True)
    with pytest.raises(ValueError, match="request: expected stop, pause, resume or ack"):
        request(Path("/"), "explode")


def test_the_default_lineage_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSM_METARL_HOME", str(tmp_path))
    assert default_lineage() == tmp_path / "rsi"
    monkeypatch.setenv("SSM_METARL_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_lineage().parts[-2:] == ("ssm-metarl", "rsi")


def test_the_script_in_the_root_knows_its_actions(tmp_path: Path) -> None:
    environment = os.environ | {"SSM_METARL_HOME": str(tmp_path)}
    (tmp_path / "link").symlink_to(ROOT / "rsi_control.sh")

    def control(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [tmp_path / "link", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    assert control("status") == (3, f"daemon: not running\nlineage: {tmp_path / 'rsi'}\n")
    for arguments in ((), ("explode",), ("run",)):
        code, told = control(*arguments)
        assert (code, told.startswith("usage: ")) == (2, True)
