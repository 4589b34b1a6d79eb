"""dm_control's cartpole-swingup through Shimmy: the motor's strength and the pole's mass vary."""

import shimmy  # noqa: F401  (registers its environments)

from ssm_metarl import Setting, TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    "dm_control/cartpole-swingup-v0",
    {
        "motor": Setting("physics.model.actuator_gear[0][0]", Uniform(7, 14)),
        "pole": Setting("physics.model.body_mass[2]", Uniform(0.07, 0.15, unit="kg")),
    },
    max_episode_steps=1000,
)
