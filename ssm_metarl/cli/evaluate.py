"""``ssm-metarl evaluate``: what a model does on tasks that no training drew.

Place in the flow: a command; the work is `evaluation.meta_evaluator` and `evaluation.report`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
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
    from ssm_metarl.evaluation.opened_model import OpenedModel


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
            check_adaptable(opened, config)
        with only_writer_of(self.report) if self.report else contextlib.nullcontext():
            return self._evaluate(opened, config)

    def _evaluate(self, opened: OpenedModel, config: EvaluationConfig) -> int:
        """Evaluate one model."""
        from ssm_metarl.evaluation.safety import measure_safety
        from ssm_metarl.methods.fixed_policy import search_fixed_policy

        if opened.policy.adapted:
            note(f"ssm-metarl: {opened.name} is adapted already: evaluated as it is, without the "
                 f"arms that adapt")  # fmt: skip
        fixed = None
        if self.worth:
            with Reporter("searching") as reporter:
                fixed = search_fixed_policy(
                    opened.family, seed=config.seed, on_step=reporter.update
                )
        with Reporter("evaluating") as reporter:
            result = opened.evaluate(config, reporter.update, fixed=fixed)
        if self.safety:
            with Reporter("measuring safety") as reporter:
                result["safety"] = measure_safety(
                    opened, opened.family, config, on_step=reporter.update
                )
        self._print(result, self._print_evaluation)
        if self.report is not None:
            other = replace(config, split="ood" if config.split == "id" else "id")
            with Reporter("evaluating the other split") as reporter:
                results: dict[str, dict[str, Any]] = {
                    config.split: result,
                    other.split: opened.evaluate(other, reporter.update, fixed=fixed),
                }
            if not self.json:
                self._print_evaluation(results[other.split])
            note(f"report: {self._write_report(opened, self.report, config, results)}")
        return 0

    def _print(
        self, result: Mapping[str, Any], in_words: Callable[[Mapping[str, Any]], None]
    ) -> None:
        (print_json if self.json else in_words)(result)

    def _print_evaluation(self, result: Mapping[str, Any]) -> None:
        print_evaluation(result)
        if "safety" in result:
            print_safety(result["safety"])
        if self.worth:
            print_worth(result)

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
        pair = ((first.policy, first.trained), (second.policy, second.trained))
        self._print(compare_models(pair, names, first.family, config), print_comparison)
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
            result = measure_drift(opened, opened.family, drift, config, on_step=reporter.update)
        self._print({"model": opened.name} | result, print_drift)
        return 0

    def _write_report(
        self,
        opened: OpenedModel,
        out: Path,
        config: EvaluationConfig,
        results: Mapping[str, Mapping[str, Any]],
    ) -> Path:
        """Write the report on both splits; returns the path of its page."""
        from ssm_metarl.evaluation.animation import record
        from ssm_metarl.evaluation.report import write_report

        return write_report(
            out,
            evaluations={SPLIT_TITLES[split]: results[split] for split in ("id", "ood")},
            training_log=opened.training_log,
            film=record(opened, opened.family, config),
            command=command_line("evaluate", self),
        )


def check_adaptable(opened: OpenedModel, config: EvaluationConfig) -> None:
    """Raise ValueError unless the model can take the evaluation's gradient step."""
    from ssm_metarl.evaluation.score import step_for
    from ssm_metarl.methods.standard import Standard

    opened.check_gradient("safety")
    reason = Standard(step_for(opened, config)).applies(opened, opened.family)
    if reason is not None:
        raise ValueError(f"safety: expected a model that can adapt: {reason}")


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
