"""``ssm-metarl rsi``: improve a model, and look at what came of it.

Place in the flow: commands of two words; the work is `recursive_self_improvement`. ``start``,
``stop``, ``restart``, ``status``, ``logs``, ``pause`` and ``resume`` are `rsi_daemon`'s.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_metarl.cli.console import Reporter, announce_compilation, interval, note, print_json
from ssm_metarl.command_line import part_of
from ssm_metarl.recursive_self_improvement.config import RSIRun

if TYPE_CHECKING:
    from ssm_metarl.daemon.control import Control
    from ssm_metarl.recursive_self_improvement.agent import RecursiveSelfImprovementAgent
    from ssm_metarl.recursive_self_improvement.lineage import Lineage

EXIT_HALTED, EXIT_INTERRUPTED = 1, 130
QUIET = ("propose", "train", "attribute", "canary")
"""Events of a run without a line of their own."""


@dataclass(frozen=True, kw_only=True)
class LineageArgument:
    """The flag of every command that has a lineage."""

    lineage: Path | None = None
    """Its folder; None for $SSM_METARL_HOME/rsi, in the platform's folder for user data."""
    json: bool = False
    """Print the result as one JSON object."""

    @property
    def folder(self) -> Path:
        """The lineage's folder; ValueError where it is a file."""
        from ssm_metarl.rsi_daemon import default_lineage

        folder = self.lineage or default_lineage()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"lineage: expected a folder, received the file {folder}")
        return folder

    def existing(self) -> Path:
        """The folder; ValueError where it holds no lineage."""
        find_start(self.folder, None)
        return self.folder


