"""Gymnasium environments that a training makes once, and closes when it is over.

Place in the flow: stage 2, around a training's loop; `gymnasium_worlds` asks here for environments
and gives them back. Some take 50 ms to make, and a training needs new worlds in every epoch.

The trap: an environment that is given another task's parameters must be that task's. So it is asked
once (`follows_afterwards`), and where it is not, environments are made anew for each task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssm_metarl.tasks.gymnasium_world import GymnasiumWorld
    from ssm_metarl.tasks.task_family import TaskFamily


class KeptEnvironments:
    """Environments that wait for the next worlds of their family, in place of new ones."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[GymnasiumWorld] | None] = {}
        """By the family's id; None for one whose environments are made anew for each task."""
        self._lent: dict[GymnasiumWorld, list[GymnasiumWorld]] = {}
        self._families: list[TaskFamily] = []  # an id is theirs as long as they live

    def lend(self, family: TaskFamily, values: Mapping[str, Any]) -> GymnasiumWorld | None:
        """An environment in a task of the family; None where it must be built with its task."""
        from ssm_metarl.tasks.gymnasium_verify import follows_afterwards
        from ssm_metarl.tasks.gymnasium_world import GymnasiumWorld

        if id(family) not in self._waiting:
            self._families.append(family)
            self._waiting[id(family)] = [] if follows_afterwards(family) else None
        waiting = self._waiting[id(family)]
        if waiting is None:
            return None
        if waiting:
            world = waiting.pop()
            world.set(values)
        else:
            world = GymnasiumWorld(family, values)
        self._lent[world] = waiting
        return world

    def take_back(self, world: GymnasiumWorld) -> bool:
        """Whether it was lent; then it waits again."""
        waiting = self._lent.pop(world, None)
        if waiting is not None:
            waiting.append(world)
        return waiting is not None

    def close(self) -> None:
        """Close those that wait."""
        for waiting in self._waiting.values():
            for world in waiting or ():
                world.close()
        self._waiting = {}


KEPT: ContextVar[KeptEnvironments | None] = ContextVar("kept_environments", default=None)


@contextmanager
def kept_environments() -> Iterator[None]:
    """Within it, environments are made once and given new parameters, and are closed at its end.

    Where setting a parameter on an environment that is built is not the same as building it with
    the parameter (`follows_afterwards`), they are made anew for each task as ever.
    """
    if KEPT.get() is not None:  # the outer one closes them
        yield
        return
    kept = KeptEnvironments()
    token = KEPT.set(kept)
    try:
        yield
    finally:
        KEPT.reset(token)
        kept.close()
