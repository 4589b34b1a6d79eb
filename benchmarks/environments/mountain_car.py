"""Gymnasium's MountainCar-v0: the motor's force and gravity vary."""

from ssm_metarl import TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    "MountainCar-v0", {"force": Uniform(0.0008, 0.002), "gravity": Uniform(0.002, 0.003)}
)
