"""What may be proposed: whitelisted changes of a training's configuration, never code.

Place in the flow: stage 8, after the baseline. `candidates` applies a change and trains it.

A proposal is a move away from the champion's own configuration: a factor for each size and rate, a
step for each count (`MOVES`). A third of a generation are moves of 20 % of one dimension of the
architecture, a third of one hyperparameter, and a third are asked of Optuna's TPE (Bergstra et al.
2011) over all moves at once, which has been told how earlier ones did in screening.

No proposer is reliably better than another; what makes self-improvement honest is the `gate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ssm_metarl import seeding
from ssm_metarl.config import MetaTrainingConfig

Proposal = dict[str, float]
"""A move of some fields: a factor, or a step where the field is a count; others stay."""
Changes = dict[str, Any]
"""The fields that a proposal changes, with their new values."""


@dataclass(frozen=True)
class Move:
    """How one field may be moved."""

    low: float
    high: float
    """Bounds of the field's value."""
    choices: tuple[float, ...] = ()
    """The moves there are; empty for any factor from 1/2 to 2."""
    step: bool = False
    """Whether a move is added; otherwise it multiplies."""

    @property
    def nothing(self) -> float:
        """The move that changes nothing."""
        return 0.0 if self.step else 1.0


SMALLER, LARGER = 0.8, 1.2  # the documented moves of 20 %
ARCHITECTURE = {
    "state_dim": Move(2, 512, (SMALLER, 1.0, LARGER)),
    "hidden_dim": Move(2, 512, (SMALLER, 1.0, LARGER)),
    "num_layers": Move(1, 8, (-1.0, 0.0, 1.0), step=True),
}
HYPERPARAMETERS = {
    "outer_lr": Move(1e-4, 2e-2),
    "inner_loss_coef": Move(1e-3, 1.0),
    "clip_coef": Move(0.02, 0.5),
    "tasks_per_epoch": Move(4, 128),
    "episodes_per_task": Move(2, 16),
    "update_epochs": Move(1, 8, (-1.0, 0.0, 1.0), step=True),
    "push_probability": Move(1e-3, 0.1),
    "spread_starts": Move(0.05, 1.0),
}
MOVES = ARCHITECTURE | HYPERPARAMETERS
WHOLE = (*ARCHITECTURE, "tasks_per_epoch", "episodes_per_task", "update_epochs")
"""Fields that are whole numbers."""
MOST_DRAWS = 100
"""Draws of single moves in vain after which there are no more: few fields, many proposals."""
FIRST_TRIALS = 12
"""Trials that TPE draws at random before it models anything."""


def moves_of(config: MetaTrainingConfig) -> dict[str, Move]:
    """The moves that a configuration allows: layers are `DiagonalSSM`'s alone."""
    return {n: m for n, m in MOVES.items() if n != "num_layers" or config.core == "diagonal"}


def changes_of(proposal: Mapping[str, float], config: MetaTrainingConfig) -> Changes:
    """The fields that a proposal changes, with their new values inside the bounds.

    Raises:
        ValueError: A field that is not on the list.
    """
    changes: Changes = {}
    allowed = moves_of(config)
    for name, by in proposal.items():
        if name not in allowed:
            raise ValueError(f"proposal: expected fields among {sorted(allowed)}, received {name}")
        move, old = allowed[name], getattr(config, name)
        if name == "hidden_dim":
            old = config.width
        # A recipe that lies outside moves towards the bounds, never because it lies outside.
        low, high = min(move.low, old), max(move.high, old)
        new = min(max(old + by if move.step else old * by, low), high)
        if name in WHOLE:
            new = round(new)
            if new == old and by != move.nothing:  # 20 % of a small number is less than one
                new = int(min(max(old + (1 if by > move.nothing else -1), low), high))
        if new != old:
            changes[name] = new
    return changes


def propose(
    config: MetaTrainingConfig,
    history: Sequence[tuple[Proposal, float]],
    *,
    seed: int,
    generation: int,
    count: int,
) -> list[Proposal]:
    """The proposals of a generation, none of which changes nothing.

    Args:
        config: The champion's training.
        history: Earlier proposals with their mean difference in screening, oldest first.
        seed: Of the lineage.
        generation: Which one; with the seed it names every random number.
        count: Proposals.
    """
    allowed = moves_of(config)
    rng = seeding.generator(seed, "rsi-proposals", generation)
    study = _study(allowed, history, int(rng.integers(2**31)))
    proposals: list[Proposal] = []
    in_vain = 0
    while len(proposals) < count:
        kind = (ARCHITECTURE, HYPERPARAMETERS, None)[len(proposals) % 3]
        if kind is None or in_vain > MOST_DRAWS:
            proposal = dict(study.ask(_distributions(allowed)).params)
        else:
            name = str(rng.choice([n for n in kind if n in allowed]))
            moves = [m for m in allowed[name].choices if m != allowed[name].nothing]
            proposal = {name: float(rng.choice(moves or [SMALLER, LARGER]))}
        if changes_of(proposal, config) and proposal not in proposals:
            proposals.append(proposal)
            in_vain = 0
        else:
            in_vain += 1
    return proposals


def require_optuna() -> None:
    """Raise ValueError unless Optuna is installed."""
    if find_spec("optuna") is None:
        raise ValueError(
            "rsi: expected Optuna, which proposes changes, received none; "
            "pip install 'ssm-metarl[search]'"
        )


def _study(
    allowed: Mapping[str, Move], history: Sequence[tuple[Proposal, float]], seed: int
) -> Any:
    """A study in memory that knows the history: the ledger is what lasts."""
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST_TRIALS)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = _distributions(allowed)
    for proposal, score in history:
        params = {n: proposal.get(n, m.nothing) for n, m in allowed.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=score)
        )
    return study


def _distributions(allowed: Mapping[str, Move]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    factor = FloatDistribution(0.5, 2.0, log=True)
    return {
        name: CategoricalDistribution(move.choices) if move.choices else factor
        for name, move in allowed.items()
    }
