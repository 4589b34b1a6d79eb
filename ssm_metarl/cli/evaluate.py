"""``ssm-metarl evaluate``: what a model does on tasks that no training drew.

Place in the flow: a command; the work is `evaluation.meta_evaluator` and `evaluation.report`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_metarl.cli.console import (
    SPLIT_TITLES,
    Reporter,
    announce_compilation,
    note,
    print_comparison,
    print_drift,
    print_evaluation,
    print_json,
    print_safety,
    print_worth,
)
from ssm_metarl.cli.outputs import make_folder, only_writer_of
from ssm_metarl.command_line import command_line, part_of
from ssm_metarl.config import EvaluationConfig

if TYPE_CHECKING:
    from ssm_metarl.evaluation.animation import Film
    from ssm_metarl.evaluation.opened_model import OpenedModel
    from ssm_metarl.methods.fixed_policy import FixedPolicy


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluationConfig):
    """Evaluate a model on held-out tasks, every arm on the same tasks and episodes."""

    model: str | None = None
    """A shipped name, a run's folder, a checkpoint or a .pth file."""
    compare: tuple[str, str] | None = None
    """Instead of --model: two models, for a paired test of the first against the second."""
    drift: str | None = None
    """Instead: the plant changes inside an episode, by a disturbance of its family (such as flip:
    the actuator turns round) or by its parameters moving (parameters); who goes on controlling
    it?"""
    safety: bool = False
    """Also measure what the safeguard and the change detector do: 17 more arms to run."""
    worth: bool = False
    """Is adapting worth it here? Also search the best fixed policy, some ten seconds, and say what
    every arm closes of the gap between it and a controller that is told everything."""
    report: Path | None = None
    """Also write a report (page, pictures, animation) on both splits to this folder."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Evaluate, print, and write the report if one is asked for."""
        from ssm_metarl.evaluation.opened_model import open_model

        config = part_of(self, EvaluationConfig)
        if self.compare is not None:
            return self._compare(self.compare, config)
        if self.model is None:
            raise ValueError("--model: expected a value, received none (or --compare A B)")
        opened = open_model(self.model, self.family)
        if self.drift is not None:
            return self._drift(self.drift, opened, config)
        if self.report is not None:  # an hour of evaluation should not end in a typing mistake
            prepare_report(self.report)
        if self.safety:
            self._check_adaptable(opened)
        with contextlib.ExitStack() as held:
            if self.report is not None:
                held.enter_context(only_writer_of(self.report))
            return self._evaluate(opened, config)

    def _evaluate(self, opened: OpenedModel, config: EvaluationConfig) -> int:
        """Evaluate one model."""
        if opened.policy.adapted:
            note(f"ssm-metarl: {opened.name} is adapted already: evaluated as it is, without the "
                 f"arms that adapt")  # fmt: skip
        fixed = found_fixed_policy(opened, config) if self.worth else None
        with Reporter("evaluating") as reporter:
            result = opened.evaluate(config, reporter.update, fixed=fixed)
        if self.safety:
            result["safety"] = measured_safety(opened, config)
        if self.json:
            print_json(result)
        else:
            print_evaluation(result)
            if self.safety:
                print_safety(result["safety"])
            if self.worth:
                print_worth(result)
        if self.report is not None:
            other = replace(config, split="ood" if config.split == "id" else "id")
            with Reporter("evaluating the other split") as reporter:
                results: dict[str, dict[str, Any]] = {
                    config.split: result,
                    other.split: opened.evaluate(other, reporter.update, fixed=fixed),
                }
            if not self.json:
                print_evaluation(results[other.split])
                if self.worth:
                    print_worth(results[other.split])
            page = self._write_report(opened, self.report, results)
            note(f"report: {page}")
        return 0

    def _compare(self, names: tuple[str, str], config: EvaluationConfig) -> int:
        """Run the gate's paired test on its own."""
        from ssm_metarl.evaluation.opened_model import open_model
        from ssm_metarl.recursive_self_improvement.comparison import compare_models

        if self.model or self.drift or self.safety or self.worth or self.report:
            raise ValueError(
                "compare: expected no --model, --drift, --safety, --worth or --report beside it, "
                "received one"
            )
        first, second = (open_model(name, self.family) for name in names)
        if first.family != second.family:
            raise ValueError(
                f"compare: expected models of one family, received {first.family.name!r} and "
                f"{second.family.name!r}"
            )
        for opened in (first, second):
            opened.check_gradient("compare")
        announce_compilation()
        result = compare_models(
            ((first.policy, first.trained), (second.policy, second.trained)),
            names,
            first.family,
            config,
        )
        if self.json:
            print_json(result)
        else:
            print_comparison(result)
        return 0

    def _drift(self, drift: str, opened: OpenedModel, config: EvaluationConfig) -> int:
        """Let plants change inside an episode."""
        from ssm_metarl.evaluation.drift import measure_drift

        if self.safety or self.worth or self.report:
            raise ValueError(
                "drift: expected no --safety, --worth or --report beside it, received one"
            )
        if not opened.policy.in_context:
            opened.check_gradient("drift")
        with Reporter("evaluating") as reporter:
            result = measure_drift(
                opened.policy, opened.family, drift, config, opened.trained, on_step=reporter.update
            )
        result = {"model": opened.name} | result
        if self.json:
            print_json(result)
        else:
            print_drift(result)
        return 0

    def _check_adaptable(self, opened: OpenedModel) -> None:
        from ssm_metarl.methods.standard import Standard

        opened.check_gradient("safety")
        method = Standard(opened.trained.adaptation(objective=self.objective))
        if (reason := method.applies(opened.model, opened.family)) is not None:
            raise ValueError(f"safety: expected a model that can adapt: {reason}")

    def _write_report(
        self, opened: OpenedModel, out: Path, results: Mapping[str, Mapping[str, Any]]
    ) -> Path:
        """Write the report on both splits; returns the path of its page."""
        from ssm_metarl.evaluation.report import write_report

        return write_report(
            out,
            evaluations={SPLIT_TITLES[split]: results[split] for split in ("id", "ood")},
            training_log=opened.training_log,
            film=film(opened, part_of(self, EvaluationConfig)),
            command=command_line("evaluate", self),
        )


