"""``ssm-metarl train --mode in_context``: meta-training whose policy adapts by remembering (RL²).

Place in the flow: a command; the work is `training`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssm_metarl.cli.training import Mode, TrainingCommand
from ssm_metarl.command_line import part_of
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.tasks import names


@dataclass(frozen=True, kw_only=True)
class TrainInContext(TrainingCommand, InContextConfig):
    """Meta-train a policy that adapts within its hidden state, without a gradient step.

    Ctrl-C finishes the epoch, saves, and says how to resume. The last checkpoint counts.
    """

    family: Annotated[str, tyro.conf.arg(aliases=("--env-name",))] = names.FAMILY
    """Task family: a name, a Gymnasium id that names it, or my_plant.py:FAMILY."""
    mode: Mode = "in_context"
    """meta_rl and policy_gradient have other flags: see ssm-metarl train --mode MODE --help."""
    out: Path | None = None
    """Folder of the run, new or empty; None for the first free runs/FAMILY-seedN."""
    resume: Path | None = None
    """Continue the training in this folder, up to its old limits or to those given beside."""
    reproducible: bool = False
    """Give the same bits on every x86-64 processor with AVX2."""
    json: bool = False
    """Print the result as one JSON object."""

    def settings(self) -> InContextConfig:
        """What is to be trained."""
        return part_of(self, InContextConfig)
