"""Gymnasium environments that a training makes once, and closes when it is over.

Place in the flow: stage 2, around a training's loop; `gymnasium_worlds` takes environments from
here and puts them back. Some take 50 ms to make, and a training needs new worlds in every epoch.

The trap: an environment that is given another task's parameters must be that task's. So it is asked
once (`follows_afterwards`), and where it is not, environments are made anew for each task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ssm_metarl.tasks.gymnasium_verify import follows_afterwards
from ssm_metarl.tasks.gymnasium_world import GymnasiumWorld
from ssm_metarl.tasks.task_family import TaskFamily

Waiting = list[GymnasiumWorld]
_KEPT: ContextVar[dict[int, tuple[TaskFamily, Waiting | None]] | None] = ContextVar(
    "kept environments", default=None
)
"""By the family's id, which is its own as long as it is kept here, too."""


def waiting_environments(family: TaskFamily) -> Waiting | None:
    """Environments that wait for another task of the family, to be taken from and put back to.

    None where each must be built with its task, or nobody keeps them.
    """
    kept = _KEPT.get()
    if kept is None or family.plant is None:
        return None
    if id(family) not in kept:
        follows = follows_afterwards(family.plant, family.parameters)
        kept[id(family)] = family, ([] if follows else None)
    return kept[id(family)][1]


@contextmanager
def kept_environments() -> Iterator[None]:
    """Within it, environments are made once and given new parameters, and are closed at its end.

    Where setting a parameter on an environment that is built is not the same as building it with
    the parameter (`follows_afterwards`), they are made anew for each task as ever.
    """
    if _KEPT.get() is not None:  # the outer one closes them
        yield
        return
    kept: dict[int, tuple[TaskFamily, Waiting | None]] = {}
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)
        for _, waiting in kept.values():
            for world in waiting or ():
                world.close()
