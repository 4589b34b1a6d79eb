"""``ssm-metarl adapt``: adapt a model to a named task or a plant's log, and save the policy.

Place in the flow: a command; the work is `adaptation.standard_adapter` and `hybrid_adapter`, and
`experience.plant_log` and `adaptation.log_check` where a plant's own log is given.

Where nothing was learned from the data, nothing is written: whoever takes the file for an adapted
policy, as a script does, would run the plant with the old one.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ssm_metarl.cli.console import announce_compilation, print_json
from ssm_metarl.command_line import PROGRAM, changed, command_line, flag
from ssm_metarl.config import AdaptationMode, EvaluationConfig, SupportSettings
from ssm_metarl.settings import Count, in_one_line, require
from ssm_metarl.tasks import names

if TYPE_CHECKING:
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.evaluation.opened_model import OpenedModel
    from ssm_metarl.tasks.task_family import Tasks
    from ssm_metarl.types import Rollout

REFUSED = 4
"""Exit code where the data are none to adapt to, and nothing was written."""
SIMULATED = ("task", "support_steps", "support_policy", "episodes")
"""Flags that say nothing about a plant's own log."""


@dataclass(frozen=True, kw_only=True)
class Adapt(SupportSettings):
    """Adapt a model to one task, such as --task '{"PARAMETER": 7}', and save it.

    With --data it adapts to the plant that wrote a CSV or Parquet file, without an environment. A
    row is one moment, columns in any order: the observations (by the family's names, in its units:
    ssm-metarl families; or obs_0, obs_1, ...), the action then taken (0, 1, ..., or its numbers),
    and, if you like, time in seconds, reward, and what tells episodes apart (episode, terminated,
    done, ...). An episode's last row has no action. Rows are one time step of the family apart. A
    log that a late action, another rate, a frozen or mirrored sensor or another plant explains
    better than the family's plants is refused; of one in which the plant changes, what follows the
    change is used. What no log can tell: whether its actions are coded the other way round. So what
    an action was found to do is printed, such as "x_dot +0.2": action 1 adds that much in a step.

    Exit code 4: the data are none to adapt to, or no step was kept; nothing is written.
    """

    model: str
    """A shipped name, a run's folder, a checkpoint or a .pth file."""
    task: str = "{}"
    """The task's parameters as JSON; what is missing keeps its default."""
    data: Path | None = None
    """CSV or Parquet file of the plant to adapt to, instead of a task."""
    out: Path | None = None
    """File for the adapted policy; None for adapted.safetensors. Never overwritten."""
    mode: AdaptationMode = "standard"
    """standard: this task's data; hybrid: also replayed experience, which grows by this task's data
    and is saved with the adapted policy."""
    experience: Path | None = None
    """What to replay instead of the model's own experience (hybrid): a buffer's file, or a model,
    such as an adapted one, whose experience has grown."""
    rollback: bool = True
    """Undo a step that the safeguard finds harmful, and end there; False keeps every step, whatever
    the log."""
    episodes: Count = 4
    """Greedy episodes before and after, to show the difference."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None:
            ignored = [flag(name) for name in changed(self) if name in SIMULATED]
            require(not ignored, "data", "no flags of a simulated task beside it",
                    ", ".join(ignored))  # fmt: skip
        require(self.experience is None or self.mode == "hybrid", "experience",
                "mode 'hybrid' beside it", self.mode)  # fmt: skip

    def run(self) -> int:
        """Take or collect support data, adapt, save, show the difference."""
        from ssm_metarl.adaptation.log_check import LogRefused
        from ssm_metarl.checkpoint import Checkpoint, save_checkpoint
        from ssm_metarl.cli.outputs import new_file
        from ssm_metarl.evaluation.episodes import collect_support
        from ssm_metarl.evaluation.opened_model import open_experience, open_model

        parameters = parse_task(self.task)
        announce_compilation()
        opened = open_model(self.model, self.family)
        if self.num_adapt_steps > 0 or not opened.policy.adapted:  # without one it stays as it is
            opened.check_gradient("model")
        out = self.out or Path("adapted.safetensors")
        if out.suffix == ".pth":
            raise ValueError(f"out: expected a .safetensors file, received {out}")
        config = opened.trained.adaptation(
            objective=self.objective,
            num_adapt_steps=self.num_adapt_steps,
            adapt_lr=self.adapt_lr,
            rollback=self.rollback,
        )
        if self.experience is not None:
            opened = replace(opened, buffer=open_experience(self.experience))
        buffer = opened.experience(config) if self.mode == "hybrid" else None
        tasks = None if self.data is not None else opened.family.task(parameters)
        result: dict[str, Any] = {"model": self.model, "family": opened.family.name}
        if tasks is None:
            target = result["data"] = str(self.data)
            try:
                support, result["notes"], result["effects"] = self._log(opened)
            except LogRefused as refused:
                return self._refuse(result | {"refused": refused.reason}, str(refused))
        else:
            behaviour = self.support_policy or opened.trained.support_policy
            support = collect_support(
                opened.policy, tasks, self.support_steps, behaviour, seed=self.seed
            )
        new_file(out)
        adapted = opened.adapt(support, self.mode, config, seed=self.seed)
        if tasks is not None:
            settings = EvaluationConfig(episodes_per_task=self.episodes, seed=self.seed)
            result["task"], target = tasks.as_dicts()[0], describe(tasks)
            result["before"], result["after"] = (
                episode_returns(p, tasks, settings) for p in (opened.policy, adapted)
            )
        report = adapted.report
        result |= {"mode": self.mode, "report": asdict(report), "out": str(out)}
        if report.rolled_back is not None and report.num_steps == 0:
            result |= {"out": None, "refused": report.rolled_back}
            return self._refuse(result, f"the first step was undone: {report.rolled_back}")
        if buffer is not None:
            buffer.add(support, [buffer.next_task_id])
            result["experience"] = len(buffer)
        card = {
            "command": command_line("adapt", self),
            "adapted_to": result.get("task", {"data": target}),
            "report": asdict(report),
        }
        training = opened.checkpoint.training
        checkpoint = Checkpoint.of(adapted, buffer, training=training, card=card)
        save_checkpoint(out, checkpoint, new=True)
        if self.json:
            print_json(result)
        else:
            print(f"adapted {self.model} to {target} ", end="")
            print_result(result)
        return 0

    def _log(self, opened: OpenedModel) -> tuple[Rollout, tuple[str, ...], str]:
        """The plant's log, what there is to know about it, and what its actions do.

        Raises:
            LogRefused: It is none to adapt to.
        """
        from ssm_metarl.adaptation.log_check import MOST_ROWS, check_log
        from ssm_metarl.experience.plant_log import open_plant_log

        assert self.data is not None
        if (self.objective or opened.trained.objective) != "prediction":
            raise ValueError(
                "objective: expected 'prediction' for a plant's log, which does not tell how "
                "likely its actions were, received 'policy_gradient'"
            )
        log = open_plant_log(
            self.data,
            obs_dim=opened.policy.obs_dim,
            action_space=opened.policy.action_space,
            obs_names=opened.family.obs_names,
            max_rows=MOST_ROWS,
        )
        if not self.rollback:
            return log.rollout, log.notes, ""
        findings = check_log(opened.family, log.rollout, period=log.period)
        return findings.log, (*log.notes, *findings.notes), findings.effects

    def _refuse(self, result: Mapping[str, Any], message: str) -> int:
        """Say why nothing was written."""
        if self.json:
            print_json({**result, "message": message})
        about = "task" if self.data is None else self.data
        print(f"{PROGRAM}: {about}: {message}; nothing was written", file=sys.stderr)
        return REFUSED


def print_result(result: Mapping[str, Any]) -> None:
    """What an adaptation did, in words."""
    report = result["report"]
    print(
        f"in {report['num_steps']} step(s) from {report['env_steps']} environment steps: "
        f"inner loss {report['loss_before']:.3f} -> {report['loss_after']:.3f}"
    )
    if report["rolled_back"] is not None:
        what = "the first" if report["num_steps"] == 0 else "a further"
        print(f"{what} step was undone: {report['rolled_back']}")
    for note in result.get("notes", ()):
        print(f"note: {note}")
    if result.get("effects"):
        print(f"{result['effects']}; if it does not, the log is coded the other way round")
    if "before" in result:
        before, after = fmean(result["before"]), fmean(result["after"])
        print(f"return before {before:.1f}, after {after:.1f}")
    if "experience" in result:
        print(f"experience, with this task's: {result['experience']:,} transitions")
    print(f"saved: {result['out']}")


def parse_task(text: str) -> dict[str, Any]:
    """A task's parameters from JSON.

    Raises:
        ValueError: Not a JSON object.
    """
    try:
        task = json_module.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"task: expected JSON such as {names.EXAMPLE_TASK}, received "
            f"{in_one_line(text)} ({error})"
        ) from None
    if not isinstance(task, dict):
        raise ValueError(f"task: expected a JSON object, received {in_one_line(text)}")
    return task


def describe(tasks: Tasks) -> str:
    """The parameters of a single task with their units: ``force 7 N, sign -1``."""
    values = tasks.as_dicts()[0]
    parts = [f"{p.name} {values[p.name]:g} {p.unit}".rstrip() for p in tasks.family.parameters]
    return ", ".join(parts) or f"the unmodified {tasks.family.name}"


def episode_returns(policy: Policy, tasks: Tasks, settings: EvaluationConfig) -> list[float]:
    """Returns of a policy's greedy episodes on one task."""
    from ssm_metarl.evaluation.episodes import run_arm

    actor = policy.actor(policy.meta_params(), len(tasks), settings.episodes_per_task)
    return list(map(float, run_arm(tasks, actor, settings)[0]))
