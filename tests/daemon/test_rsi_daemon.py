"""The daemon's log, starts that fail, and bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssm_metarl.daemon.control import request
from ssm_metarl.daemon.lock import (
    lock_is_held,
)
from ssm_metarl.daemon.process import (
    LOG,
    LOG_BYTES,
    DaemonError,
    default_lineage,
    follow_log,
    restart,
    start,
    status,
)
from ssm_metarl.rsi_daemon import main

from .conftest import ROOT, Daemons, wait_for


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
