"""``ssm-metarl adapt``: adapt a model to one named task, and save the adapted policy.

Place in the flow: a command; the work is `adaptation.standard_adapter` and `hybrid_adapter`.
"""

from __future__ import annotations

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_metarl.cli.console import print_json
from ssm_metarl.cli.flags import ModelArgument, command_line
from ssm_metarl.config import (
    AdaptationMode,
    EvaluationConfig,
    Objective,
    SupportPolicy,
    require,
)

if TYPE_CHECKING:
    from ssm_metarl.adaptation.adapter import AdaptedPolicy
    from ssm_metarl.cli.opened_model import OpenedModel
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.tasks.task_family import Tasks
    from ssm_metarl.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Adapt(ModelArgument):
    """Adapt a model to one task, such as --task '{"force": 7, "sign": -1}', and save it."""

    task: str = "{}"
    """The task's parameters as JSON; what is missing keeps its default."""
    out: Path | None = None
    """File for the adapted policy; None for adapted.safetensors. Never overwritten."""
    family: str | None = None
    """Task family; None for the one that the model was trained on."""
    mode: AdaptationMode = "standard"
    """standard: this task's data; hybrid: also the model's replayed experience."""
    support_steps: int = 20
    """Environment steps of support data."""
    support_policy: SupportPolicy | None = None
    """Who collects them; None for what the model was meta-trained with."""
    objective: Objective | None = None
    """Inner objective; None for the one the model was meta-trained with."""
    num_adapt_steps: int = 1
    """Gradient steps, all on the same support data."""
    adapt_lr: float | None = None
    """Plain gradient descent with this rate; None uses the model's learned step sizes."""
    episodes: int = 4
    """Greedy episodes before and after, to show the difference."""
    seed: int = 0
    """Names the support data and the episodes."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        for name in ("support_steps", "episodes"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))

    def run(self) -> int:
        """Collect support data, adapt, save, run episodes before and after."""
        from ssm_metarl.cli.opened_model import open_model
        from ssm_metarl.cli.outputs import new_file
        from ssm_metarl.evaluation.episodes import collect_support

        parameters = parse_task(self.task)
        opened = open_model(self.model, self.family)
        tasks = opened.family.task(parameters)
        out = self.out or Path("adapted.safetensors")
        if out.suffix == ".pth":
            raise ValueError(f"out: expected a .safetensors file, received {out}")
        new_file(out)
        support = collect_support(
            opened.policy,
            tasks,
            self.support_steps,
            self.support_policy or opened.trained.support_policy,
            seed=self.seed,
        )
        adapted = self._adapt(opened, support)
        settings = EvaluationConfig(episodes_per_task=self.episodes, seed=self.seed)
        before, after = (episode_returns(p, tasks, settings) for p in (opened.policy, adapted))
        result = {
            "model": self.model,
            "family": opened.family.name,
            "task": tasks.as_dicts()[0],
            "mode": self.mode,
            "before": before,
            "after": after,
            "report": asdict(adapted.report),
            "out": str(out),
        }
        self._save(out, opened, adapted, tasks)
        if self.json:
            print_json(result)
        else:
            report = adapted.report
            print(
                f"adapted {self.model} to {describe(tasks)} in {report.num_steps} step(s) from "
                f"{report.env_steps} environment steps: inner loss {report.loss_before:.3f} -> "
                f"{report.loss_after:.3f}"
            )
            print(f"return before {mean(before):.1f}, after {mean(after):.1f}; saved: {out}")
        return 0

    def _adapt(self, opened: OpenedModel, support: Rollout) -> AdaptedPolicy:
        import torch

        from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
        from ssm_metarl.adaptation.standard_adapter import StandardAdapter

        config = opened.trained.adaptation(
            objective=self.objective, num_adapt_steps=self.num_adapt_steps, adapt_lr=self.adapt_lr
        )
        if self.mode == "standard":
            adapted = StandardAdapter(config).adapt(opened.policy, support)
        elif opened.buffer is None:
            raise ValueError(
                "mode: expected 'standard' for a model without experience, received 'hybrid'"
            )
        else:
            hybrid = opened.trained.hybrid(config, seed=self.seed)
            adapted = HybridAdapter(hybrid).adapt(opened.policy, support, opened.buffer)
        # The loss counts as well: steps that are too long overflow it before the weights.
        finite = all(bool(torch.isfinite(v).all()) for v in adapted.state_dict().values())
        if not finite or not torch.isfinite(torch.tensor(adapted.report.loss_after)):
            raise ValueError(
                f"adapt_lr: expected a rate with which {self.num_adapt_steps} step(s) stay finite, "
                f"received {self.adapt_lr}; nothing was saved"
            )
        return adapted

    def _save(self, out: Path, opened: OpenedModel, adapted: Policy, tasks: Tasks) -> None:
        from ssm_metarl.checkpoint import Checkpoint, save_checkpoint

        save_checkpoint(
            out,
            Checkpoint(
                policy_config=opened.checkpoint.policy_config,
                tensors={f"policy.{n}": v for n, v in adapted.state_dict().items()},
                training=opened.checkpoint.training,
                card={"command": command_line("adapt", self), "adapted_to": tasks.as_dicts()[0]},
            ),
        )


def parse_task(text: str) -> dict[str, Any]:
    """A task's parameters from JSON.

    Raises:
        ValueError: Not a JSON object.
    """
    try:
        task = json_module.loads(text)
    except json_module.JSONDecodeError as error:
        raise ValueError(
            f'task: expected JSON such as {{"force": 7, "sign": -1}}, received {text!r} ({error})'
        ) from None
    if not isinstance(task, dict):
        raise ValueError(f"task: expected a JSON object, received {text!r}")
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
    returns: list[float] = run_arm(tasks, actor, settings)[0].tolist()
    return returns


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
