"""``ssm-metarl train --mode policy_gradient``: plain training of one environment.

Place in the flow: a command; the work is `meta_rl.single_task`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ssm_metarl.cli.console import Reporter, note, print_json
from ssm_metarl.cli.training import EXIT_DIVERGED, Mode
from ssm_metarl.command_line import command_line, part_of
from ssm_metarl.config import SingleTaskConfig

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.meta_rl.single_task import UpdateMetrics
    from ssm_metarl.tasks.task_family import TaskFamily

GREEDY_EPISODES = 50


@dataclass(frozen=True, kw_only=True)
class TrainPolicyGradient(SingleTaskConfig):
    """Train a policy on one environment with plain policy gradients, without meta-learning.

    Ctrl-C stops at once and saves nothing.
    """

    env_name: Annotated[str, tyro.conf.arg(aliases=("--family",))] = "CartPole-v1"
    """Gymnasium id of the environment, or my_plant.py:FAMILY for that family's default task."""
    mode: Mode = "policy_gradient"
    """meta_rl and in_context have other flags: see ssm-metarl train --help."""
    out: Path | None = None
    """Folder for the trained policy; None writes none. It must be new or empty."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Train, then run greedy episodes."""
        from ssm_metarl.cli.outputs import new_folder, only_writer_of
        from ssm_metarl.meta_rl.meta_maml import TrainingDiverged
        from ssm_metarl.meta_rl.single_task import save_single_task, train_single_task
        from ssm_metarl.tasks.registry import named_family
        from ssm_metarl.tasks.task_family import TaskFamily

        config = part_of(self, SingleTaskConfig)
        if ".py:" in self.env_name:
            family = named_family(self.env_name)
        else:
            family = TaskFamily.from_gymnasium(self.env_name, parameters={})
        with contextlib.ExitStack() as held:
            if self.out is not None:
                held.enter_context(only_writer_of(new_folder(self.out)))
            updates: list[UpdateMetrics] = []
            try:
                with Reporter("policy gradient") as reporter:

                    def on_update(update: UpdateMetrics) -> None:
                        updates.append(update)
                        message = f"{update.episodes} episodes, return {update.average_return:.0f}"
                        reporter.update(update.episodes / self.num_episodes, message)

                    policy = train_single_task(config, family, on_update)
            except TrainingDiverged as error:
                note(f"ssm-metarl: training stopped: {error}; nothing was saved")
                return EXIT_DIVERGED
            result = self._measure(policy, family, updates[-1])
            if self.out is not None:
                command = command_line("train --mode policy_gradient", config)
                save_single_task(self.out, policy, config, result, command)
                result["model"] = str(self.out)
        if self.json:
            print_json(result)
        else:
            print_result(result)
        return 0

    def _measure(self, policy: Policy, family: TaskFamily, last: UpdateMetrics) -> dict[str, Any]:
        from ssm_metarl.meta_rl.single_task import run_episodes

        greedy = run_episodes(
            policy,
            family,
            GREEDY_EPISODES,
            seed=self.seed,
            purpose="single-task-evaluation",
            greedy=True,
        ).episode_returns()
        return {
            "env_name": self.env_name,
            "seed": self.seed,
            "episodes": last.episodes,
            "env_steps": last.env_steps,
            "greedy_episodes": greedy.numel(),
            "mean": float(greedy.mean()),
            "std": float(greedy.std(correction=0)),
            "min": float(greedy.min()),
            "max": float(greedy.max()),
        }


def print_result(result: dict[str, Any]) -> None:
    """The result in words."""
    print(
        f"{result['env_name']}: {result['episodes']} finished episodes, "
        f"{result['env_steps']:,} environment steps; {result['greedy_episodes']} greedy episodes: "
        f"mean {result['mean']:.1f} ± {result['std']:.1f}, minimum {result['min']:g}, maximum "
        f"{result['max']:g}"
    )
    if "model" in result:
        print(f"model: {result['model']}")
