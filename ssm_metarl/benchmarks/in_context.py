"""Row `in_context`: recurrent PPO over trials, training included, against the same with a GRU.

Place in the flow: a row of `performance`. Everything but the sequence model is the same: worlds,
inputs, advantages, four passes over each batch, the optimiser.

The trap: `torch.nn.GRU` cannot clear its state in the middle of a sequence. Trials here are as long
as a batch, so that it never has to; with shorter ones it would be cut into pieces and be slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssm_metarl.benchmarks.results import Measurement, compare
from ssm_metarl.benchmarks.settings import Settings
from ssm_metarl.benchmarks.timing import alternate
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import LinearHeads, Policy
from ssm_metarl.meta_rl.in_context import InContextMetrics, InContextTrainer
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.types import Params

WIDTH = 128
FAMILY = replace(CARTPOLE, mirror=False)
"""Without the mirrored histories, which would double the work of either model."""


class GRUModel(nn.Module):
    """A linear encoder and a `torch.nn.GRU`, as a `SequenceModel` with shared parameters."""

    def __init__(self, input_dim: int, width: int = WIDTH) -> None:
        super().__init__()
        self.input_dim, self.output_dim, self.hidden_size = input_dim, width, width
        self.encoder, self.gru = nn.Linear(input_dim, width), nn.GRU(width, width)

    def kernel(self, readouts: Sequence[tuple[int, int]] = ()) -> None:
        """None: PyTorch's own operations."""

    def unroll(
        self, params: Params, x: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `SequenceModel.unroll`; states are cleared before the first step only."""
        if bool(reset[1:].any()):
            raise ValueError("GRUModel: expected no reset inside a sequence, received one")
        state = (hidden * ~reset[0, ..., None]).flatten(0, 1)[None]  # (1, K N, D)
        rows = x.flatten(1, 2)  # under shared parameters tasks are environments
        features = nn.functional.linear(rows, params["encoder.weight"], params["encoder.bias"])
        weights = {n[4:]: params[n] for n in params if n.startswith("gru.")}
        out, last = functional_call(self.gru, weights, (features, state))
        return out.view(*x.shape[:-1], -1), last.view(*hidden.shape)


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
        trainers = {"ours": InContextTrainer(config, FAMILY), "GRU": gru_trainer(config)}
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


def gru_trainer(config: InContextConfig) -> InContextTrainer:
    """The same training of a GRU."""
    trainer = InContextTrainer(config, FAMILY)
    like = trainer.policy
    with torch.random.fork_rng(devices=[]):  # the initialisers draw from the global generator
        torch.manual_seed(config.seed)
        core = GRUModel(like.input_dim)
        heads = LinearHeads(core.output_dim, like.action_space, like.obs_dim)
    trainer.policy = Policy(
        core,
        heads,
        obs_scale=tuple(like.obs_scale.tolist()),
        obs_limit=tuple(like.obs_limit.tolist()),
        in_context=True,
        inner_lr=0.01,
    )
    trainer.optimizer = torch.optim.Adam(
        trainer.policy.meta_params().values(), lr=config.lr, eps=1e-5
    )
    return trainer


def _rate(trainer: InContextTrainer, run: Callable[[InContextTrainer], InContextMetrics]) -> float:
    before = trainer.env_steps
    metrics = run(trainer)
    return (metrics.env_steps - before) / metrics.seconds


def _progress(settings: Settings, start: float, total: int, slug: str) -> Callable[[int], None]:
    return lambda n: settings.progress(start + n / total, f"{slug}: epoch {n}")
