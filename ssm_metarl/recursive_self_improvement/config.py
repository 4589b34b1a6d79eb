"""Every threshold, tolerance and budget of recursive self-improvement, with its default.

Place in the flow: stage 8, under everything in this folder. No torch here: the daemon reads its
settings before it loads anything. Points are hundredths of the family's range of returns:
where they go from 0 to 1,000, a point is 10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from ssm_metarl.settings import Count, Positive, Weight, check_fields, require

OPERATIONAL = ("train_timeout", "memory_limit_mb", "min_free_mb")
"""Settings that decide nothing, and may be others whenever a lineage goes on."""


@dataclass(frozen=True, kw_only=True)
class RSIConfig:
    """Recursive self-improvement: what a generation may spend, and what a change must prove."""

    seed: int = 0
    """Names every random number of the lineage: tasks, trainings, proposals."""

    num_candidates: Count = 6
    """Proposed changes in a generation; a control and a placebo train beside them."""
    train_steps: Count = 200_000
    """Environment steps that each of them trains on."""
    max_env_steps: Count | None = None
    """Environment steps of the whole lineage, trainings and evaluations; None for no limit."""
    screen_pairs: tuple[int, ...] = (16, 32, 64)
    """Paired tasks after which the worse half of the candidates drops out, ascending."""
    confirm_pairs: Count = 1000
    """Most pairs of the first confirmation; later ones may take more, as their alpha shrinks."""
    attribution_pairs: Count = 256
    """Most pairs that ask whether the change or the training alone made the difference."""
    canary_pairs: Count = 1000
    """Most pairs on which a new champion is watched; harm brings the old one back."""
    batch_pairs: Count = 64
    """Pairs that are measured at once, between two looks at the verdict."""

    alpha: float = 0.05
    """Chance of any false upgrade in the lineage's whole life."""
    guardrail_alpha: float = 0.05
    """Chance that a guardrail passes a change that breaks it."""
    attribution_alpha: float = 0.05
    """Chance that a training's gain is put down to a change that brought none."""
    canary_alpha: float = 0.01
    """Chance of any false rollback in the lineage's whole life."""
    give_up_alpha: float = 0.05
    """A confirmation ends early where it would take this much luck for the change to be good."""
    margin: float = 0.01
    """What a model with more parameters must gain, as a share of the range of returns."""
    smaller_tolerance: float = 0.002
    """What a model with fewer parameters may lose against the best champion ever."""
    tolerance: float = 0.05
    """What a guardrail may lose against the champion, as a share of the range of returns."""

    support_steps: Count = 20
    """Environment steps of data that a policy adapts from."""
    curve_steps: tuple[int, ...] = (5, 10, 20)
    """Lengths of data of the adaptation curve; the last is ``support_steps``."""
    return_bounds: tuple[float, float] | None = None
    """Least and greatest return possible; None for those that the family declares."""

    max_failures: Count = 3
    """Failed generations in a row after which everything halts."""
    floor: float = 0.5
    """A generation fails whose champion has less than this share of the first one's return."""
    max_parameters: Count = 50_000
    """Largest model that may be proposed."""
    train_timeout: Positive = 3600.0
    """Seconds after which a job counts as hung."""
    memory_limit_mb: Positive = 4000.0
    """Memory of a worker above which its job is ended."""
    min_free_mb: Weight = 32.0
    """Room on the disk below which the lineage pauses."""
    keep_champions: Count = 5
    """Past champions whose weights stay on disk, beside the first one and the best one."""
    audit_tasks: Count = 400
    """Vault tasks of an audit."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (
            "alpha", "guardrail_alpha", "attribution_alpha", "canary_alpha", "give_up_alpha"
        ):  # fmt: skip
            require(0 < getattr(self, name) < 1, name, "between 0 and 1", getattr(self, name))
        for name in ("margin", "smaller_tolerance", "tolerance", "floor"):
            require(0 <= getattr(self, name) < 1, name, "0 to 1", getattr(self, name))
        for name in ("screen_pairs", "curve_steps"):
            values = getattr(self, name)
            require(len(values) > 0 and values[0] >= 1 and list(values) == sorted(set(values)),
                    name, "ascending numbers of at least 1", values)  # fmt: skip
        require(self.curve_steps[-1] == self.support_steps, "curve_steps",
                f"{self.support_steps} (support_steps) as the last", self.curve_steps)  # fmt: skip
        bounds = self.return_bounds
        require(bounds is None or (len(bounds) == 2 and bounds[0] < bounds[1]
                                   and all(map(math.isfinite, bounds))), "return_bounds",
                "None, or the least and the greatest return", bounds)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RSIRun(RSIConfig):
    """A run of recursive self-improvement, in the foreground or as a daemon."""

    model: str | None = None
    """Generation 0: a shipped name, a run's folder or a checkpoint; none to continue a lineage."""
    family: str | None = None
    """Task family: a name, or my_plant.py:FAMILY; None for the model's or the lineage's own."""
    cycles: Count | None = None
    """Generations to run; None until it is told to stop."""
    executor: Literal["local", "ray"] = "local"
    """Where candidates run: worker processes on this machine, or a Ray cluster."""
    workers: Count | None = None
    """Worker processes (local); None for one a processor."""
    ray_address: str | None = None
    """Address of the Ray cluster; None starts one on this machine."""

    @property
    def settings(self) -> RSIConfig:
        """The lineage's settings, without those of the run."""
        return RSIConfig(**{f.name: getattr(self, f.name) for f in fields(RSIConfig)})
