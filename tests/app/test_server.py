"""The app as a process: what it is told to refuse."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ssm_metarl.app import warm_up
from ssm_metarl.app.jobs import Job
from ssm_metarl.app.server import Server
from ssm_metarl.cli import main

ROOT = Path(__file__).parents[2]


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, ROOT / "app.py", "--port", port],
            capture_output=True, text=True, check=False, env=os.environ | {"TMPDIR": str(tmp_path)},
        )  # fmt: skip
    assert ended.returncode == 2, ended
    assert ended.stderr == (
        f"ssm-metarl: port: expected one that is free, received {port}, which is taken\n"
    )
    assert not list(tmp_path.glob("ssm-metarl-app-*")), "nothing is left behind"


def test_bad_flags_are_refused_before_anything_is_loaded(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["app", "--port", "99999"]) == 2
    assert capfd.readouterr().err == "ssm-metarl: port: expected 0 to 65535, received 99999\n"


def test_help_loads_neither_gradio_nor_torch() -> None:
    script = (
        "import sys\nfrom ssm_metarl.cli import main\n"
        "try:\n    main(['app', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'gradio', 'torch'} & set(sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0 and "--port" in ended.stdout, ended


def test_what_is_warmed_up_is_what_the_app_asks_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Job] = []
    monkeypatch.setattr(server.jobs, "submit", lambda job: asked.append(job) or job)
    server.kernels.compile(server.jobs, server.folder)
    assert [job.arguments for job in asked] == [
        ("ssm_metarl.app.warm_up", part) for part in warm_up.PARTS
    ]
    assert server.kernels.compiling is asked[0]
    warm_up.PARTS["adapting"]()
