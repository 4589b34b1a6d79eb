"""target-gym's airliner (JAX): its thrust and the wings' lift vary."""

from target_gym import GymnasiumPlane

from ssm_metarl import Setting, TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    GymnasiumPlane,
    {
        "thrust": Setting("env_params.thrust_output_at_sea_level", Uniform(2e5, 3e5, unit="N")),
        "lift": Setting("env_params.cl_alpha", Uniform(0.07, 0.1)),
    },
    name="plane",
    max_episode_steps=200,
)
