"""Every way to adapt, in the order in which they run and are shown.

Place in the flow: stage 7, in front of the methods; evaluations ask here which there are, charts
and tables what one of them is called. A yardstick that needs no model joins in `yardsticks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ssm_metarl.config import EvaluationConfig
from ssm_metarl.methods.fixed_policy import FixedPolicy
from ssm_metarl.methods.frozen import Frozen, InContext
from ssm_metarl.methods.least_squares import LeastSquares
from ssm_metarl.methods.meta_trained import MetaTrained
from ssm_metarl.methods.method import Method, Model
from ssm_metarl.methods.random import Random
from ssm_metarl.methods.standard import Both, Hybrid, Standard
from ssm_metarl.methods.told import Probed, Told
from ssm_metarl.tasks.registry import FAMILIES
from ssm_metarl.tasks.task_family import TaskFamily

WAYS: tuple[type[Method], ...] = (InContext, Standard, Hybrid, Both)
"""The ways in which a model itself adapts."""


def methods_for(
    family: TaskFamily,
    trained: MetaTrained,
    config: EvaluationConfig,
    *,
    fixed: FixedPolicy | None = None,
) -> tuple[Method, ...]:
    """All methods that an evaluation may run on a family, whether they apply or not.

    Args:
        family: Its experts and probes are methods of their own.
        trained: How the model was meta-trained, where the settings of a step come from.
        config: Settings that differ from those.
        fixed: The best fixed policy known, if any.
    """
    standard = trained.adaptation(
        objective=config.objective,
        num_adapt_steps=config.num_adapt_steps,
        adapt_lr=config.adapt_lr,
        rollback=config.rollback,
    )
    hybrid = trained.hybrid(
        standard,
        experience_weight=config.experience_weight,
        replay=config.replay,
        proximal_weight=config.proximal_weight,
        seed=config.seed,
    )
    return (
        Random(),
        Frozen(),
        *(() if fixed is None else (fixed,)),
        InContext(),
        Standard(standard),
        Hybrid(hybrid),
        Both(standard),
        *yardsticks(family),
    )


def yardsticks(*families: TaskFamily) -> tuple[Method, ...]:
    """Controllers that need no model: experts, least squares, probes."""
    return (
        *(Told(name) for family in families for name in family.experts),
        LeastSquares(),
        *(Probed(probe) for family in families for probe in family.probes),
    )


def applying(
    methods: Iterable[Method], model: Model, family: TaskFamily
) -> tuple[tuple[Method, ...], dict[str, str]]:
    """Those that apply, and for each other one why not."""
    judged = [(method, method.applies(model, family)) for method in methods]
    return (
        tuple(method for method, reason in judged if reason is None),
        {method.name: reason for method, reason in judged if reason is not None},
    )


def known_methods() -> dict[str, type[Method] | Method]:
    """Every method that comes with the package, by name, in the order of display."""
    own: tuple[type[Method], ...] = (Random, Frozen, FixedPolicy, *WAYS)
    every: tuple[type[Method] | Method, ...] = (*own, *yardsticks(*FAMILIES.values()))
    return {str(method.name): method for method in every}


def in_order(names: Sequence[str]) -> list[str]:
    """Names of methods, known ones in the order of display, then the others."""
    known = known_methods()
    return [n for n in known if n in names] + [n for n in names if n not in known]