def measured_safety(opened: OpenedModel, config: EvaluationConfig) -> dict[str, Any]:
    """What the safeguard and the change detector do, measured with progress."""
    from ssm_metarl.evaluation.safety import measure_safety

    with Reporter("measuring safety") as reporter:
        return measure_safety(
            opened.policy, opened.family, config, opened.trained, on_step=reporter.update
        )


def found_fixed_policy(opened: OpenedModel, config: EvaluationConfig) -> FixedPolicy:
    """The best fixed policy that a search finds, with progress."""
    from ssm_metarl.methods.fixed_policy import search_fixed_policy

    with Reporter("searching") as reporter:
        return search_fixed_policy(opened.family, seed=config.seed, on_step=reporter.update)


def prepare_report(out: Path) -> None:
    """Make the report's folder.

    Raises:
        ValueError: The packages that draw it are missing, or a file is in the way.
        OSError: The folder cannot be made.
    """
    missing = [name for name in ("matplotlib", "PIL") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"report: expected matplotlib and pillow, received neither or one of them "
            f"({', '.join(missing)} missing); pip install 'ssm-metarl[report]'"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"report: expected a folder, received the file {out}")
    make_folder(out)


def film(opened: OpenedModel, config: EvaluationConfig) -> Film | None:
    """The report's two episodes on a disturbed plant; None where there is nothing to draw."""
    from ssm_metarl.evaluation.animation import can_film, record
    from ssm_metarl.methods.standard import Standard

    method = Standard(
        opened.trained.adaptation(
            objective=config.objective,
            num_adapt_steps=config.num_adapt_steps,
            adapt_lr=config.adapt_lr,
            rollback=config.rollback,
        )
    )
    if not can_film(opened.family) or method.applies(opened.model, opened.family) is not None:
        return None
    support_policy = config.support_policy or opened.trained.support_policy
    model = replace(opened.model, trained=replace(opened.trained, support_policy=support_policy))
    return record(
        model, opened.family, method, support_steps=config.support_steps, seed=config.seed
    )
