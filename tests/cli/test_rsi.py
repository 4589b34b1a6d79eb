"""``ssm-metarl rsi``: every command on a tiny lineage, every mistake in one line."""

from __future__ import annotations

import json
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ssm_metarl.daemon.lock import lock_is_held
from ssm_metarl.recursive_self_improvement.ledger import Ledger
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.rsi_daemon import status, stop

from .conftest import Cli, Outcome

TINY = (
    "--state_dim", "4", "--hidden_dim", "4", "--num_layers", "1", "--tasks_per_epoch", "4",
    "--horizon", "30", "--num_epochs", "1", "--calibration_tasks", "0",
)  # fmt: skip
SETTINGS = (
    "--train_steps", "1500", "--screen_pairs", "2", "4", "--confirm-pairs", "8",
    "--num_candidates", "1", "--smaller_tolerance", "0.9", "--margin", "0", "--min_free_mb=0",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A tiny model, a lineage of one generation that it began, and what was said meanwhile."""

    model: Path
    lineage: Path
    outcome: Outcome


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("rsi")
    program = [sys.executable, "-m", "ssm_metarl.cli"]
    begin = [*program, "rsi", "run", "--cycles", "1", *SETTINGS]
    model, lineage = folder / "model", folder / "lineage"
    subprocess.run([*program, "train", "--out", model, *TINY], capture_output=True, check=True)
    done = subprocess.run(
        [*begin, "--model", model, "--lineage", lineage],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return Made(model, lineage, Outcome(done.returncode, done.stdout, done.stderr))


def test_a_run_tells_each_event_in_a_line(made: Made) -> None:
    lines = made.outcome.err.splitlines()
    assert f"lineage in {made.lineage}" in lines
    assert any(line.startswith("baseline: generalization ") for line in lines)
    assert any(" screen 4 pairs, points over the champion: can " in line for line in lines)
    assert re.match(r"generation 1 (accepted|rejected|inconclusive|rolled back): ", lines[-1])
    assert "\x1b" not in made.outcome.err
    told = made.outcome.out.splitlines()
    assert told[0].startswith("1 generation: ") and "alpha left" in told[1]
    assert told[-1] == f"to audit it: ssm-metarl rsi audit --lineage {made.lineage}"
    assert (made.lineage / "lineage.png").stat().st_size > 1000


def test_a_run_goes_on_and_ends_with_one_object(made: Made, cli: Cli) -> None:
    before = len(events(made.lineage))
    outcome = cli("rsi", "run", "--lineage", made.lineage, "--cycles", 1, "--json")
    assert outcome.code == 0, outcome.err
    assert (outcome.json["generation"], outcome.json["ended"]) == (2, "done")
    assert set(outcome.json) >= {"champion", "alpha_left", "accepted", "rejected", "disk_mb"}
    assert len(events(made.lineage)) > before


def test_ctrl_c_loses_nothing(made: Made, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("rsi", "run", "--lineage", made.lineage)
    assert process.stderr is not None
    for line in process.stderr:
        if " trained 1 of" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"continue with: ssm-metarl rsi run --lineage {made.lineage}" in err
    assert "Traceback" not in err and "alpha left" in out
    assert not lock_is_held(made.lineage)


def test_commands_that_read(made: Made, cli: Cli, tmp_path: Path) -> None:
    where = ("--lineage", made.lineage)
    count = len(events(made.lineage))
    assert cli("rsi", "replay", *where).out.startswith(f"{count} events, ")
    assert cli("rsi", "replay", *where, "--json").json["events"] == count
    exported = cli("rsi", "export", *where, "--out", "new/c.safetensors", "--calibration-tasks", 0)
    assert exported.code == 0 and exported.out.startswith("champion "), exported
    evaluated = cli("evaluate", "--model", "new/c.safetensors", "--num_tasks", 4, "--json")
    assert evaluated.code == 0, evaluated.err
    plotted = cli("rsi", "plot", *where, "--out", "new/p.svg", "--json")
    assert plotted.json == {"out": "new/p.svg"} and (tmp_path / "new/p.svg").is_file()
    assert cli("rsi", "plot", *where).out == f"{made.lineage / 'lineage.png'}\n"


def test_an_audit_in_lines_and_as_an_object(made: Made, cli: Cli) -> None:
    audit = ("rsi", "audit", "--lineage", made.lineage, "--num_tasks", 4, "--workers", 1)
    outcome = cli(*audit, "--no-plain-training")
    assert outcome.code == 0 and "champion - generation 0: ID " in outcome.out, outcome
    result = cli(*audit, "--no_plain_training", "--json").json
    assert result["num_tasks"] == 4 and "generation 0" in result["arms"]


def test_a_daemon_from_start_to_stop(made: Made, cli: Cli) -> None:
    where = ("--lineage", made.lineage)
    try:
        assert cli("rsi", "start", *where, "--workers", 1).out.startswith("started: pid ")
        running = cli("rsi", "status", *where, "--json")
        assert running.code == 0
        assert running.json["status"]["state"] == "RUNNING"
        again = cli("rsi", "start", *where)
        assert again.code == 4 and again.err.startswith("rsi: already running: pid ")
        for command in (("run",), ("audit",)):
            told = cli("rsi", *command, *where).refusal()
            assert told.startswith("lineage: expected one that no process works at, received one")
        assert cli("rsi", "pause", *where).out == "paused\n"
        assert cli("rsi", "resume", *where).out == "resumed\n"
    finally:
        assert cli("rsi", "stop", *where).out == "stopped\n"
    assert cli("rsi", "pause", *where).out == "paused; no daemon is running\n"
    assert cli("rsi", "resume", "--ack", *where).out == "resumed; no daemon is running\n"
    assert "STOPPED" not in cli("rsi", "logs", *where, "-n", 5).err


def test_the_status_without_a_daemon_is_the_ledgers(made: Made, cli: Cli) -> None:
    outcome = cli("rsi", "status", "--lineage", made.lineage, "--json")
    status = outcome.json["status"]
    assert (outcome.code, outcome.json["state"]) == (3, "not running")
    lineage = Lineage(events(made.lineage))
    assert (status["champion"], status["generation"]) == (lineage.champion[:12], lineage.generation)
    told = cli("rsi", "status", "--lineage", made.lineage)
    assert told.code == 3 and f"champion: {lineage.champion[:12]}\n" in told.out


def test_a_halted_lineage_says_so_and_why(made: Made, cli: Cli, tmp_path: Path) -> None:
    halted = tmp_path / "halted"
    halted.mkdir()
    ledger, old = Ledger(halted), events(made.lineage)
    for event in old[:2]:
        ledger.append(event.kind, event.body, old[0].body["champion"])
    ledger.append("halt", {"reason": "the evaluator changed"}, old[0].body["champion"])
    ledger.close()
    outcome = cli("rsi", "status", "--lineage", halted)
    assert outcome.code == 3
    assert outcome.out.splitlines()[1] == (
        "HALTED: the evaluator changed; look into it, then: "
        f"ssm-metarl rsi resume --ack --lineage {halted}"
    )
    status = cli("rsi", "status", "--lineage", halted, "--json").json["status"]
    assert (status["state"], status["reason"]) == ("HALTED", "the evaluator changed")
    assert "still halted" not in cli("rsi", "resume", "--ack", "--lineage", halted).out


BAD_INPUT = {
    "no action": ([], "rsi: expected one of run, audit, "),
    "another action": (["runn"], "rsi: expected one of run, audit, "),
    "no lineage": (["run", "--lineage", "new"], "lineage: expected the folder of one, received"),
    "no model": (["run", "--lineage", "new", "--model", "x"], "model: expected a shipped name"),
    "a file": (["run", "--lineage", "file"], "lineage: expected a folder, received the file"),
    "audit a file": (["audit", "--lineage", "file"], "lineage: expected a folder, received"),
    "replay nothing": (["replay", "--lineage", "new"], "lineage: expected the folder of one"),
    "plot nothing": (["plot", "--lineage", "new"], "lineage: expected the folder of one"),
    "a flag": (["run", "--train-stepz", "3"], "did you mean --train-steps?"),
    "words": (
        ["run", "--screen_pairs", "a", "b"],
        "--screen-pairs: expected any number of: a whole",
    ),
    "order": (["run", "--screen-pairs", "8", "4"], "screen_pairs: expected ascending numbers"),
    "one of two": (["run", "--return_bounds", "3"], "--return-bounds: expected 2 of: a number or"),
    "cycles": (["run", "--cycles", "0"], "cycles: expected None or at least 1, received 0"),
    "executor": (["run", "--executor", "x"], "--executor: expected one of 'local', 'ray'"),
    "alpha": (["run", "--alpha", "2"], "alpha: expected between 0 and 1, received 2.0"),
    "no out": (["export"], "--out: expected a value, received none"),
    "one task": (["audit", "--num_tasks", "1"], "num_tasks: expected at least 2, received 1"),
}


@pytest.mark.parametrize("command", ["audit", "replay", "export --out c", "plot", "run"])
def test_a_ledger_that_is_empty_or_broken(command: str, cli: Cli, tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    words = ("rsi", *command.split(), "--lineage", tmp_path)
    assert cli(*words).refusal().startswith("lineage: expected the folder of one, received")
    (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 1000)
    assert "expected a ledger, received a damaged one" in cli(*words).refusal()
    status = cli("rsi", "status", "--lineage", tmp_path)
    assert (status.code, status.out) == (2, "") and "received a damaged one" in status.err


@pytest.mark.parametrize(("arguments", "line"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_a_mistake_is_one_line_and_makes_nothing(
    arguments: list[str], line: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    assert line in cli("rsi", *arguments).refusal()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_lineage_is_not_to_become_is_refused(made: Made, cli: Cli, tmp_path: Path) -> None:
    before = events(made.lineage)
    where = ("--lineage", made.lineage)
    told = cli("rsi", "run", *where, "--model", "cartpole").refusal()
    assert told.startswith("model: expected the one that this lineage began with")
    told = cli("rsi", "run", *where, *SETTINGS, "--seed", 5).refusal()
    assert "received others for seed; leave it out" in told
    (tmp_path / "file.png").write_text("mine")
    for command in (("export", "--out"), ("plot", "--out")):
        told = cli("rsi", *command, "file.png", *where).refusal()
        assert told.startswith("out: expected a file that does not exist yet, received file.png")
    assert "expected a name that ends in" in cli("rsi", "plot", *where, "--out", "p.foo").refusal()
    assert (tmp_path / "file.png").read_text() == "mine"
    assert events(made.lineage) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--alfa", "0.1"), "received --alfa; did you mean --alpha?"),
        (("--model", "nope"), "model: expected a shipped name"),
        (("--model", "cartpole", "--alpha", "3"), "alpha: expected between 0 and 1, received 3.0"),
    ],
)
def test_the_daemons_mistakes_are_seen_by_who_starts_it(
    arguments: tuple[str, ...], line: str, cli: Cli, tmp_path: Path
) -> None:
    lineage = tmp_path / "new"
    outcome = cli("rsi", "start", "--lineage", lineage, *arguments)
    try:
        assert outcome.code == 2 and outcome.out == ""
        assert outcome.err.startswith("rsi: ") and outcome.err.count("\n") == 1
        assert line in outcome.err
    finally:
        stop(lineage)
    assert json.loads((lineage / "daemon.lock").read_text())["arguments"] == []  # for a restart


def test_a_start_alone_begins_with_the_shipped_model(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSM_METARL_HOME", str(tmp_path))
    outcome = cli("rsi", "start")
    try:
        assert outcome.code == 0 and outcome.out.startswith("started: pid ")
        deadline = time.monotonic() + 120
        while not status(tmp_path / "rsi")["status"] and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        stop(tmp_path / "rsi", 60)
    first = events(tmp_path / "rsi")[0]
    assert (first.kind, first.body["family"]) == ("init", "cartpole")
    assert json.loads((tmp_path / "rsi" / "daemon.lock").read_text())["arguments"] == []


def test_help_lists_the_flags(cli: Cli) -> None:
    for action in ("run", "start", "restart"):
        outcome = cli("rsi", action, "--help")
        assert outcome.code == 0 and "--screen-pairs" in outcome.out


def events(folder: Path) -> list:
    """A lineage's events."""
    with Ledger(folder, read_only=True) as ledger:
        return ledger.events()


@pytest.mark.parametrize("home", [None, "~nosuchuser/x"])
@pytest.mark.parametrize(
    "words", ["run --model cartpole", "status", "stop", "start --model cartpole", "audit", "plot"]
)
def test_without_a_home_one_line_says_what_to_set(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, home: str | None, words: str
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_DATA_HOME", "SSM_METARL_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    if home is not None:
        monkeypatch.setenv("SSM_METARL_HOME", home)
    outcome = cli("rsi", *words.split())
    assert (outcome.code, outcome.out) == (2, "")
    received = "a user without a home" if home is None else f"SSM_METARL_HOME={home}"
    (line,) = outcome.err.splitlines()
    assert f"lineage: expected a folder for it, received {received}; set SSM_METARL_HOME" in line
    assert line.endswith("--lineage")
