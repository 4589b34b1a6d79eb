"""The task families that come with the package, by name and by environment id.

Place in the flow: stage 1; the command line turns what a user typed into a family here. A family
that one declares oneself is passed as an object and needs no registration.
"""

from __future__ import annotations

from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.cartpole_scrambled import CARTPOLE_SCRAMBLED
from ssm_metarl.tasks.pendulum import PENDULUM
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.tasks.told import told

FAMILIES = {family.name: family for family in (CARTPOLE, CARTPOLE_SCRAMBLED, PENDULUM)}
TOLD = {family.name: family for family in map(told, FAMILIES.values())}
"""The same families, their tasks told: for comparison, not offered beside the others."""


DECLARE = (
    "declare your own, such as "
    'TaskFamily.from_gymnasium("Pendulum-v1", parameters={"g": Uniform(5, 15, unit="m/s²")})'
)


def family_of_env(env_id: str, advice: str = DECLARE) -> TaskFamily:
    """The family of a Gymnasium id (``CartPole-v1``) or of a family's own name (``cartpole``).

    With ``_told`` behind the name its tasks are told (``cartpole_told``).

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
    known = ", ".join(
        f"{f.name} ({f.gymnasium_id})" if f.gymnasium_id else f.name for f in FAMILIES.values()
    )
    raise ValueError(f"task family: expected one of {known}, received {env_id!r}; {advice}")
