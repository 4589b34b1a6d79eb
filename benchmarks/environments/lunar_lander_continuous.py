"""Gymnasium's LunarLanderContinuous-v3 (Box2D): gravity varies."""

from ssm_metarl import TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    "LunarLanderContinuous-v3",
    {"gravity": Uniform(-11, -7, unit="m/s^2")},
    ood={"gravity": Uniform(-6, -4, also=((-11.9, -11.5),))},
)
