"""The command line of the daemon of recursive self-improvement.

Place in the flow: stage 9, over `daemon`; the work itself is `recursive_self_improvement.service`.

    python -m ssm_metarl.rsi_daemon start|stop|restart|status|logs|pause|resume|run

What `start`, `restart` and `run` do not know is for the work, and so is all that follows ``--``.
Exit codes: 0 done, 1 the daemon did not start or stop, 2 bad input, 3 none is running (`status`),
4 one is running already (`start`, `run`).

The trap: fifty may start at once, and all but one only to hear that they are late. Nothing here
imports what they would not need.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ssm_metarl.daemon.control import request
from ssm_metarl.daemon.lock import lock_is_held
from ssm_metarl.daemon.process import (
    STOP_SECONDS,
    DaemonError,
    LogStream,
    Work,
    claim,
    default_lineage,
    follow_log,
    open_log,
    restart,
    run_daemon,
    start,
    status,
    stop,
    whereabouts,
)

__all__ = ["DaemonError", "default_lineage", "main", "request", "start", "status", "stop"]

SUMMARY = "ssm_metarl.recursive_self_improvement.summary"
LEDGER, HALTED = "ledger.sqlite", "HALTED"
FAILED, BAD_INPUT, NOT_RUNNING, ALREADY_RUNNING, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 4, 130, 141
ACTIONS = {
    "start": "start the daemon; its flags: ssm-metarl rsi start --help",
    "stop": "ask the daemon to stop, and wait until it has",
    "restart": "stop, then start with the same arguments, or with others if given",
    "status": "how the daemon is; exit code 0 if it runs, 3 if none does",
    "logs": "the end of its log",
    "pause": "do nothing until told to resume, after a restart too",
    "resume": "go on",
    "run": "be the daemon, in the foreground",
}


def main(
    argv: Sequence[str] | None = None,
    *,
    work: Work | None = None,
    command: Sequence[str] | None = None,
) -> int:
    """Run a command line, ACTION [--lineage DIR] [arguments for the work]; returns its exit code.

    Args:
        argv: The arguments; None for the process's own.
        work: What `run` does, see `run_daemon`.
        command: What `start` starts, see `start`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = _parser()
    given, arguments = parser.parse_known_args(words[:cut])
    arguments += words[cut + 1 :]
    if arguments and given.action not in ("start", "restart", "run"):
        parser.error(f"{given.action}: expected no such argument, received {arguments[0]}")
    lineage = Path()
    try:
        lineage = (given.lineage or default_lineage()).resolve()
        if lineage.exists() and not lineage.is_dir():
            raise ValueError(f"lineage: expected a folder, received the file {lineage}")
        if given.action == "run":
            return _run(lineage, given, arguments, work)
        code = _act(lineage, given, arguments, command)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        print(f"rsi: {error.filename or lineage}: {error.strerror}", file=sys.stderr)
        return BAD_INPUT
    except (DaemonError, ValueError) as error:
        print(f"rsi: {error}", file=sys.stderr)
        return FAILED if isinstance(error, DaemonError) else BAD_INPUT


def _act(
    lineage: Path, given: argparse.Namespace, arguments: list[str], command: Sequence[str] | None
) -> int:
    """Every action but `run`."""
    match given.action:
        case "start" | "restart":
            if given.action == "start":
                started = start(lineage, arguments, command)
            else:
                started = restart(lineage, arguments, given.timeout, command)
            if not started:
                return _refuse(lineage)
            print(f"started: {whereabouts(lineage)}")
        case "stop":
            print("stopped" if stop(lineage, given.timeout) else "not running")
        case "status":
            return _print_status(_with_ledger(status(lineage), lineage), given.json)
        case "logs":
            for line in follow_log(lineage, given.lines, given.follow):
                print(line, end="", flush=given.follow)
        case _:
            request(lineage, given.action)
            told = "" if lock_is_held(lineage) else "; no daemon is running"
            if given.action == "resume" and given.ack:
                request(lineage, "ack")
            elif given.action == "resume" and status(lineage)["status"].get("state") == HALTED:
                told += f"; still halted, look into it, then: {_ack(lineage)}"
            print(f"{given.action}d{told}")
    return 0


