"""ssm-metarl: a controller that re-tunes itself when the plant changes, from one short episode.

The folders are the data flow:

    1  tasks/        what varies between tasks, in which units, ID and OOD ranges
    2  env_runner/   worlds to act in; rollouts of what happened
    3  core/         state space models, and the policy that reads actions from them
       objectives/   prediction and policy gradient, as pure functions
       experience/   replay of whole sequences
    4  adaptation/   the inner step; standard and hybrid adapters; when to undo, when to adapt again
    5  meta_rl/      MAML's outer step, recurrent PPO over trials, the training loops
    6  checkpoint    saving and loading
    7  methods/      one file a way to adapt, and the yardsticks beside them
       evaluation/   held-out tasks, one scoring loop, statistics, limits of adaptation, reports
       training      a whole training: train, set the limits, verify, save, evaluate
    8  recursive_self_improvement/
                     proposals, training, a gate on fresh tasks, a ledger
    9  rsi_daemon    the same for days; daemon/ keeps it alone and heard
   10  app/          the web app
   11  cli/          the command line

`types` has the glossary of shapes. Names below load on first use, so the import is cheap.
"""

from importlib import import_module
from typing import Any

from ssm_metarl.version import __version__

_PUBLIC = {
    "Choice": "tasks.task_parameter",
    "Environment": "env_runner.environment",
    "EvaluationConfig": "config",
    "ExperienceBuffer": "experience.experience_buffer",
    "HybridAdaptationConfig": "config",
    "HybridAdapter": "adaptation.hybrid_adapter",
    "DiagonalSSM": "core.diagonal_ssm",
    "InContextConfig": "config_in_context",
    "InContextTrainer": "meta_rl.in_context",
    "LogRefused": "adaptation.log_check",
    "MetaMAML": "meta_rl.meta_maml",
    "MetaTrainer": "meta_rl.trainer",
    "MetaTrainingConfig": "config",
    "OnlineAdaptationConfig": "config",
    "OnlineAdapter": "adaptation.online_adapter",
    "PlantLog": "experience.plant_log",
    "Policy": "core.policy",
    "RSIConfig": "recursive_self_improvement.config",
    "RecursiveSelfImprovementAgent": "recursive_self_improvement.agent",
    "Rollout": "types",
    "Setting": "tasks.gymnasium_plant",
    "StandardAdaptationConfig": "config",
    "StandardAdapter": "adaptation.standard_adapter",
    "StateSpaceModel": "core.ssm",
    "TaskBatch": "env_runner.task_batch",
    "TaskFamily": "tasks.task_family",
    "Uniform": "tasks.task_parameter",
    "calibrate": "evaluation.calibration",
    "check_log": "adaptation.log_check",
    "collect_rollout": "env_runner.rollout",
    "evaluate": "evaluation.meta_evaluator",
    "load_pretrained": "checkpoint",
    "needs_adaptation": "adaptation.change_detector",
    "open_plant_log": "experience.plant_log",
    "read_plant_log": "experience.plant_log",
    "train": "training",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ssm_metarl' has no attribute {name!r}")
    return getattr(import_module(f"ssm_metarl.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
