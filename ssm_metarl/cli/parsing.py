"""Read a command line: a command's dataclass out, or a mistake in one line.

Place in the flow: between `main` and the commands. tyro turns a dataclass's fields into flags.

tyro draws its complaints as boxes as wide as the terminal, in which long words are cut. So a
command line that does not fit is read once more with a terminal wide enough for one line, and
what that box says is put in this package's words: what was expected, what was received.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

import tyro

from ssm_metarl.cli import rsi
from ssm_metarl.cli.adapt import Adapt
from ssm_metarl.cli.app import App
from ssm_metarl.cli.bench import Bench
from ssm_metarl.cli.bench_adaptation import BenchAdaptation
from ssm_metarl.cli.evaluate import Evaluate
from ssm_metarl.cli.families import Families, FamiliesCheck
from ssm_metarl.cli.models import Models
from ssm_metarl.cli.policy_gradient import TrainPolicyGradient
from ssm_metarl.cli.train import Train
from ssm_metarl.cli.train_in_context import TrainInContext
from ssm_metarl.cli.verify import Verify
from ssm_metarl.command_line import PROGRAM, flag
from ssm_metarl.tasks import names

COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "adapt": Adapt,
    "evaluate": Evaluate,
    "families": Families,
    "families check": FamiliesCheck,
    "verify": Verify,
    "models": Models,
    "bench": Bench,
    "bench adaptation": BenchAdaptation,
    "app": App,
    **{f"rsi {name}": kind for name, kind in rsi.COMMANDS.items()},
}
RSI_ACTIONS = (*rsi.COMMANDS, *rsi.DAEMON_ACTIONS)
MODES: dict[str, type[Any]] = {
    "in_context": TrainInContext,
    "policy_gradient": TrainPolicyGradient,
}
"""Trainings with flags of their own, by the value of --mode."""
ALIASES: dict[type[Any], tuple[str, ...]] = {
    Train: ("--env-name",),
    TrainInContext: ("--env-name",),
    TrainPolicyGradient: ("--family",),
}
CONFIG = (tyro.conf.FlagCreatePairsOff,)  # --json, without a --no-json that nobody needs

OVERVIEW = f"""\
usage: {PROGRAM} COMMAND [flags]
       {PROGRAM} COMMAND --help
       {PROGRAM} --version

A controller that re-tunes itself when the plant changes, from one short episode.

commands:
{{commands}}

--flag-name and --flag_name are the same. With --json, stdout is one JSON object.
Exit codes: 0 done, 1 verify found other figures, families check a fault, a row of bench failed or
rsi is halted, 2 bad input, 3 training diverged (status: no daemon runs), 4 adapt refused its data
and wrote nothing (start: a daemon runs already), 130 interrupted.

examples:
  {PROGRAM} train --max-env-steps 300000 --out runs/first
  {PROGRAM} adapt --model runs/first --task '{{example}}'
  {PROGRAM} evaluate --model runs/first --split ood --report report
  {PROGRAM} rsi run --model runs/first --cycles 3
"""


Flags = TypeVar("Flags")


class Command(Protocol):
    """A parsed command."""

    def run(self) -> int:
        """Do the work; returns the exit code."""


class UsageError(ValueError):
    """The command line does not fit; the message is one line."""


def overview() -> str:
    """What ``ssm-metarl --help`` prints."""
    lines = [
        f"  {name:10} {(kind.__doc__ or '').split('.')[0]}." for name, kind in COMMANDS.items()
    ]
    lines.append(f"  rsi ...    {', '.join(rsi.DAEMON_ACTIONS)}: the daemon that does it for days.")
    return OVERVIEW.format(commands="\n".join(lines), example=names.EXAMPLE_TASK)


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments name.

    Raises:
        UsageError: They name none, or a flag does not fit.
        SystemExit: With code 0, after printing ``--help``.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        raise SystemExit(0)
    name, rest = arguments[0], list(arguments[1:])
    if name == "rsi":
        if not rest or rest[0] not in RSI_ACTIONS:
            received = repr(rest[0]) if rest else "none"
            raise UsageError(f"rsi: expected one of {', '.join(RSI_ACTIONS)}, received {received}")
        if rest[0] in rsi.DAEMON_ACTIONS:
            if rest[0] in ("start", "restart") and {"-h", "--help"} & set(rest):
                read_flags(rsi.Start, f"rsi {rest[0]}", ["--help"])
            return rsi.DaemonAction(rest)
        name, rest = f"rsi {rest[0]}", rest[1:]
    elif name not in COMMANDS:
        first_words = dict.fromkeys(command.split()[0] for command in COMMANDS)
        raise UsageError(f"command: expected one of {', '.join(first_words)}, received {name!r}")
    elif f"{name} {' '.join(rest[:1])}" in COMMANDS:  # of two words
        name, rest = f"{name} {rest[0]}", rest[1:]
    kind, defaults = COMMANDS[name], None
    if name == "train":
        mode = _value(rest, "--mode") or "meta_rl"
        kind = MODES.get(mode, kind)
        defaults = kind(**_recipe(mode, rest))
    command: Command = read_flags(kind, name, rest, defaults)
    return command


def read_flags(
    kind: type[Flags], name: str, arguments: list[str], defaults: Flags | None = None
) -> Flags:
    """A dataclass from its flags.

    Args:
        kind: The dataclass.
        name: Whose flags they are, for ``--help``.
        arguments: The flags.
        defaults: What counts where there is no flag; None for the dataclass's own.

    Raises:
        UsageError: They do not fit.
        SystemExit: With code 0, after printing ``--help``.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return _read(kind, name, arguments, defaults)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    raise UsageError(_complaint(kind, name, arguments))