@dataclass(frozen=True, kw_only=True)
class Run(RSIRun, LineageArgument):
    """Improve a model for some generations, here and now; each is kept only if proven.

    Ctrl-C stops at once and loses nothing: the same command without --model goes on.
    """

    cycles: int | None = 3
    """Generations to run; None until Ctrl-C."""

    def run(self) -> int:
        """Run the generations, say what each did, draw the lineage."""
        settings = part_of(self, RSIRun)
        find_start(self.folder, self.model)
        from ssm_metarl.recursive_self_improvement import service  # torch: a mistake need not wait

        with foreground(self.folder) as control:
            announce_compilation()
            with service.open_agent(self.folder, settings, control, tell) as agent:
                note(f"lineage in {self.folder}")
                ended = service.supervise(
                    agent, control, cycles=self.cycles, wait_when_halted=False
                )
                return self._finish(agent, ended)

    def _finish(self, agent: RecursiveSelfImprovementAgent, ended: str) -> int:
        from ssm_metarl.recursive_self_improvement import service
        from ssm_metarl.recursive_self_improvement.summary import summarize_lineage

        summary = summarize_lineage(agent.lineage, agent.folder) | {"ended": ended}
        if self.json:
            print_json(summary)
        else:
            print_summary(summary)
            if agent.lineage.records and find_spec("matplotlib") is not None:
                from ssm_metarl.recursive_self_improvement.plot import draw_lineage

                print(f"picture: {draw_lineage(agent.lineage, agent.folder / 'lineage.png')}")
            print(f"to audit it: ssm-metarl rsi audit --lineage {agent.folder}")
        if ended == service.STOPPED:
            note(f"ssm-metarl: stopped, nothing is lost; continue with: "
                 f"ssm-metarl rsi run --lineage {agent.folder}")  # fmt: skip
            return EXIT_INTERRUPTED
        if ended == service.HALTED:
            note(f"ssm-metarl: {agent.finished} --lineage {agent.folder}")
            return EXIT_HALTED
        if ended == service.USED_UP:
            note(f"ssm-metarl: {agent.finished}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Audit(LineageArgument):
    """Measure the champion on vault tasks, against generation 0 and plain training."""

    num_tasks: int | None = None
    """Vault tasks; None for the lineage's setting."""
    family: str | None = None
    """Task family: a name, or my_plant.py:FAMILY; None for the lineage's own."""
    plain_training: bool = True
    """Also train generation 0 plainly, on as many environment steps as the lineage has spent."""
    workers: int | None = None
    """Worker processes; None for one a processor."""

    def run(self) -> int:
        """Audit, keep the result with the lineage, print it."""
        from ssm_metarl.recursive_self_improvement import service
        from ssm_metarl.recursive_self_improvement.audit import audit
        from ssm_metarl.recursive_self_improvement.executor import Stopped

        if self.num_tasks is not None and self.num_tasks < 2:  # an interval needs two
            raise ValueError(f"num_tasks: expected at least 2, received {self.num_tasks}")
        folder = self.existing()
        run = RSIRun(workers=self.workers, family=self.family)
        with foreground(folder) as control:
            announce_compilation()
            with service.open_agent(folder, run, control, lambda *_: None) as agent:
                try:
                    with Reporter("audit") as reporter:
                        result = audit(
                            agent,
                            num_tasks=self.num_tasks,
                            with_plain_training=self.plain_training,
                            on_progress=reporter.update,
                        )
                except Stopped:
                    note("ssm-metarl: stopped; the same command goes on with the plain training")
                    return EXIT_INTERRUPTED
        if self.json:
            print_json(result)
        else:
            print_audit(result)
        return 0


@dataclass(frozen=True, kw_only=True)
class Replay(LineageArgument):
    """Read the ledger from its first event, and decide everything again."""

    def run(self) -> int:
        """Check chain, decisions and weights; a mismatch is an error that names the event."""
        from ssm_metarl.recursive_self_improvement.replay import replay

        result = replay(self.existing())
        if self.json:
            print_json(result)
        else:
            print(
                f"{result['events']} events, {result['decisions']} decisions, all as recorded; "
                f"hash {result['hash']}"
            )
        return 0


@dataclass(frozen=True, kw_only=True)
class Export(LineageArgument):
    """Write the champion as a model that every other command opens, with its limits set."""

    out: Path
    """File to write, such as champion.safetensors."""
    family: str | None = None
    """Task family: a name, or my_plant.py:FAMILY; None for the lineage's own."""
    calibration_tasks: int = 1200
    """Training tasks on which the limits of adaptation are set; 0 for none."""

    def run(self) -> int:
        """Calibrate and write."""
        from ssm_metarl.cli.outputs import new_file
        from ssm_metarl.recursive_self_improvement.export import export_champion
        from ssm_metarl.tasks.registry import named_family

        family = None if self.family is None else named_family(self.family)
        folder, out = self.existing(), new_file(self.out)
        announce_compilation()
        card = export_champion(folder, out, self.calibration_tasks, family)
        if self.json:
            print_json({"out": str(out), **card})
        else:
            print(f"champion {card['champion'][:12]} of generation {card['generation']}: {out}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Plot(LineageArgument):
    """Draw a lineage's generations and the wealth of its confirmations."""

    out: Path | None = None
    """The picture; None for lineage.png in the lineage's folder."""

    def run(self) -> int:
        """Draw it."""
        from ssm_metarl.cli.outputs import new_file
        from ssm_metarl.recursive_self_improvement.ledger import Ledger
        from ssm_metarl.recursive_self_improvement.lineage import Lineage
        from ssm_metarl.recursive_self_improvement.plot import draw_lineage

        folder = self.existing()
        out = folder / "lineage.png" if self.out is None else new_file(self.out)
        with Ledger(folder, read_only=True) as ledger:
            draw_lineage(Lineage(ledger.events()), out)
        print_json({"out": str(out)}) if self.json else print(out)
        return 0


@dataclass(frozen=True, kw_only=True)
class Start(RSIRun):
    """Improve a model for days: a daemon that goes on when nobody is logged in.

    `rsi restart` stops it and starts it with the same flags, or with others if given.
    """

    lineage: Path | None = None
    """Its folder; None for $SSM_METARL_HOME/rsi, in the platform's folder for user data."""


@dataclass(frozen=True)
class DaemonAction:
    """An action of the daemon, with its own flags (`rsi_daemon`)."""

    arguments: Sequence[str]

    def run(self) -> int:
        """Do it."""
        from ssm_metarl.rsi_daemon import main

        return main(self.arguments)


COMMANDS: dict[str, type[Any]] = {
    "run": Run,
    "audit": Audit,
    "replay": Replay,
    "export": Export,
    "plot": Plot,
}
DAEMON_ACTIONS = ("start", "stop", "restart", "status", "logs", "pause", "resume")


def find_start(folder: Path, model: str | None) -> None:
    """See that there is what a run starts from, before anything is made.

    Raises:
        ValueError: There is no such model, or neither a model nor a lineage.
        LedgerDamaged: The lineage's ledger cannot be read.
    """
    if model is not None:
        from ssm_metarl.checkpoint import find_model

        find_model(model)
    elif not has_begun(folder):
        raise ValueError(
            f"lineage: expected the folder of one, received {folder}; "
            f"begin one with: ssm-metarl rsi run --model NAME --lineage {folder}"
        )


def has_begun(folder: Path) -> bool:
    """Whether a lineage lives there: a refused start may have left a ledger without events."""
    from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME, Ledger

    if not (folder / FILE_NAME).is_file():
        return False
    with Ledger(folder, read_only=True) as ledger:
        return ledger.head[0] > 0


@contextmanager
def foreground(folder: Path) -> Iterator[Control]:
    """Be the one process that works at a lineage; Ctrl-C and SIGTERM ask it to stop."""
    import os

    from ssm_metarl.daemon.control import Control
    from ssm_metarl.daemon.lock import read_record
    from ssm_metarl.daemon.process import claim, whereabouts

    folder.mkdir(parents=True, exist_ok=True)
    daemon = read_record(folder)  # what `restart` starts again: a run in between changes nothing
    lock = claim(folder, daemon.get("arguments", ()), daemon.get("cwd"))
    if lock is None:
        raise ValueError(
            f"lineage: expected one that no process works at, received one of {whereabouts(folder)}"
        )
    previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Control(folder, lock) as control:
            for number in previous:
                signal.signal(number, lambda *_: control.stop())
            yield control
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(lock)


def tell(lineage: Lineage, kind: str, detail: str) -> None:
    """Say what an event of a run did."""
    from ssm_metarl.recursive_self_improvement.service import describe

    if kind not in QUIET:
        note(describe(lineage, kind, detail))


def print_summary(summary: dict[str, Any]) -> None:
    """A lineage in three lines."""
    counts = ", ".join(
        f"{summary[name]} {name.replace('_', ' ')}"
        for name in ("accepted", "rejected", "inconclusive", "rolled_back", "failed")
    )
    number = summary["generation"]
    print(
        f"{number} generation{'' if number == 1 else 's'}: {counts}\n"
        f"champion {summary['champion']} with {summary['parameters']:,} parameters; alpha left "
        f"{summary['alpha_left']:.4f} of {summary['alpha']}; {summary['env_steps']:,} environment "
        f"steps, {summary['disk_mb']:.1f} MB"
    )


def print_audit(result: dict[str, Any]) -> None:
    """An audit as lines."""
    print(f"{result['num_tasks']} vault tasks, {result['env_steps']:,} environment steps spent")
    for arm, splits in result["arms"].items():
        shown = (
            f"{split.upper()} mean {s['mean']:.1f}, worst tenth {s['worst10']:.1f}"
            for split, s in splits.items()
        )
        print(f"{arm:14}  {'   '.join(shown)}")
    for name, splits in result["differences"].items():
        shown = (
            f"{split.upper()} {d['mean']:+.1f} (95 % interval {interval(d['ci95'], '+')})"
            for split, d in splits.items()
        )
        print(f"{name}: {'; '.join(shown)}")
