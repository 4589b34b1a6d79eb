"""Read a command line: a command's dataclass out, or a mistake in one line.

Place in the flow: between `main` and the commands. A dataclass's fields are the flags. tyro writes
``--help`` from them; the flags are read here by the types that the settings are checked by, since
tyro's complaints are boxes as wide as the terminal.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from ssm_metarl.cli import rsi
from ssm_metarl.cli.adapt import Adapt
from ssm_metarl.cli.app import App
from ssm_metarl.cli.bench import Bench, BenchAdaptation
from ssm_metarl.cli.evaluate import Evaluate
from ssm_metarl.cli.families import Families, FamiliesCheck
from ssm_metarl.cli.models import Models
from ssm_metarl.cli.policy_gradient import TrainPolicyGradient
from ssm_metarl.cli.train import Train, TrainInContext
from ssm_metarl.cli.verify import Verify
from ssm_metarl.command_line import PROGRAM, flag
from ssm_metarl.settings import UNFIT, converted, in_words
from ssm_metarl.tasks import names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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


Flags = TypeVar("Flags", bound="DataclassInstance")


def overview() -> str:
    """What ``ssm-metarl --help`` prints."""
    lines = [
        f"  {name:10} {(kind.__doc__ or '').split('.')[0]}." for name, kind in COMMANDS.items()
    ]
    lines.append(f"  rsi ...    {', '.join(rsi.DAEMON_ACTIONS)}: the daemon that does it for days.")
    return OVERVIEW.format(commands="\n".join(lines), example=names.EXAMPLE_TASK)


def parse(arguments: Sequence[str]) -> Any:
    """The command that the arguments name: its ``run`` does the work and returns the exit code.

    Raises:
        ValueError: They name none, or a flag does not fit.
        SystemExit: With code 0, after printing ``--help``.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        raise SystemExit(0)
    name, rest = arguments[0], list(arguments[1:])
    if name == "rsi":
        if not rest or rest[0] not in RSI_ACTIONS:
            received = repr(rest[0]) if rest else "none"
            raise ValueError(f"rsi: expected one of {', '.join(RSI_ACTIONS)}, received {received}")
        if rest[0] in rsi.DAEMON_ACTIONS:
            if rest[0] in ("start", "restart") and {"-h", "--help"} & set(rest):
                read_flags(rsi.Start, f"rsi {rest[0]}", ["--help"])
            return rsi.DaemonAction(rest)
        name, rest = f"rsi {rest[0]}", rest[1:]
    elif name not in COMMANDS:
        first_words = dict.fromkeys(command.split()[0] for command in COMMANDS)
        raise ValueError(f"command: expected one of {', '.join(first_words)}, received {name!r}")
    elif f"{name} {' '.join(rest[:1])}" in COMMANDS:  # of two words
        name, rest = f"{name} {rest[0]}", rest[1:]
    kind, defaults = COMMANDS[name], {}
    if name == "train":
        mode = _value(rest, "--mode") or "meta_rl"
        kind, defaults = MODES.get(mode, kind), _recipe(mode, rest)
    return read_flags(kind, name, rest, defaults)


