"""Tab 3, the daemon: anyone may look, only the password steers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssm_metarl import rsi_daemon
from ssm_metarl.app.handlers.daemon import ACTIONS, MAX_ATTEMPTS, Daemon, Refused

PASSWORD = "correct horse"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What reaches the daemon."""
    made: list[tuple[Any, ...]] = []
    for name in ("start", "stop", "request"):
        monkeypatch.setattr(
            rsi_daemon, name, lambda *args, name=name: made.append((name, *args)) or True
        )
    return made


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path / "rsi", Clock())


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("given", ["", "wrong", None, 3, "correct horse "])
def test_without_the_password_nothing_reaches_it(
    daemon: Daemon, calls: list[Any], monkeypatch: pytest.MonkeyPatch, action: str, given: object
) -> None:
    monkeypatch.setenv("SSM_METARL_PASSWORD", PASSWORD)
    with pytest.raises(Refused, match="not the password"):
        daemon.steer(action, given, "cartpole")
    assert calls == []


@pytest.mark.parametrize("given", ["", None, PASSWORD])
def test_without_one_set_steering_is_off(
    daemon: Daemon, calls: list[Any], monkeypatch: pytest.MonkeyPatch, given: object
) -> None:
    monkeypatch.delenv("SSM_METARL_PASSWORD", raising=False)
    with pytest.raises(Refused, match="Steering is off"):
        daemon.steer("stop", given, "cartpole")
    assert calls == [] and not daemon.view().can_steer


def test_without_a_place_for_it_the_page_says_so(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/other/daemon.lock")

    monkeypatch.setenv("SSM_METARL_PASSWORD", PASSWORD)
    monkeypatch.setenv("SSM_METARL_HOME", "~nosuchuser/x")
    homeless = Daemon()
    assert homeless.view().problem.startswith("lineage: expected a folder for it, received SSM")
    with pytest.raises(ValueError, match="set SSM_METARL_HOME to a folder"):
        homeless.steer("start", PASSWORD, "cartpole")
    monkeypatch.setattr(rsi_daemon, "status", denied)
    assert Daemon(tmp_path).view().problem.endswith("received /home/other/daemon.lock")
    assert calls == []


def test_guessing_is_slow(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSM_METARL_PASSWORD", PASSWORD)
    clock = Clock()
    daemon = Daemon(tmp_path, clock)
    for i in range(MAX_ATTEMPTS):
        with pytest.raises(Refused, match="not the password"):
            daemon.steer("stop", f"guess {i}", None)
    with pytest.raises(Refused, match="Too many"):
        daemon.steer("stop", PASSWORD, None)
    assert calls == []
    clock.now = 61.0
    assert daemon.steer("stop", PASSWORD, None) == "stopped"


def test_the_owner_steers(
    daemon: Daemon, calls: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSM_METARL_PASSWORD", PASSWORD)
    folder = (tmp_path / "rsi").resolve()
    assert daemon.steer("pause", PASSWORD, None) == "there is no lineage yet"
    assert daemon.steer("start", PASSWORD, "cartpole") == "started"
    folder.mkdir()
    assert daemon.steer("pause", PASSWORD, None) == "paused"
    assert daemon.steer("resume", PASSWORD, None) == "resumed"
    assert calls == [
        ("start", folder, ["--model", "cartpole"]),
        ("request", folder, "pause"),
        ("request", folder, "resume"),
    ]
    with pytest.raises(ValueError, match="action: expected"):
        daemon.steer("delete", PASSWORD, None)
    with pytest.raises(ValueError, match="model: expected one of cartpole"):
        daemon.steer("start", PASSWORD, "/etc/passwd")


def test_anyone_may_look(daemon: Daemon) -> None:
    view = daemon.view()
    assert view.status["state"] == "not running" and view.lineage is None
