"""target-gym's stirred tank reactor (JAX): how well it is cooled, and the inflow, vary."""

from target_gym import CSTR, gym_wrapper_factory

from ssm_metarl import Setting, TaskFamily, Uniform

FAMILY = TaskFamily.from_gymnasium(
    gym_wrapper_factory(CSTR),
    {
        "UA": Setting("env_params.UA", Uniform(4e4, 6e4)),
        "q": Setting("env_params.q", Uniform(90, 110)),
    },
    name="target_gym_cstr",
    max_episode_steps=100,
)