def read_flags(
    kind: type[Flags],
    name: str,
    arguments: Sequence[str],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Flags:
    """A dataclass from its flags.

    Args:
        kind: The dataclass.
        name: Whose flags they are, for ``--help``.
        arguments: The flags.
        defaults: What counts where there is no flag, in place of the dataclass's own defaults.

    Raises:
        ValueError: They do not fit, or the dataclass refuses a value.
        SystemExit: With code 0, after printing ``--help``.
    """
    if {"-h", "--help"} & set(arguments):
        given: dict[str, Any] = {"default": kind(**defaults)} if defaults else {}
        short = (tyro.conf.FlagCreatePairsOff,)  # --json, without a --no-json that nobody needs
        tyro.cli(kind, prog=f"{PROGRAM} {name}", args=["--help"], config=short, **given)
    values, loose = _values(kind, name, arguments)
    for field in fields(kind):
        positional = tyro.conf.Positional in _marks(kind, field.name)
        if positional and loose:
            values[field.name] = loose.pop(0)
        elif field.name not in values and field.default is field.default_factory is MISSING:
            if positional:
                raise ValueError(f"{name}: expected {field.name.upper()}, received none")
            raise ValueError(f"{flag(field.name)}: expected a value, received none")
    if loose:
        raise ValueError(f"arguments: expected flags only, received {loose[0]}")
    return kind(**{**defaults, **values})


def _values(
    kind: type[Any], name: str, arguments: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The values of the fields that flags name, each in its type, and the words of no flag."""
    known = _known_flags(kind)
    values: dict[str, Any] = {}
    loose, groups = _grouped(arguments)
    for word, spelled, given in groups:
        if spelled not in known:
            close = difflib.get_close_matches(spelled, [*known, "--help"], n=1, cutoff=0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"{name}: expected a flag that {PROGRAM} {name} --help lists, received {word}{hint}"
            )
        field, declared = known[spelled]
        if isinstance(declared, bool):  # a switch has no value
            values[field], rest = declared, given
        else:
            values[field], rest = _read(spelled, given, declared)
        loose += rest
    return values, loose


def _grouped(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """The words before the first flag; each flag as typed and as spelled, and the words behind."""
    before: list[str] = []
    groups: list[tuple[str, str, list[str]]] = []
    for word in arguments:
        if word.startswith("--"):
            spelled, equals, value = word.removeprefix("--").partition("=")
            groups.append((word, flag(spelled), [value] if equals else []))
        else:
            (groups[-1][2] if groups else before).append(word)
    return before, groups


def _known_flags(kind: type[Any]) -> dict[str, tuple[str, Any]]:
    """The field of each flag, and its type, or for a switch what the flag sets it to."""
    types = get_type_hints(kind)
    known: dict[str, tuple[str, Any]] = {}
    for name in (field.name for field in fields(kind)):
        if types[name] is bool:
            known |= {flag(name): (name, True), flag(f"no_{name}"): (name, False)}
        else:
            aliases = [getattr(mark, "aliases", None) or () for mark in _marks(kind, name)]
            known |= dict.fromkeys((flag(name), *itertools.chain(*aliases)), (name, types[name]))
    return known


def _marks(kind: type[Any], name: str) -> tuple[Any, ...]:
    """What tyro is told of a field beside its type."""
    return getattr(get_type_hints(kind, include_extras=True)[name], "__metadata__", ())


def _read(spelled: str, words: list[str], declared: Any) -> tuple[Any, list[str]]:
    """The value of a flag, and the words that it does not take.

    Raises:
        ValueError: The words are none of the type that is declared.
    """
    if not words:
        raise ValueError(f"{spelled}: expected a value, received none")
    several = [x for x in (declared, *get_args(declared)) if get_origin(x) is tuple]
    taken = words if several else words[:1]
    value = _one(taken[0], declared)
    if several and taken != ["None"]:
        items = [_one(word, get_args(several[0])[0]) for word in taken]
        value = converted(items, declared, finite=False)
    if value is UNFIT:
        expected, received = in_words(declared, finite=False), ", ".join(map(repr, taken))
        raise ValueError(f"{spelled}: expected {expected}, received {received}")
    return value, words[len(taken) :]


def _one(word: str, declared: Any) -> Any:
    """A word in the type that is declared, or `UNFIT`."""
    readings: list[Any] = [None] if word == "None" else []
    for number in (float, int):
        with contextlib.suppress(ValueError):
            readings.append(number(word))
    values = (converted(x, declared, finite=False) for x in (*readings, word))
    return next((x for x in values if x is not UNFIT), UNFIT)


def _value(arguments: Sequence[str], *flags: str) -> str:
    """The value of a flag, on which others depend; the last one counts, and "" is none."""
    _, groups = _grouped(arguments)
    return next((given[0] for _, flag, given in reversed(groups) if flag in flags and given), "")


def _recipe(mode: str, arguments: list[str]) -> dict[str, Any]:
    """The settings with which the family that is named is learned, where they are no defaults.

    A training that is resumed has its own.
    """
    family = _value(arguments, "--family", "--env-name")
    if not family or mode == "policy_gradient" or _value(arguments, "--resume"):
        return {}
    from ssm_metarl.tasks.registry import named_family

    return dict(named_family(family).recipes.get(mode, {}))
