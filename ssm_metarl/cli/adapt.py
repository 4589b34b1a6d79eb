"""``ssm-metarl adapt``: adapt a model to one named task, and save the adapted policy.

Place in the flow: a command; the work is `adaptation.standard_adapter` and `hybrid_adapter`.
"""

from __future__ import annotations

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_metarl.cli.console import print_json
from ssm_metarl.config import (
    AdaptationMode,
    EvaluationConfig,
    HybridAdaptationConfig,
    Objective,
    StandardAdaptationConfig,
    SupportPolicy,
)

if TYPE_CHECKING:
    from ssm_metarl.adaptation.adapter import AdaptedPolicy
    from ssm_metarl.core.policy import Policy
    from ssm_metarl.tasks.task_family import Tasks


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Adapt a model to one task, such as --task '{"force": 7, "sign": -1}', and save it."""

    model: str
    """A shipped name, a run's folder, a checkpoint or a .pth file."""
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

    def run(self) -> int:
        """Collect support data, adapt, save, run episodes before and after."""
        from ssm_metarl.checkpoint import Checkpoint, save_checkpoint
        from ssm_metarl.cli.evaluate import open_model
        from ssm_metarl.cli.train import command_line
        from ssm_metarl.evaluation.meta_evaluator import collect_support

        settings = EvaluationConfig(  # refuses bad numbers before any work
            support_steps=self.support_steps, episodes_per_task=self.episodes, seed=self.seed
        )
        out = self.out or Path("adapted.safetensors")
        if out.exists():
            raise ValueError(f"out: expected a file that does not exist yet, received {out}")
        checkpoint, policy, family, trained = open_model(self.model, self.family)
        tasks = family.task(parse_task(self.task))
        support = collect_support(
            policy,
            tasks,
            self.support_steps,
            self.support_policy or trained.support_policy,
            seed=self.seed,
        )
        adapted = self._adapt(policy, support, checkpoint, self.objective or trained.objective)
        before, after = (episode_returns(p, tasks, settings) for p in (policy, adapted))
        result = {
            "model": self.model,
            "task": tasks.as_dicts()[0],
            "mode": self.mode,
            "before": before,
            "after": after,
            "report": asdict(adapted.report),
            "out": str(out),
        }
        save_checkpoint(
            out,
            Checkpoint(
                policy_config=checkpoint.policy_config,
                tensors={f"policy.{n}": v for n, v in adapted.state_dict().items()},
                training=checkpoint.training,
                card={"command": command_line(), "adapted_to": result["task"]},
            ),
        )
        if self.json:
            print_json(result)
        else:
            report = adapted.report
            print(
                f"adapted {self.model} to {result['task']} in {report.num_steps} step(s) from "
                f"{report.env_steps} environment steps: inner loss {report.loss_before:.3f} -> "
                f"{report.loss_after:.3f}"
            )
            print(f"return before {mean(before):.1f}, after {mean(after):.1f}; saved: {out}")
        return 0

    def _adapt(
        self, policy: Policy, support: Any, checkpoint: Any, objective: Objective
    ) -> AdaptedPolicy:
        from ssm_metarl.adaptation.hybrid_adapter import HybridAdapter
        from ssm_metarl.adaptation.standard_adapter import StandardAdapter

        config = StandardAdaptationConfig(
            adapt_lr=self.adapt_lr, num_adapt_steps=self.num_adapt_steps, objective=objective
        )
        if self.mode == "standard":
            return StandardAdapter(config).adapt(policy, support)
        buffer = checkpoint.experience()
        if buffer is None:
            raise ValueError(
                "mode: expected 'standard' for a model without experience, received 'hybrid'"
            )
        hybrid = HybridAdaptationConfig(**asdict(config), seed=self.seed)
        return HybridAdapter(hybrid).adapt(policy, support, buffer)


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


def episode_returns(policy: Policy, tasks: Tasks, settings: EvaluationConfig) -> list[float]:
    """Returns of a policy's greedy episodes on one task."""
    from ssm_metarl.evaluation.meta_evaluator import run_arm

    actor = policy.actor(policy.meta_params(), len(tasks), settings.episodes_per_task)
    returns: list[float] = run_arm(tasks, actor, settings)[0].tolist()
    return returns


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
