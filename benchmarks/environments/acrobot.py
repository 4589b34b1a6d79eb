"""Gymnasium's Acrobot-v1: the first link's mass and length vary."""

from ssm_metarl import TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    "Acrobot-v1",
    {"LINK_MASS_1": Uniform(0.7, 1.4, unit="kg"), "LINK_LENGTH_1": Uniform(0.7, 1.4, unit="m")},
)
