"""``ssm-metarl evaluate`` and ``verify``: what a model does on tasks that no training drew.

Place in the flow: a command; the work is `evaluation.meta_evaluator` and `evaluation.report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_metarl.cli.console import Reporter, note, print_evaluation, print_json
from ssm_metarl.config import EvaluationConfig

if TYPE_CHECKING:
    from ssm_metarl.checkpoint import Checkpoint
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.tasks.task_family import TaskFamily

NUM_ARMS = 6
SPLIT_TITLES = {"id": "in distribution", "ood": "out of distribution"}


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluationConfig):
    """Evaluate a model on held-out tasks, every arm on the same tasks and episodes."""

    model: str
    """A shipped name, a run's folder, a checkpoint or a .pth file."""
    report: Path | None = None
    """Also write a report (page, pictures, animation) on both splits to this folder."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Evaluate, print, and write the report if one is asked for."""
        names = [field.name for field in fields(EvaluationConfig)]
        config = EvaluationConfig(**{name: getattr(self, name) for name in names})
        with Reporter("evaluating") as reporter:
            result = evaluate_model(self.model, config, reporter=reporter)
        if self.json:
            print_json(result)
        else:
            print_evaluation(result)
        if self.report is not None:
            other = replace(config, split="ood" if config.split == "id" else "id")
            with Reporter("evaluating the other split") as reporter:
                results: dict[str, dict[str, Any]] = {
                    config.split: result,
                    other.split: evaluate_model(self.model, other, reporter=reporter),
                }
            if not self.json:
                print_evaluation(results[other.split])
            page = write_model_report(self.model, self.report, results, config)
            note(f"report: {page}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Run ten seeded episodes of a model and compare them with its card."""

    model: str
    """A shipped name, a run's folder, a checkpoint or a .pth file."""
    seed: int | None = None
    """Seed of the episodes; None for the card's, the only one that can be compared."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Verify; exit code 1 where the figures differ from the card's."""
        from ssm_metarl.evaluation.meta_evaluator import verify

        checkpoint, policy, family, trained = open_model(self.model)
        card = checkpoint.card.get("verification")
        seed = self.seed if self.seed is not None else (card or {}).get("seed", 0)
        measured = verify(policy, family, trained, seed=seed)
        comparable = card is not None and card["seed"] == seed
        matches = measured == card if comparable else None
        if self.json:
            print_json({"model": self.model, **measured, "matches_card": matches})
        else:
            print(
                f"{self.model}: ten episodes (seed {seed}), each on its own task, adapted from "
                f"{measured['support_steps']} steps: mean {measured['mean']:.1f} ± "
                f"{measured['std']:.1f}, minimum {measured['min']:g}, maximum "
                f"{measured['max']:g}, steps {measured['steps']}; without adapting "
                f"{measured['frozen_mean']:.1f}"
            )
            verdict = {True: "equal to the model's card", False: "NOT equal to the model's card",
                       None: "the model's card has no figures for this seed"}  # fmt: skip
            print(verdict[matches])
        return 1 if matches is False else 0


def open_model(model: str, family: str | None = None) -> tuple[Checkpoint, Policy, TaskFamily, Any]:
    """A model's checkpoint, its policy, its family, and how it was meta-trained."""
    from ssm_metarl.checkpoint import load_model
    from ssm_metarl.evaluation.meta_evaluator import MetaTrained
    from ssm_metarl.tasks.registry import family_of_env

    checkpoint = load_model(model)
    policy = checkpoint.policy()
    known = family_of_env(family or checkpoint.training.get("family", "cartpole"))
    check_family(policy, known)
    return checkpoint, policy, known, MetaTrained.from_training(checkpoint.training)


def check_family(policy: Policy, family: TaskFamily) -> None:
    """Raise ValueError unless the policy fits the family's observations and actions."""
    from ssm_metarl.env_runner.worlds import observation_and_action

    obs_dim, space = observation_and_action(family)
    if (policy.obs_dim, policy.action_space) != (obs_dim, space):
        raise ValueError(
            f"model: expected one for {family.name} (observations of size {obs_dim}, {space}), "
            f"received one for observations of size {policy.obs_dim}, {policy.action_space}"
        )


def evaluate_model(
    model: str, config: EvaluationConfig, *, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Evaluate a named model; the result is JSON-ready."""
    from ssm_metarl.evaluation.meta_evaluator import evaluate

    checkpoint, policy, family, trained = open_model(model, config.family)
    arms_done = 0

    def on_arm(arm: str) -> None:
        nonlocal arms_done
        if reporter is not None:
            reporter.update(min(1.0, arms_done / NUM_ARMS), arm)
        arms_done += 1

    return evaluate(
        policy,
        family,
        config,
        model=model,
        trained=trained,
        buffer=checkpoint.experience(),
        on_arm=on_arm,
    )


def write_model_report(
    model: str, out: Path, results: Mapping[str, Mapping[str, Any]], config: EvaluationConfig
) -> Path:
    """Write the report on both splits; returns the path of its page."""
    from ssm_metarl.checkpoint import find_model
    from ssm_metarl.cli.train import command_line
    from ssm_metarl.evaluation.meta_evaluator import flip_trajectories
    from ssm_metarl.evaluation.report import write_report
    from ssm_metarl.meta_rl.training_run import LOG_NAME

    _, policy, family, trained = open_model(model, config.family)
    before, after, task = flip_trajectories(
        policy, family, support_steps=config.support_steps, trained=trained, seed=config.seed
    )
    log = find_model(model).parent / LOG_NAME
    return write_report(
        out,
        evaluations={SPLIT_TITLES[split]: dict(results[split]) for split in ("id", "ood")},
        training_log=log if log.is_file() else None,
        before=before,
        after=after,
        flipped_task=task,
        command=command_line(),
    )
