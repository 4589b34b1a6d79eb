"""The service under the real daemon, with real trainings: stopped, killed, halted, paused, full.

Every lineage here has the same settings, so that its chain of hashes is known from one that nobody
disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl.daemon.lock import lock_is_held
from ssm_metarl.recursive_self_improvement.generation import Stage
from ssm_metarl.recursive_self_improvement.ledger import Ledger
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.replay import replay
from ssm_metarl.rsi_daemon import DaemonError, status, stop

pytestmark = pytest.mark.slow  # real daemons, real trainings

ROOT = Path(__file__).parents[2]
GENERATIONS = 2
SETTINGS = (
    "--train_steps", "1500", "--screen_pairs", "2", "4", "--confirm_pairs", "24",
    "--canary_pairs", "8", "--attribution_pairs", "8", "--batch_pairs", "8",
    "--num_candidates", "2", "--smaller_tolerance", "0.9", "--margin", "0", "--tolerance", "0.9",
    "--alpha", "0.9", "--guardrail_alpha", "0.9", "--min_free_mb", "1",
)  # fmt: skip
"""Tiny generations, and a gate that lets many of them come to confirmation."""


class Service:
    """A lineage, and the daemon that works at it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def control(self, action: str, *arguments: str) -> str:
        """`rsi_control.sh`, which must succeed; what it prints."""
        command = [ROOT / "rsi_control.sh", action, "--lineage", self.folder, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (action, done)
        return done.stdout

    def start(self, *arguments: str) -> None:
        model = () if (self.folder / "ledger.sqlite").exists() else ("--model", str(self.model))
        settings = SETTINGS if model else ()
        self.control("start", *model, *settings, *arguments)

    def run(self, cycles: int, *arguments: str) -> None:
        """`rsi run`, in the foreground."""
        command = [sys.executable, "-m", "ssm_metarl.cli", "rsi", "run", "--lineage", self.folder]
        done = subprocess.run(
            [*command, "--cycles", str(cycles), *arguments],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done

    def chain(self) -> list[str]:
        """The hashes of all events."""
        ledger = Ledger(self.folder, read_only=True)
        try:
            return [event.hash for event in ledger.events()]
        finally:
            ledger.close()

    def lineage(self) -> Lineage:
        ledger = Ledger(self.folder, read_only=True)
        try:
            return Lineage(ledger.events())
        finally:
            ledger.close()

    def finish(self) -> list[str]:
        """Run what is left of the generations; the chain of those that were asked for."""
        if left := GENERATIONS - len(self.lineage().records):
            self.run(max(left, 1))
        replay(self.folder)
        return self.chain()

    def kill(self) -> None:
        pid = status(self.folder)["pid"]
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not lock_is_held(self.folder))

    def said(self, name: str) -> Any:
        return status(self.folder)["status"].get(name)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


@pytest.fixture
def service(tmp_path: Path, generation_zero: Path) -> Iterator[Service]:
    service = Service(tmp_path / "lineage", generation_zero)
    yield service
    with suppress(DaemonError):
        stop(service.folder, 10)
    if lock_is_held(service.folder):
        service.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, generation_zero: Path) -> list[str]:
    """The chain of a lineage that nobody disturbed."""
    service = Service(tmp_path_factory.mktemp("undisturbed"), generation_zero)
    service.run(GENERATIONS, "--model", str(generation_zero), *SETTINGS)
    lineage = service.lineage()
    assert len(lineage.records) == GENERATIONS and lineage.failures == 0
    return service.chain()


def rounds(ordinary: int, nightly: int) -> list[Any]:
    """Seeds of rounds, most of them for the night."""
    return [
        *range(ordinary),
        *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(ordinary, nightly)),
    ]


@pytest.mark.parametrize("seed", rounds(1, 7))
def test_a_stop_at_any_moment_is_graceful_and_loses_nothing(
    seed: int, service: Service, undisturbed: list[str]
) -> None:
    moments = random.Random(seed)
    before: list[str] = []
    for _ in range(3):
        service.start()
        time.sleep(moments.uniform(0, 4))
        begun = time.monotonic()
        assert service.control("stop") == "stopped\n"
        assert time.monotonic() - begun < 10
        found = status(service.folder)
        assert (found["exit_code"], found["status"]["state"]) == (0, "STOPPED")
        now = service.chain()
        assert now[: len(before)] == before
        before = now
    assert service.finish()[: len(undisturbed)] == undisturbed


@pytest.mark.parametrize("seed", rounds(1, 13))
def test_a_kill_at_any_moment_loses_nothing(
    seed: int, service: Service, undisturbed: list[str]
) -> None:
    from ssm_metarl.checkpoint import unpack
    from ssm_metarl.recursive_self_improvement.store import WeightStore

    moments = random.Random(100 + seed)
    for _ in range(4):
        service.start()
        time.sleep(moments.uniform(0, 4))
        service.kill()
        champion = service.lineage().champion
        unpack(WeightStore(service.folder / "weights").get(champion), "champion").policy()
    assert service.finish()[: len(undisturbed)] == undisturbed


def test_three_failures_in_a_row_halt_until_a_person_has_looked(service: Service) -> None:
    service.start("--train_timeout", "0.01")  # no training, no measurement is that fast
    wait_for(lambda: service.said("state") == "HALTED", 90)
    lineage = service.lineage()
    assert (lineage.failures, lineage.stage) == (3, Stage.HALTED)
    told = service.control("status")
    assert "HALTED: " in told and "timeout: more than 0.01 s" in told and "resume --ack" in told
    assert "still halted" in service.control("resume")
    service.control("stop")
    service.start()
    wait_for(lambda: service.said("state") == "HALTED")
    time.sleep(0.5)
    assert service.lineage().stage == Stage.HALTED  # still, after a restart
    service.control("resume", "--ack")
    wait_for(lambda: service.lineage().stage != Stage.HALTED)
    service.control("stop")


def test_a_pause_rests_and_lasts_over_a_restart(service: Service) -> None:
    service.start()
    service.control("pause")
    wait_for(lambda: service.said("state") == "PAUSED")
    events = len(service.chain())
    time.sleep(0.5)
    assert (service.said("reason"), len(service.chain())) == ("asked for", events)
    service.control("stop")
    service.start()
    wait_for(lambda: service.said("state") == "PAUSED")
    service.control("resume")
    wait_for(lambda: len(service.chain()) > events)
    assert service.said("state") == "RUNNING" and service.said("reason") is None
    service.control("stop")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_pauses_until_there_is_room(
    small_disk: Path, generation_zero: Path, undisturbed: list[str]
) -> None:
    service = Service(small_disk / "lineage", generation_zero)
    service.start()
    try:
        champion = service.lineage().champion
        with (small_disk / "others").open("wb") as file, suppress(OSError):
            while True:
                file.write(b"x" * 2**16)
                file.flush()
        wait_for(lambda: service.said("state") == "PAUSED")
        assert "free disk" in service.said("reason") or "full" in service.said("reason")
        assert service.lineage().champion == champion
        (small_disk / "others").unlink()
        wait_for(lambda: service.said("state") == "RUNNING")
        wait_for(lambda: len(service.lineage().records) >= GENERATIONS, 120)
        assert service.chain()[: len(undisturbed)] == undisturbed
    finally:
        service.control("stop")


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")
def test_a_generation_on_ray_is_the_same(service: Service, undisturbed: list[str]) -> None:
    pytest.importorskip("ray")
    service.run(1, "--model", str(service.model), *SETTINGS, "--executor", "ray")
    chain = service.chain()
    assert len(chain) > 5 and chain == undisturbed[: len(chain)]
