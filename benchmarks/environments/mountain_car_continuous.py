"""Gymnasium's MountainCarContinuous-v0: the motor's power varies."""

from ssm_metarl import TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium("MountainCarContinuous-v0", {"power": Uniform(0.001, 0.002)})
