"""An actuator that may be wired the wrong way round, as families with equations share it.

Place in the flow: stage 1, beside `task_parameter`. With sign -1 a plant does the opposite of what
an action asks for. No single observation tells the sign; what an action did tells it.
"""

from __future__ import annotations

from ssm_metarl.tasks.task_family import Tasks
from ssm_metarl.tasks.task_parameter import Choice, TaskParameter

EITHER = Choice((-1.0, 1.0))


def signed(name: str, meaning: str) -> TaskParameter:
    """A parameter that is +1 or -1, out of distribution too."""
    return TaskParameter(name, "", 1.0, EITHER, EITHER, meaning=meaning)


def flip(tasks: Tasks) -> Tasks:
    """The same plants, their actuators the other way round."""
    return tasks.changed(sign=-tasks.values["sign"])
