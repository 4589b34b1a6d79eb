"""Generation 0: any model, as a checkpoint that a training can go on from.

Place in the flow: stage 8, the first thing that `agent` does with a new lineage.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from ssm_metarl.adaptation.inner_objective import check_unadapted
from ssm_metarl.checkpoint import Checkpoint, load_model, pack
from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.evaluation.episodes import check_declaration, check_family
from ssm_metarl.meta_rl.architecture import architecture
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.methods.meta_trained import can_adapt
from ssm_metarl.recursive_self_improvement.candidates import recipe_for
from ssm_metarl.recursive_self_improvement.config import OPERATIONAL, RSIConfig
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.store import name_of
from ssm_metarl.settings import rebuild
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.tasks.task_family import TaskFamily

ARCHITECTURE = ("core", "state_dim", "hidden_dim", "num_layers", "norm_dim", "memory")


def family_of(env: Environment | TaskFamily | str) -> TaskFamily:
    """The task family that was meant.

    Raises:
        ValueError: None belongs to it.
    """
    if isinstance(env, TaskFamily):
        return env
    if isinstance(env, str):
        return family_of_env(env)
    if env.family is None:
        raise ValueError(
            f"env: expected one that belongs to a task family, received {env}; pass a TaskFamily"
        )
    return env.family


def generation_zero(
    model: Policy | StateSpaceModel | Checkpoint | str | Path | None,
    env: Environment | TaskFamily | str | None,
) -> tuple[bytes, TaskFamily, int]:
    """A model as the bytes of a checkpoint with a recipe, its family and its size.

    A model that comes without its training (a policy, a ``.pth`` file) gets the default recipe
    for its architecture; it is then read as this version's policies are, with clipped
    observations and, where the family has one, its mirror.

    Raises:
        ValueError: There is no model, or it does not fit the family.
    """
    if model is None:
        raise ValueError("model: expected one to begin a lineage with, received None")
    checkpoint = _as_checkpoint(model)
    if checkpoint.adapted:
        original = checkpoint.adapted_from
        raise ValueError(
            "model: expected a meta-trained one, received one that is adapted already"
            + (f" (from {original!r}: give that one)" if original else "")
        )
    if checkpoint.policy_config.get("in_context", False):
        raise ValueError(
            "model: expected one that sees observations only, received one that adapts in context"
        )
    family = family_of(env or checkpoint.training.get("family", MetaTrainingConfig.family))
    check_declaration(checkpoint.trained_on, family)
    recipe = _recipe(checkpoint, family)
    if recipe.adaptation_steps == 0:
        raise ValueError(
            "model: expected one that was meta-trained for a gradient step, received one that was "
            "trained without any"
        )
    config = PolicyConfig.from_dict(checkpoint.policy_config)
    checkpoint = replace(
        checkpoint,
        policy_config=asdict(architecture(recipe, family, like=config)),
        training=asdict(recipe_for(recipe, recipe.seed, recipe.env_step_limit or 1)),
        calibration={},
        card={},
    )
    policy = checkpoint.policy()
    check_family(policy, family)
    if not can_adapt(policy, recipe.objective):
        raise ValueError(
            f"model: expected one that can adapt by {recipe.objective}, received one without the "
            f"outputs that it needs"
        )
    trainer = MetaTrainer(rebuild(MetaTrainingConfig, checkpoint.settings, "training"), family)
    tensors = trainer.tensors() | checkpoint.tensors  # an optimiser and a buffer, if it has none
    return pack(replace(checkpoint, tensors=tensors)), family, policy.num_parameters()


def family_of_lineage(
    lineage: Lineage,
    folder: Path,
    model: Policy | StateSpaceModel | Checkpoint | str | Path | None,
    env: Environment | TaskFamily | str | None,
    config: RSIConfig | None,
) -> TaskFamily:
    """The family of a lineage that is there, if it is the one that was asked for.

    Raises:
        ValueError: Another model, family or settings were asked for.
    """

    def mismatch(name: str, expected: str, received: str) -> ValueError:
        return ValueError(
            f"{name}: expected {expected} that this lineage began with, received {received}; "
            f"leave it out, or begin another lineage than {folder}"
        )

    default, first = asdict(RSIConfig()), asdict(lineage.config)
    changed = [
        name
        for name, value in asdict(config or lineage.config).items()
        if value not in (default[name], first[name]) and name not in OPERATIONAL
    ]
    if changed:
        raise mismatch("lineage", "the settings", f"others for {', '.join(changed)}")
    if model is not None:
        content, _, _ = generation_zero(model, env or lineage.family)
        if name_of(content) != lineage.first:
            raise mismatch("model", "the one", "another")
    family = family_of(env or lineage.family)
    if family.name != lineage.family:
        raise mismatch("env", repr(lineage.family), repr(family.name))
    return family


def _as_checkpoint(model: Policy | StateSpaceModel | Checkpoint | str | Path) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, (str, Path)):
        return load_model(model)
    policy = as_policy(model)
    check_unadapted(policy)
    return Checkpoint(
        policy_config=asdict(policy.config),
        tensors={f"policy.{n}": v for n, v in policy.state_dict().items()},
    )


def _recipe(checkpoint: Checkpoint, family: TaskFamily) -> MetaTrainingConfig:
    """The training that the model came from, or the default one for its architecture."""
    if checkpoint.training:
        return rebuild(MetaTrainingConfig, checkpoint.settings, "model: training")
    config = PolicyConfig.from_dict(checkpoint.policy_config)
    sizes = {name: getattr(config, name) for name in ARCHITECTURE}
    return MetaTrainingConfig(family=family.name, **sizes)
