"""What is trained for the comparison: one configuration for each model of each family.

Place in the flow: the beginning of `adaptation`; `training` runs a configuration once a seed.
Nothing here was chosen on the tasks that the comparison is made on (seed 30000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.adaptation.arms import NOTHING
from ssm_metarl.config import MetaTrainingConfig, Objective
from ssm_metarl.config_in_context import InContextConfig

Arms = Literal["gradient", "gradient_weighed", "in_context", "both", "multi_task", "frozen"]
"""What a model can be scored in; `gradient_weighed` leaves the ablation of uniform replay out."""
Size = Literal["whole", "quick"]
QUICK_ENV_STEPS = 40_000
FEW_PUSHES: dict[str, Any] = {"tasks_per_epoch": 16, "push_probability": 0.01, "spread_starts": 0.5}
"""A policy that has not adapted reads off the cart's velocity which way it pushed last; many pushes
hide that. One policy for all tasks has 498 on `cartpole` with these settings, and 261 with those of
the models that adapt."""
YARDSTICK_SEEDS = 2
"""Of models that nothing is claimed about."""
OBJECTIVES: tuple[Objective, ...] = ("prediction", "policy_gradient")


@dataclass(frozen=True)
class Recipe:
    """How one of the compared models is trained."""

    config: MetaTrainingConfig | InContextConfig
    arms: Arms
    """What it can be scored in."""
    start: str | None = None
    """The recipe whose model, of the same family and seed, it starts from."""
    gru: bool = False
    """A GRU of as many parameters in place of the state space model."""
    seeds: int = 10
    """The most seeds that it is trained on."""

    def at(self, seed: int, size: Size, start: Path | None) -> MetaTrainingConfig | InContextConfig:
        """The configuration of one training.

        Args:
            seed: Names every random number of it.
            size: "quick" trains next to nothing, to try the command out.
            start: Checkpoint of the model that it starts from.
        """
        config = replace(self.config, seed=seed)
        if isinstance(config, MetaTrainingConfig) and start is not None:
            config = replace(config, start=str(start))
        if size == "quick":
            config = replace(config, num_epochs=None, max_env_steps=QUICK_ENV_STEPS)
        return config


@dataclass(frozen=True)
class Pair:
    """Two arms to be compared wherever both are."""

    model: str
    arm: str
    reference_model: str
    reference_arm: str
    reference_after: str | None = None
    """The data of the reference; None for as much as the arm had."""

    @property
    def name(self) -> str:
        """The difference in words."""
        ours, theirs = (self.model, self.arm), (self.reference_model, self.reference_arm)
        return f"{title(*ours)} - {title(*theirs)}"


def title(model: str, arm: str) -> str:
    """An arm of a model in words."""
    if model == "yardsticks":
        return arm
    if arm in ("in_context", "frozen") and model not in ("prediction", "policy_gradient"):
        return model
    return f"{arm} ({model})"


def _gradient(family: str, objective: Objective, **other: Any) -> MetaTrainingConfig:
    """Meta-training for a gradient step; limits of adaptation are left out (rule 1 stays)."""
    support: dict[str, Any] = (
        {}
        if objective == "prediction"
        # A return needs episodes: twenty steps without a fall say nothing.
        else {
            "support_policy": "policy",
            "min_support_steps": 100,
            "max_support_steps": 400,
            "adaptation_steps": 1,
        }
    )
    settings = {
        "tasks_per_epoch": 32,
        "push_probability": 0.03,
        "spread_starts": 0.7,
        "calibration_tasks": 0,
        **support,
        **other,
    }
    return MetaTrainingConfig(family=family, objective=objective, **settings)


GENTLE: dict[str, Any] = {
    "outer_lr": 4e-4,
    "inner_lr": 5e-4,
    "min_support_steps": 5,
    "max_support_steps": 40,
}
"""For a step on top of a context. With the rates of a fresh model, 10 and 40 times these, the
context is gone before the step is learned: of 478 on `cartpole_scrambled` less than 100 was left.
And it is trained on such short data as it is scored on."""
CARTPOLE_STEPS, CARTPOLE_STEPS_OF_BOTH = 2_000_000, 1_450_000
CARTPOLE_CONTEXT = InContextConfig(
    family="cartpole",
    max_env_steps=CARTPOLE_STEPS,
    push_probability=0.03,
    spread_starts=0.7,
    entropy_coef=0.02,
)
SCRAMBLED_STEPS, SCRAMBLED_STEPS_OF_BOTH = 300_000, 300_000
SCRAMBLED_CONTEXT = InContextConfig(
    family="cartpole_scrambled",
    hidden_dim=96,
    tasks_per_epoch=128,
    minibatches=16,
    lr=0.003,
    imitation_coef=1.0,
    max_env_steps=6_000_000,
)


def _recipes(
    context: InContextConfig, steps: int, steps_of_both: int, **gradient: Any
) -> dict[str, Recipe]:
    """The models of one family."""
    recipes = {"in_context": Recipe(context, "in_context")}
    for objective in OBJECTIVES:
        config = _gradient(context.family, objective, max_env_steps=steps, **gradient)
        ablated = objective == "prediction" or context.family == "cartpole"
        recipes[objective] = Recipe(config, "gradient" if ablated else "gradient_weighed")
    for objective in OBJECTIVES:
        config = _gradient(
            context.family,
            objective,
            max_env_steps=steps_of_both,
            in_context=True,
            hidden_dim=context.hidden_dim,
            push_probability=context.push_probability,
            spread_starts=context.spread_starts,
            **GENTLE,
        )
        recipes[f"both_{objective}"] = Recipe(config, "both", "in_context")
    told = _gradient(
        f"{context.family}_told", "prediction", max_env_steps=steps, adaptation_steps=0, **gradient
    )
    plain = replace(told, family=context.family, **FEW_PUSHES)
    return recipes | {
        "multi_task": Recipe(plain, "multi_task"),
        "memoryless": Recipe(replace(plain, memory=False), "frozen", seeds=YARDSTICK_SEEDS),
        "told": Recipe(told, "frozen", seeds=YARDSTICK_SEEDS),
    }


RECIPES: dict[str, dict[str, Recipe]] = {
    "cartpole": _recipes(CARTPOLE_CONTEXT, CARTPOLE_STEPS, CARTPOLE_STEPS_OF_BOTH)
    | {"gru": Recipe(CARTPOLE_CONTEXT, "in_context", gru=True, seeds=YARDSTICK_SEEDS)},
    "cartpole_scrambled": _recipes(
        SCRAMBLED_CONTEXT, SCRAMBLED_STEPS, SCRAMBLED_STEPS_OF_BOTH, hidden_dim=64
    ),
}
"""By family and model."""

PAIRS = (
    Pair("both_prediction", "both", "in_context", "in_context"),
    Pair("both_policy_gradient", "both", "in_context", "in_context"),
    Pair("both_prediction", "both", "both_prediction", "without_step"),
    Pair("both_policy_gradient", "both", "both_policy_gradient", "without_step"),
    Pair("prediction", "standard", "prediction", "frozen", NOTHING),
    Pair("policy_gradient", "standard", "policy_gradient", "frozen", NOTHING),
    Pair("prediction", "standard", "in_context", "in_context"),
    Pair("prediction", "hybrid", "prediction", "standard"),
    Pair("policy_gradient", "hybrid", "policy_gradient", "standard"),
    Pair("prediction", "standard", "multi_task", "fine_tuned"),
    Pair("policy_gradient", "standard", "multi_task", "fine_tuned"),
    Pair("in_context", "in_context", "multi_task", "fine_tuned"),
    Pair("in_context", "in_context", "yardsticks", "least_squares"),
)
"""What is compared with what; models of two seeds are not."""
