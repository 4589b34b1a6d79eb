"""Train one candidate: the champion, changed as proposed, on its own data for a fixed budget.

Place in the flow: stage 8, after `proposals`. A `Training` is a job that `executor` runs; what it
returns goes on to screening.

A champion carries its recipe (the training's configuration) and its optimiser; a candidate takes
both over, with its architecture grown or shrunk (`growth`) and the proposed fields changed, and
trains on. The learning rate starts afresh and decays over the candidate's own budget. A network
that was shrunk is kickstarted: it also learns to act as the champion does, for the first half.

The control is a training without a change, the placebo one more with another seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_metarl.recursive_self_improvement.proposals import ARCHITECTURE, MOVES

if TYPE_CHECKING:
    from ssm_metarl.checkpoint import Checkpoint
    from ssm_metarl.config import MetaTrainingConfig
    from ssm_metarl.meta_rl.trainer import MetaTrainer

MAX_RELATIVE_CHANGE = 1e-5
"""Growing an architecture may not change the function by more, relative to its largest output."""
SAVE_EVERY = 25  # epochs


@dataclass(frozen=True)
class Trained:
    """What a training made."""

    weights: bytes
    """A checkpoint (`checkpoint.pack`)."""
    parameters: int
    """Size of the network."""
    env_steps: int
    """Environment steps it took."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Train a candidate: a pure function of its fields, but for the files in ``work``."""

    parent: bytes
    """The champion (`checkpoint.pack`), with its recipe."""
    family: Any
    """The `TaskFamily`."""
    changes: Mapping[str, Any]
    """Fields of `MetaTrainingConfig`, with their new values."""
    seed: int
    """Of the training."""
    env_steps: int
    """Budget."""
    max_parameters: int
    """Size cap."""
    work: str | None = None
    """Folder for a checkpoint, from which a training that was killed goes on bit for bit."""

    def __call__(self) -> Trained:
        """Grow, train, pack.

        Raises:
            ValueError: A gate refuses the change before anything is trained.
            TrainingDiverged: A number is not finite.
        """
        from ssm_metarl.checkpoint import FILE_NAME, pack, save_checkpoint, unpack

        parent = unpack(self.parent, "parent")
        start, shrunk = prepare(parent, self.changes, self.family, self.seed, self.env_steps)
        parameters = start.policy().num_parameters()
        if parameters > self.max_parameters:
            raise ValueError(
                f"parameters: expected at most {self.max_parameters:,}, received {parameters:,}"
            )
        trainer = self._trainer(start)
        if shrunk:
            trainer.teacher = parent.policy()

        def now() -> Checkpoint:
            return replace(start, tensors=trainer.tensors(), counters=trainer.counters())

        while trainer.progress < 1:
            trainer.run_epoch()
            if self.work is not None and trainer.epoch % SAVE_EVERY == 0:
                save_checkpoint(Path(self.work) / FILE_NAME, now())
        return Trained(pack(now()), parameters, trainer.env_steps)

    def _trainer(self, start: Checkpoint) -> MetaTrainer:
        """The training, where it was left."""
        from ssm_metarl.checkpoint import FILE_NAME, load_checkpoint
        from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
        from ssm_metarl.meta_rl.trainer import MetaTrainer
        from ssm_metarl.settings import rebuild

        config = rebuild(MetaTrainingConfig, start.settings, "training")
        trainer = MetaTrainer(config, self.family, like=PolicyConfig.from_dict(start.policy_config))
        if self.work is not None and (Path(self.work) / FILE_NAME).is_file():
            saved = load_checkpoint(self.work)
            if saved.training == asdict(config):
                trainer.restore(saved.tensors, saved.counters)
                return trainer
        trainer.restore(start.tensors, {"epoch": 0, "env_steps": 0, "recent_return": 0.0})
        return trainer


def prepare(
    parent: Checkpoint, changes: Mapping[str, Any], family: Any, seed: int, env_steps: int
) -> tuple[Checkpoint, bool]:
    """The candidate before its first epoch: the static gate.

    Returns:
        The checkpoint with its new recipe, and whether the network lost anything.

    Raises:
        ValueError: A field that may not be changed, a value out of range, or a growth that
            changed the function.
    """
    import torch

    from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
    from ssm_metarl.recursive_self_improvement.growth import relative_change, resize
    from ssm_metarl.settings import rebuild

    if unknown := sorted(set(changes) - set(MOVES)):
        raise ValueError(f"changes: expected fields among {sorted(MOVES)}, received {unknown}")
    old = rebuild(MetaTrainingConfig, parent.settings, "training")
    sizes = {name: changes[name] for name in ARCHITECTURE if name in changes}
    before = PolicyConfig.from_dict(parent.policy_config)
    grown = parent
    if sizes:
        grown = resize(parent, sizes, seed=seed)
        old = rebuild(MetaTrainingConfig, grown.settings, "training")
    shrunk = any(value < getattr(before, name) for name, value in sizes.items())
    if sizes and not shrunk:
        # In float64: how far float32 rounds the same function depends on the processor.
        change = relative_change(parent, grown, seed=seed, dtype=torch.float64)
        if not change <= MAX_RELATIVE_CHANGE:
            raise ValueError(
                f"growth: expected a relative change of the function of at most "
                f"{MAX_RELATIVE_CHANGE:g}, received {change:g}"
            )
    others = {name: value for name, value in changes.items() if name not in sizes}
    recipe = recipe_for(replace(old, **others), seed, env_steps)
    return replace(grown, training=asdict(recipe), calibration={}, card={}), shrunk


def recipe_for(config: MetaTrainingConfig, seed: int, env_steps: int) -> MetaTrainingConfig:
    """The same training with another seed and budget, on the processor, without limits set."""
    return replace(
        config,
        seed=seed,
        max_env_steps=env_steps,
        num_epochs=None,
        device="cpu",
        calibration_tasks=0,
    )
