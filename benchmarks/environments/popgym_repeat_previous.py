"""POPGym's RepeatPrevious: how long ago the card was shown that is to be named varies."""

from popgym.envs.repeat_previous import RepeatPrevious

from ssm_metarl import Choice, TaskFamily

FAMILY = TaskFamily.from_gymnasium(RepeatPrevious, {"k": Choice((2, 3, 4))}, max_episode_steps=60)
