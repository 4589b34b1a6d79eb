"""``ssm-metarl train``: meta-training over a task family, for a gradient step at test time.

Place in the flow: a command; the work is `training`. Its siblings are `train_in_context` and,
without meta-learning, `policy_gradient`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ssm_metarl.cli.training import Mode, TrainingCommand
from ssm_metarl.command_line import part_of
from ssm_metarl.config import MetaTrainingConfig
from ssm_metarl.tasks import names


@dataclass(frozen=True, kw_only=True)
class Train(TrainingCommand, MetaTrainingConfig):
    """Meta-train a policy over a task family (--mode in_context, both, policy_gradient: otherwise).

    Ctrl-C finishes the epoch, saves, and says how to resume. The last checkpoint counts.
    """

    family: Annotated[str, tyro.conf.arg(aliases=("--env-name",))] = names.FAMILY
    """Task family: a name, a Gymnasium id that names it, or my_plant.py:FAMILY."""
    norm_dim: Annotated[int | None, tyro.conf.Suppress] = None  # growing a model sets it
    in_context: Annotated[bool, tyro.conf.Suppress] = False  # --mode both sets it
    device: str | None = None  # type: ignore[assignment]  # None tells it from one that was given
    """Where it computes: cpu, whose kernels are compiled, or cuda, by PyTorch's own operations.
    None for cpu, and on resuming for where it computed before."""
    mode: Mode = "meta_rl"
    """in_context and policy_gradient have other flags: see ssm-metarl train --mode MODE --help."""
    out: Path | None = None
    """Folder of the run, new or empty; None for the first free runs/FAMILY-seedN."""
    resume: Path | None = None
    """Continue the training in this folder, up to its old limits or to those given beside."""
    reproducible: bool = False
    """Give the same bits on every x86-64 processor with AVX2."""
    json: bool = False
    """Print the result as one JSON object."""

    def settings(self) -> MetaTrainingConfig:
        """What is to be trained."""
        given = replace(self, device="cpu" if self.device is None else self.device)
        return replace(part_of(given, MetaTrainingConfig), in_context=self.mode == "both")
