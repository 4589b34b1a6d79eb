"""PyTorch's modes that people have around their own code: the same numbers with each as without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import numpy as np
import pytest
import torch

from ssm_metarl.adaptation.online_adapter import OnlineAdapter
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import load_pretrained
from ssm_metarl.compiled import usual_modes
from ssm_metarl.config import EvaluationConfig, MetaTrainingConfig, SingleTaskConfig
from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.environment import Environment
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import collect_support
from ssm_metarl.evaluation.opened_model import open_model
from ssm_metarl.meta_rl.in_context import InContextTrainer
from ssm_metarl.meta_rl.single_task import train_single_task
from ssm_metarl.meta_rl.trainer import MetaTrainer
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.types import Rollout

SMALL = {"state_dim": 4, "hidden_dim": 4, "num_layers": 1}
EPOCH = {"num_epochs": 1, "tasks_per_epoch": 2, "horizon": 12, "full_horizon_every": 0}
FLIPPED = {"sign": -1}


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)  # type: ignore[arg-type]


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": float64,
    "device cpu": lambda: default_device("cpu"),
    "device meta": lambda: default_device("meta"),  # stands for any that is not the processor
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def weights(policy: Policy) -> list[float]:
    return [float(v.double().sum()) for v in policy.state_dict().values()]


def adapting() -> list[float]:
    obs = np.linspace(0, 0.1, 24, dtype=np.float32).reshape(6, 4)
    rollout = Rollout.from_episode(obs, [0, 1, 0, 1, 0])
    adapted = StandardAdapter().adapt(load_pretrained("cartpole"), rollout)
    return [adapted.report.loss_after, *weights(adapted)]


def adapting_with_experience() -> list[float]:
    opened = open_model("cartpole_hybrid_real_model")
    support = collect_support(opened.policy, CARTPOLE.task(FLIPPED), 20, "random", seed=0)
    adapted = opened.adapt(support, "hybrid", opened.trained.adaptation())
    return [adapted.report.loss_after, *weights(adapted)]


def acting() -> list[float]:
    policy = load_pretrained("cartpole")
    actor = policy.actor(policy.meta_params(), 1, 1)
    obs = torch.full((1, 1, 4), 0.01, dtype=torch.float32, device="cpu")
    action, log_prob = actor(obs, torch.ones(1, 1, dtype=torch.bool, device="cpu"))
    return [float(action), float(log_prob)]


def stepping() -> list[float]:
    with Environment("cartpole", task=FLIPPED) as env:
        env.reset()
        return list(map(float, env.step(1)[0]))


def adapting_online() -> list[float]:
    worlds = make_worlds(CARTPOLE.task(FLIPPED), 1, seed=0, purpose="test")
    rollout = collect_rollout(worlds, OnlineAdapter(load_pretrained("cartpole")), 20)
    return rollout.obs.flatten().tolist()


def evaluating() -> list[float]:
    config = EvaluationConfig(num_tasks=2, episodes_per_task=1)
    arms = open_model("cartpole").evaluate(config, lambda *_: None)["arms"]
    return [arm["mean"] for arm in arms.values()]


def training(**settings: object) -> list[float]:
    trainer = MetaTrainer(MetaTrainingConfig(**(SMALL | EPOCH | settings)))  # type: ignore[arg-type]
    return weights(trainer.train())


def training_in_context() -> list[float]:
    sizes = {"tasks_per_epoch": 4, "steps_per_epoch": 16, "sequence_steps": 16, "num_epochs": 1}
    trainer = InContextTrainer(InContextConfig(**(SMALL | sizes)))  # type: ignore[arg-type]
    return weights(trainer.train())


def training_plainly() -> list[float]:
    family = TaskFamily.from_gymnasium("CartPole-v1", parameters={})
    return weights(train_single_task(SingleTaskConfig(num_episodes=8, **SMALL), family))


WORK: dict[str, Callable[[], list[float]]] = {
    "adapting": adapting,
    "adapting with experience": adapting_with_experience,
    "acting": acting,
    "stepping": stepping,
    "adapting online": adapting_online,
    "evaluating": evaluating,
    "training": training,
    "training a state_space": lambda: training(core="state_space"),
    "training with experience": lambda: training(adaptation_mode="hybrid"),
    "training by returns": lambda: training(objective="policy_gradient", support_policy="policy"),
    "training in context": training_in_context,
    "training plainly": training_plainly,
}


@cache
def without(work: str) -> list[float]:
    return WORK[work]()


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("mode", MODES)
def test_the_same_numbers_as_without(mode: str, work: str) -> None:
    expected = without(work)
    with MODES[mode]():
        received = WORK[work]()
    assert received == expected


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_mode_is_back_afterwards(mode: str) -> None:
    def read() -> tuple[object, ...]:
        return (
            torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_default_dtype(),
            torch.get_default_device(), torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip

    with MODES[mode]():
        before = read()
        adapting()
        assert read() == before
        with pytest.raises(ZeroDivisionError), usual_modes():
            assert read()[0] is False and read()[2] == torch.float32
            _ = 1 / 0
        assert read() == before


def test_support_from_inside_inference_mode_adapts_outside() -> None:
    with torch.inference_mode():
        policy = load_pretrained("cartpole")
        rollout = Rollout.from_episode(np.zeros((6, 4)), [0, 1, 0, 1, 0])
    assert rollout.obs.is_inference()
    inside = StandardAdapter().adapt(policy, rollout.map(lambda x: x.clone()))
    assert weights(StandardAdapter().adapt(policy, rollout)) == weights(inside)
