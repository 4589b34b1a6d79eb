"""Gymnasium's LunarLander-v3 (Box2D): gravity and wind vary."""

from ssm_metarl import Choice, TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    "LunarLander-v3",
    {"gravity": Uniform(-11, -7, unit="m/s^2"), "enable_wind": Choice((False, True))},
    ood={"gravity": Uniform(-6, -4, also=((-11.9, -11.5),))},
)
