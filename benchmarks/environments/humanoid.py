"""Gymnasium's Humanoid-v5 (MuJoCo), of 348 observations: the torso's mass varies."""

from ssm_metarl import Setting, TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    "Humanoid-v5", {"torso": Setting("model.body_mass[1]", Uniform(6, 12, unit="kg"))}
)
