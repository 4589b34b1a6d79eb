"""Gymnasium's Pendulum-v1: gravity, mass and length vary."""

from ssm_metarl import TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    "Pendulum-v1",
    {
        "g": Uniform(8, 12, unit="m/s^2"),
        "m": Uniform(0.7, 1.4, unit="kg"),
        "l": Uniform(0.7, 1.4, unit="m"),
    },
)
