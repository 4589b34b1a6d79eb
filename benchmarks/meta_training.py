"""Row `meta_training`: environment steps a second of a real meta-training.

Place in the flow: a row of `performance`; its peer is `task_loop`, its floor `floors`.

The training warms up for real first, so that episodes are as long as in most of a training. Then
each repetition runs one epoch of `MetaTrainer` and the same epoch as a loop over tasks, from the
same parameters: same tasks, support lengths, inner steps and horizon.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.floors import Rates, epoch_work, measure_rates
from benchmarks.plain_policy import Style
from benchmarks.results import Measurement, compare
from benchmarks.settings import Settings
from benchmarks.task_loop import TaskLoop
from benchmarks.timing import (
    Series,
    Spread,
    alternate,
    limited_threads,
    suitable_threads,
)
from ssm_metarl.config import Core, MetaTrainingConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.meta_rl.trainer import MetaTrainer

CORES: tuple[Core, ...] = ("state_space", "diagonal")
"""The model of the demo, and the default."""
LOOPS: dict[str, Style] = {
    "task loop, cell by cell": "cell",
    "task loop, layer by layer": "layer",
}
QUICK_TASKS = 2
"""Of the meta-batch, that a loop runs in a quick benchmark: its rate is about that of all."""


@dataclass
class Pair:
    """A training and its peers, which start each repetition where the training stands."""

    trainer: MetaTrainer
    rates: Rates
    quick: bool
    over_floor: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    loops: dict[str, TaskLoop] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)
    before: Policy | None = None
    epoch: int = 0

    def ours(self) -> float:
        """Environment steps a second of the training's next epoch."""
        trainer = self.trainer
        self.before, self.epoch = copy.deepcopy(trainer.policy), trainer.epoch
        steps = trainer.env_steps
        metrics = trainer.run_epoch()
        taken = metrics.env_steps - steps
        support = metrics.support_steps * trainer.config.tasks_per_epoch
        assert trainer.policy.config is not None
        work = epoch_work(
            trainer.policy.config,
            trainer.config,
            support_steps=support,
            query_steps=taken - support,
            inner_steps=metrics.inner_steps,
            num_params=trainer.policy.num_parameters(),
        )
        self.floors.append(self.rates.seconds(work, taken) / taken)
        self.over_floor.append(metrics.seconds / taken / self.floors[-1])
        return taken / metrics.seconds

    def theirs(self, name: str) -> float:
        """The same epoch as a loop over tasks."""
        assert self.before is not None
        trainer = self.trainer
        if name not in self.loops:
            self.loops[name] = TaskLoop(self.before, trainer.config, trainer.family, LOOPS[name])
            self.threads[name], _ = suitable_threads(self.loops[name].probe)
        self.loops[name].copy_from(self.before)
        with limited_threads(self.threads[name]):
            return self.loops[name].run_epoch(self.epoch, num_tasks=self.num_tasks).rate

    @property
    def num_tasks(self) -> int:
        """How many tasks of the meta-batch a loop runs."""
        all_tasks = self.trainer.config.tasks_per_epoch
        return min(QUICK_TASKS, all_tasks) if self.quick else all_tasks


def meta_training(settings: Settings) -> list[Measurement]:
    """Environment steps a second against loops over tasks, and time over the floor."""
    rows = []
    for done, core in enumerate(CORES):
        progress = partial(_part_of, settings.progress, done / len(CORES), core)
        rows += one_core(replace(settings, progress=progress), core)
    return rows


def _part_of(
    progress: Callable[[float, str], None], before: float, core: Core, share: float, message: str
) -> None:
    progress(before + share / len(CORES), f"{core}: {message}")


def one_core(settings: Settings, core: Core) -> list[Measurement]:
    """The same for one sequence model."""
    trainer = MetaTrainer(replace(settings.training or MetaTrainingConfig(), core=core))
    warmup, repetitions = settings.choose((36, 8), (12, 2), (1, 1))
    for done in range(warmup):
        trainer.run_epoch()
        settings.progress(0.3 * done / warmup, f"warm-up epoch {done + 1}")
    pair = Pair(trainer, measure_rates(), settings.quick)
    sources: dict[str, Callable[[], float]] = {"ours": pair.ours}
    sources |= {peer: partial(pair.theirs, peer) for peer in LOOPS}
    series = alternate(
        sources,
        repetitions,
        on_repetition=lambda n: settings.progress(0.3 + 0.7 * n / repetitions, f"epoch {n}"),
    )
    series = Series(series.figures, series.failures, pair.threads)
    config = trainer.config
    case = (
        f"{core}: {config.tasks_per_epoch} tasks x {config.episodes_per_task} episodes, "
        f"{config.update_epochs} outer steps"
    )
    rows = []
    note = f"the loop ran {pair.num_tasks} of these tasks, one after the other as it would all"
    for peer in LOOPS:
        slug = peer.rpartition(", ")[2].replace(" ", "_")
        rows.append(
            compare(
                series,
                f"meta_training/{core}/{slug}",
                case,
                peer,
                unit="steps/s",
                rate=True,
                note="" if pair.num_tasks == config.tasks_per_epoch else note,
            )
        )
    over = Spread.of(pair.over_floor)
    floor = Spread.of(pair.floors).median
    rows.append(
        Measurement(
            name=f"meta_training/{core}/floor",
            case=case,
            peer="floor",
            unit="µs/step",
            ours=floor * over.median * 1e6,
            theirs=floor * 1e6,
            kind="over",
            ratio=over,
            floor=floor * 1e6,
            over_floor=over,
            note="products, element-wise passes and physics at the best rates measured",
        )
    )
    return rows