def _value(arguments: list[str], *flags: str) -> str:
    """The value of a flag, on which others depend; the last one counts, and "" is none."""
    found = ""
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in flags:
            found = value if equals else following
    return found


def _recipe(mode: str, arguments: list[str]) -> dict[str, Any]:
    """The settings with which the family that is named is learned, where they are no defaults.

    A training that is resumed has its own.
    """
    family = _value(arguments, "--family", "--env-name")
    if not family or mode == "policy_gradient" or _value(arguments, "--resume"):
        return {}
    from ssm_metarl.tasks.registry import named_family

    return dict(named_family(family).recipes.get(mode, {}))


def _read(
    kind: type[Flags], name: str, arguments: list[str], defaults: Flags | None = None
) -> Flags:
    program = f"{PROGRAM} {name}"
    if defaults is None:
        return tyro.cli(kind, prog=program, args=arguments, config=CONFIG)
    return tyro.cli(kind, prog=program, args=arguments, config=CONFIG, default=defaults)


def _complaint(kind: type[Any], name: str, arguments: list[str]) -> str:
    """What is wrong with the arguments, in one line."""
    known = {  # a switch that is on by default has the flag that turns it off
        flag(f"no_{field.name}" if field.default is True else field.name) for field in fields(kind)
    } | {"--help", *ALIASES.get(kind, ())}
    for argument in arguments:
        given = flag(argument.partition("=")[0].removeprefix("--"))
        if argument.startswith("--") and given not in known:
            close = difflib.get_close_matches(given, known, n=1, cutoff=0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
            return (
                f"{name}: expected a flag that {PROGRAM} {name} --help lists, "
                f"received {argument}{hint}"
            )
    text = io.StringIO()
    with (
        _wide_terminal(),
        contextlib.redirect_stderr(text),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        _read(kind, name, arguments)
    message = _first_part(text.getvalue())
    for pattern, replacement in WORDING:
        if re.search(pattern, message):
            message = re.sub(f".*?{pattern}.*", replacement, message)
            break
    for metavar, words in METAVARS.items():
        message = message.replace(f"expected {metavar},", f"expected {words},")
    return message or f"{name}: expected other arguments, see {PROGRAM} {name} --help"


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """A terminal in which every message fits on one line, as far as tyro can see."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _first_part(box: str) -> str:
    """The text of tyro's error up to its first rule, whether it stands in a box or under a title.

    Which of the two it is, and whether there are colours, depends on stdout's encoding.
    """
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip("│ ") for line in box.splitlines()]
    body = itertools.dropwhile(_is_rule, lines[1:])  # after the title
    return " ".join(" ".join(itertools.takewhile(lambda x: not _is_rule(x), body)).split())


def _is_rule(line: str) -> bool:
    return line != "" and set(line) <= set("-─╰╯")


WORDING = (
    (
        r"Error parsing (--\S+): no type matching (.+?) could be instantiated from \['(.*?)'\]\.",
        r"\1: expected \2, received '\3'",
    ),
    (
        r"Error parsing (--\S+): could not convert string to float: (.*)",
        r"\1: expected FLOAT, received \2",
    ),
    (
        r"Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)",
        r"\1: expected INT, received \2",
    ),
    (
        r"Error parsing (--\S+): Could not find valid parse for arguments: \[(.*?)\]",
        r"\1: expected numbers, as many as --help says, received \2",
    ),
    (r"Error parsing \w+: (.*)", r"\1"),  # a dataclass's own message says it all
    (
        r"invalid choice ('.*') for argument '(.*?)'\. Expected one of \((.*?),?\)",
        r"\2: expected one of \3, received \1",
    ),
    (
        r"Missing value for argument '(.*?)'\. Expected 1 values",
        r"\1: expected a value, received none",
    ),
    (
        r"Missing from [\w -]*?: (--\S+) \S+ (.*) \(required\)",
        r"\1: expected a value, received none (\2)",
    ),
    (
        r"Missing from [\w-]+ ([\w ]*?): ([A-Z]+) (.*) \(required\)",
        r"\1: expected \2, received none (\3)",
    ),
    (
        r"Unrecognized (?:or misplaced )?options: (.*)",
        r"arguments: expected flags only, received \1",
    ),
)
"""What tyro says, as a pattern, and how this package says it."""
METAVARS = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "{None}|INT": "a whole number or None",
    "{None}|FLOAT": "a number or None",
    "{None}|{FLOAT FLOAT}": "two numbers or None",
}
