"""Does adapting ever hurt? The safeguard and the change detector, measured on held-out tasks.

Place in the flow: stage 7, beside `meta_evaluator`; ``ssm-metarl evaluate --safety`` prints it.
Limits come from the model's `Calibration` and are only obeyed here, never set.

An adaptation to support data that lie (shuffled actions) is harmless if it was undone, or if the
return stays within `MARGIN` of the unadapted policy's. The change detector judges windows of the
adapted policy's own episodes, on the same plant (an alarm is false) and on disturbed ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.evaluation.calibration import own_window_errors
from ssm_metarl.evaluation.episodes import shuffle_actions
from ssm_metarl.evaluation.score import Score, score, support_for
from ssm_metarl.evaluation.statistics import mean_and_worst
from ssm_metarl.methods.frozen import Frozen
from ssm_metarl.methods.method import Method, Model
from ssm_metarl.methods.standard import Standard
from ssm_metarl.objectives.prediction import target_spread
from ssm_metarl.tasks.task_family import TaskFamily, Tasks
from ssm_metarl.types import Params, Rollout

SHOWN_STEPS = (1, 2, 3, 5, 10)
MARGIN = 0.004
"""What an adaptation to lying data may cost and still count as harmless, as a share of the range of
returns: of the family's, or else of those that were seen."""

DEFINITIONS = {
    "num_adapt_steps": "gradient steps asked for",
    "steps_kept": "gradient steps kept, mean over tasks",
    "rolled_back": "share of tasks on which a step was undone",
    "falls_after_a_kept_step": "share of tasks whose return falls, by any amount, from one kept "
    "step to the next, over ten steps",
    "harmless": f"share of tasks that were rolled back to the unadapted policy, or whose return "
    f"is below its by at most {MARGIN:.1%} of the range of returns (where that is worth nothing, "
    f"nothing can be lost)",
    "false_alarms": "share of unchanged plants that the change detector calls changed",
    "flips_found": "share of plants that it calls changed under the family's disturbance flip; of "
    "others likewise",
}


@usual_modes()
def measure_safety(
    model: Model,
    family: TaskFamily,
    config: EvaluationConfig,
    *,
    on_step: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Measure what the safeguard and the change detector do on held-out tasks.

    Args:
        model: Under evaluation; stays untouched.
        family: Whose held-out tasks are drawn.
        config: Split, tasks, seed, support data and rate; its ``num_adapt_steps``, ``rollback``
            and ``shuffle_actions`` do not matter here.
        on_step: Called with the share done and what comes next.

    Returns:
        A JSON-ready object: ``more_steps``, ``falls_after_a_kept_step``, ``shuffled_actions``,
        ``change_detector`` (absent without a calibration) and ``definitions``.
    """
    tell = on_step or (lambda share, what: None)
    tasks = family.sample(config.split, config.num_tasks, seed=config.seed)
    support = support_for(model, tasks, replace(config, shuffle_actions=False))
    step = model.trained.adaptation(objective=config.objective, adapt_lr=config.adapt_lr)

    def scored(method: Method, data: Rollout = support) -> Score:
        (row,) = score(
            (method,), model, tasks, data, num_episodes=config.episodes_per_task, seed=config.seed
        ).scores
        return row

    tell(0.0, "unadapted")
    frozen = before = scored(Frozen()).per_task
    fell = np.zeros(len(tasks), dtype=bool)
    kept_before = np.zeros(len(tasks), dtype=int)
    rows = []
    most = SHOWN_STEPS[-1]
    for steps in range(1, most + 1):
        tell(steps / (most + 4), f"{steps} step(s)")
        settings = replace(step, num_adapt_steps=steps)
        row = scored(Standard(settings))
        after, kept = row.per_task, np.array([report.num_steps for report in row.reports])
        fell |= (after < before) & (kept > kept_before)
        before, kept_before = after, kept
        if steps in SHOWN_STEPS:
            free = scored(Standard(replace(settings, rollback=False))).per_task
            rows.append(
                {
                    "num_adapt_steps": steps,
                    **mean_and_worst(after),
                    "steps_kept": float(kept.mean()),
                    "rolled_back": float(np.mean(kept < steps)),
                    "without_rollback": mean_and_worst(free),
                }
            )
    tell((most + 1) / (most + 4), "shuffled actions")
    lied_to = scored(Standard(step), shuffle_actions(support, seed=config.seed))
    undone = np.array([report.num_steps == 0 for report in lied_to.reports])
    seen = np.concatenate([frozen, lied_to.per_task])
    low, high = family.return_bounds or (float(seen.min()), float(seen.max()))
    harmless = undone | (frozen - lied_to.per_task <= MARGIN * (high - low))
    tell((most + 2) / (most + 4), "change detector")
    adapted, _ = StandardAdapter(step).adapt_tasks(model.policy, support)
    detector = _change_detector(model.policy, adapted, support, tasks, config.seed)
    return {
        "more_steps": rows,
        "falls_after_a_kept_step": float(fell.mean()),
        "shuffled_actions": {
            "rolled_back": float(undone.mean()),
            "harmless": float(np.mean(harmless)),
        },
        "definitions": DEFINITIONS,
        **({"change_detector": detector} if detector else {}),
    }


def _change_detector(
    policy: Policy, params: Params, support: Rollout, tasks: Tasks, seed: int
) -> dict[str, float]:
    """Alarms of the change detector on the plants adapted to, and on the same ones disturbed."""
    limits = policy.calibration
    if limits is None or limits.max_prediction_error is None:
        return {}
    disturbances = tasks.family.disturbances.items()
    plants = {"false_alarms": tasks} | {f"{n}s_found": change(tasks) for n, change in disturbances}
    spread = target_spread(policy, support)
    shares = {}
    for name, plant in plants.items():
        errors = own_window_errors(policy, params, spread, plant, window=limits.window, seed=seed)
        shares[name] = float(np.mean(~(errors <= limits.max_prediction_error)))
    return shares
