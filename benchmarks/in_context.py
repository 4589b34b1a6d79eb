"""Row `in_context`: recurrent PPO over trials, training included, against the same with a GRU.

Place in the flow: a row of `performance`. Everything but the sequence model is the same: worlds,
inputs, advantages, four passes over each batch, the optimiser.

Trials here are as long as a batch, so that the GRU (`gru`) never has to clear its state inside one:
it would have to be cut into pieces and be slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.gru import gru_trainer
from benchmarks.results import Measurement, compare
from benchmarks.settings import Settings
from benchmarks.timing import alternate
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.meta_rl.in_context import InContextMetrics, InContextTrainer
from ssm_metarl.tasks.cartpole import CARTPOLE

WIDTH = 128
FAMILY = replace(CARTPOLE, reflection=())
"""Without the mirrored histories, which would double the work of either model."""


def in_context(settings: Settings) -> list[Measurement]:
    """Environment steps a second of `InContextTrainer`, 128 wide, with either model."""
    warmup, repetitions = settings.choose((2, 8), (1, 2), (1, 1))
    tasks = settings.choose(512, 512, 8)
    rows = []
    cases = {"state32": 32, "state128": WIDTH}
    for done, (slug, state_dim) in enumerate(cases.items()):
        config = InContextConfig(
            hidden_dim=WIDTH,
            state_dim=state_dim,
            num_layers=1,
            tasks_per_epoch=tasks,
            steps_per_epoch=128,
            update_epochs=4,
            trial_episodes=128,
        )
        trainers = {
            "ours": InContextTrainer(config, FAMILY),
            "GRU": gru_trainer(config, FAMILY, width=WIDTH),
        }
        for trainer in trainers.values():
            for _ in range(warmup):
                trainer.run_epoch()
        run = InContextTrainer.run_epoch
        sources = {
            "ours": partial(_rate, trainers["ours"], run),
            # PyTorch's own operations in as many threads as it has
            "GRU": partial(_rate, trainers["GRU"], run.__wrapped__),  # type: ignore[attr-defined]
        }
        series = alternate(
            sources,
            repetitions,
            on_repetition=_progress(settings, done / len(cases), repetitions * len(cases), slug),
        )
        sizes = [trainer.policy.num_parameters() for trainer in trainers.values()]
        rows.append(
            compare(
                series,
                f"in_context/{slug}",
                f"1 layer, width {WIDTH}, state {state_dim}; {tasks} tasks x 128 steps, 4 passes",
                "GRU",
                unit="steps/s",
                rate=True,
                note=f"{sizes[0]:,} and {sizes[1]:,} parameters; GRU with a state of {WIDTH}",
            )
        )
    return rows


def _rate(trainer: InContextTrainer, run: Callable[[InContextTrainer], InContextMetrics]) -> float:
    before = trainer.env_steps
    metrics = run(trainer)
    return (metrics.env_steps - before) / metrics.seconds


def _progress(settings: Settings, start: float, total: int, slug: str) -> Callable[[int], None]:
    return lambda n: settings.progress(start + n / total, f"{slug}: epoch {n}")