def _ack(lineage: Path) -> str:
    return f"ssm-metarl rsi resume --ack --lineage {lineage}"


def _with_ledger(found: dict[str, Any], lineage: Path) -> dict[str, Any]:
    """What its ledger says of a lineage that no daemon works at; that takes numpy, so only then.

    Raises:
        ValueError: The ledger is damaged.
    """
    if found["state"] != "not running" or not (lineage / LEDGER).is_file():
        return found
    told = import_module(SUMMARY).read_summary(lineage)
    state = found["status"].get("state") if found["exit_code"] is not None else None
    if told["stage"] == HALTED:
        state = HALTED
    told = {"state": state} | told
    return found | {"status": {name: value for name, value in told.items() if value is not None}}


def _run(lineage: Path, given: argparse.Namespace, arguments: list[str], work: Work | None) -> int:
    """Be the daemon: a child of `start`, or in the foreground, such as under systemd."""
    lock = claim(lineage, arguments, None) if given.lock_fd is None else given.lock_fd
    if lock is None:
        return _refuse(lineage)
    if given.log:
        with open_log(lineage) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    with redirect_stdout(LogStream(1)), redirect_stderr(LogStream(2)):
        return run_daemon(lineage, lock, arguments, work)


def _refuse(lineage: Path) -> int:
    print(f"rsi: already running: {whereabouts(lineage)}", file=sys.stderr)
    return ALREADY_RUNNING


def _print_status(found: dict[str, Any], as_json: bool) -> int:
    """One entry per line, or one JSON object; the exit code says whether a daemon runs."""
    running = found["state"] != "not running"
    if as_json:
        import json

        print(json.dumps(found, indent=2))
        return 0 if running else NOT_RUNNING
    print(f"daemon: {found['state']}{', paused' if found['paused'] else ''}")
    if found["status"].get("state") == HALTED:
        print(f"HALTED: {found['status'].get('reason')}; look into it, then: "
              f"{_ack(Path(found['lineage']))}")  # fmt: skip
    print(f"lineage: {found['lineage']}")
    if running:
        print(f"pid: {found['pid']}")
    for name in ("heartbeat_age", "report_age"):
        if found[name] is not None:
            print(f"{name}: {found[name]:.1f} s")
    if found["exit_code"] is not None:
        print(f"exit_code: {found['exit_code']}")
    for name, value in found["status"].items():
        print(f"{name}: {value}")
    return 0 if running else NOT_RUNNING


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(BAD_INPUT, f"rsi: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rsi", description="The daemon of recursive self-improvement.")
    # With a prog of its own it need not format a usage line for it, which imports shutil.
    actions = parser.add_subparsers(
        prog=parser.prog, dest="action", required=True, metavar="ACTION"
    )
    added = {
        name: actions.add_parser(name, help=meaning, description=meaning, allow_abbrev=False)
        for name, meaning in ACTIONS.items()
    }
    for action in added.values():
        action.add_argument(
            "--lineage", type=Path, help="its folder; by default $SSM_METARL_HOME/rsi"
        )
    for name in ("stop", "restart"):
        added[name].add_argument(
            "--timeout", type=_seconds, default=STOP_SECONDS, help="to wait, in s"
        )
    added["status"].add_argument("--json", action="store_true", help="as one JSON object")
    added["logs"].add_argument("-f", "--follow", action="store_true", help="wait for more")
    added["logs"].add_argument("-n", "--lines", type=_count, default=20, help="how many old ones")
    added["resume"].add_argument("--ack", action="store_true", help="end a halt, having seen why")
    added["run"].add_argument("--lock-fd", type=int, help="the locked descriptor, from start")
    added["run"].add_argument("--log", action="store_true", help="write to the log, not here")
    return parser


def _seconds(text: str) -> float:
    try:
        if 0 < (seconds := float(text)) < float("inf"):
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a positive number of seconds, received {text!r}")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of lines, received {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
