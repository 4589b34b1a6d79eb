"""The task families that are known by name, and those that a user names.

Place in the flow: stage 1; the command line turns what a user typed into a family here. A family
that one declares oneself is passed as an object and needs no registration.

The trap: a checkpoint must never name code to run. What is read from a file goes to `family_of_env`
alone; `named_family`, which runs a user's file, is for what a person typed, or handed over.
"""

from __future__ import annotations

import copyreg
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.tasks.told import told

FAMILIES = {family.name: family for family in (CARTPOLE, CARTPOLE_SCRAMBLED, PENDULUM)}
TOLD = {family.name: family for family in map(told, FAMILIES.values())}
"""The same families, their tasks told: for comparison, not offered beside the others."""
GROUP = "ssm_metarl.families"
"""Of the entry points by which an installed package offers families."""

DECLARE = (
    "declare your own, such as "
    'TaskFamily.from_gymnasium("Pendulum-v1", parameters={"g": Uniform(5, 15, unit="m/s²")}), '
    "and name it: --family my_plant.py:FAMILY"
)
_FROM_FILES: dict[str, TaskFamily] = {}
"""By the file's path, a colon and the name in it."""


def family_of_env(env_id: str, advice: str = DECLARE) -> TaskFamily:
    """The family of a Gymnasium id (``CartPole-v1``) or of a family's own name (``cartpole``).

    With ``_told`` behind the name its tasks are told (``cartpole_told``). Installed packages offer
    others in the entry point group ``ssm_metarl.families``, where an entry's name is its family's.

    Args:
        env_id: The id or the name.
        advice: What to do about one that is not known, the end of the error's line.

    Raises:
        ValueError: No family belongs to it; the one line says how to declare one.
    """
    if env_id in TOLD:
        return TOLD[env_id]
    for family in FAMILIES.values():
        if env_id in (family.name, family.gymnasium_id):
            return family
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if env_id in offered:
        return _loaded(offered[env_id])
    known = ", ".join(
        [f"{f.name} ({f.gymnasium_id})" if f.gymnasium_id else f.name for f in FAMILIES.values()]
        + sorted(offered)
    )
    raise ValueError(f"task family: expected one of {known}, received {env_id!r}; {advice}")


def named_family(text: str) -> TaskFamily:
    """The family that a person named: as `family_of_env` knows it, or in a file of theirs.

    Args:
        text: A name, a Gymnasium id, or a Python file, a colon and the name of a `TaskFamily` in
            it: ``my_plant.py:FAMILY``. The file is run, once a process.

    Raises:
        ValueError: There is none; or the file is not there, raises, or has no such family.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        return family_of_env(text)
    path = Path(file).expanduser().resolve()
    source = f"{path}:{name}"
    if source not in _FROM_FILES:
        module = _run(path, file)
        if not hasattr(module, name):
            found = [n for n, value in vars(module).items() if isinstance(value, TaskFamily)]
            raise ValueError(
                f"family file {file}: expected the name of a TaskFamily in it (such as "
                f"{', '.join(found) or 'none'}), received {name!r}"
            )
        _FROM_FILES[source] = _checked(getattr(module, name), f"family file {file}: {name}")
    return _FROM_FILES[source]


def registered_families() -> dict[str, Callable[[], TaskFamily]]:
    """What gives each family that is known by name; an entry point may raise ValueError."""
    names = [*FAMILIES, *(entry.name for entry in entry_points(group=GROUP))]
    return {name: partial(family_of_env, name) for name in names}


def _loaded(entry: EntryPoint) -> TaskFamily:
    """The family of an installed package's entry point, which must have its name."""
    what = f"entry point {entry.name} = {entry.value} of {GROUP}"
    try:
        loaded = entry.load()
    except Exception as error:
        raise _raised(what, error) from error
    family = _checked(loaded, what)
    if family.name != entry.name:
        raise ValueError(f"{what}: expected a family of that name, received {family.name!r}")
    return family


def _run(path: Path, file: str) -> Any:
    """The module that a file makes; a second name in it does not run it again."""
    if not path.is_file():
        raise ValueError(f"family file: expected a Python file, received {file}, which is none")
    name = f"family_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _raised(f"family file {file}", error) from error
    return module


def _checked(value: Any, what: str) -> TaskFamily:
    if not isinstance(value, TaskFamily):
        raise ValueError(f"{what}: expected a TaskFamily, received {type(value).__name__}")
    reserved = {**FAMILIES, **TOLD}
    if value.name in reserved and value is not reserved[value.name]:
        raise ValueError(
            f"{what}: expected a name of its own, received {value.name!r}, which the package's "
            f"family has"
        )
    return value


def _raised(what: str, error: BaseException) -> ValueError:
    line = " ".join(str(error).split()) or "no message"
    return ValueError(
        f"{what}: expected one that declares a family, received {type(error).__name__}: {line}"
    )


def _pickled(family: TaskFamily) -> Any:
    """A family of a user's file goes to another process by its name: it may hold any function."""
    for source, known in _FROM_FILES.items():
        if known is family:
            return named_family, (source,)
    return object.__reduce_ex__(family, 2)


copyreg.pickle(TaskFamily, _pickled)
