"""``ssm-metarl train --mode policy_gradient``: plain training of one environment.

Place in the flow: a command; the work is `ssm_metarl.training`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssm_metarl.cli.console import Reporter, note, print_json
from ssm_metarl.cli.train import EXIT_DIVERGED, Mode
from ssm_metarl.command_line import part_of
from ssm_metarl.config import SingleTaskConfig
from ssm_metarl.tasks import names


@dataclass(frozen=True, kw_only=True)
class TrainPolicyGradient(SingleTaskConfig):
    """Train a policy on one environment with plain policy gradients, without meta-learning.

    Ctrl-C stops at once and saves nothing.
    """

    env_name: Annotated[str, tyro.conf.arg(aliases=("--family",))] = names.ENVIRONMENT
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
        from ssm_metarl.meta_rl.gradient_steps import TrainingDiverged
        from ssm_metarl.tasks.registry import named_family
        from ssm_metarl.training import train_one_task

        config = part_of(self, SingleTaskConfig)
        family = named_family(self.env_name) if ".py:" in self.env_name else None
        with contextlib.ExitStack() as held:
            if self.out is not None:
                held.enter_context(only_writer_of(new_folder(self.out)))
            try:
                with Reporter("policy gradient") as reporter:
                    _, result = train_one_task(
                        config, family=family, on_progress=reporter.update, out=self.out
                    )
            except TrainingDiverged as error:
                note(f"ssm-metarl: training stopped: {error}; nothing was saved")
                return EXIT_DIVERGED
        if self.json:
            print_json(result)
            return 0
        print(
            f"{result['env_name']}: {result['episodes']} finished episodes, "
            f"{result['env_steps']:,} environment steps; {result['greedy_episodes']} greedy "
            f"episodes: mean {result['mean']:.1f} ± {result['std']:.1f}, minimum "
            f"{result['min']:g}, maximum {result['max']:g}"
        )
        if self.out is not None:
            print(f"model: {self.out}")
        return 0
