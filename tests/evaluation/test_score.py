"""The one loop on a plant whose returns are counted by hand: the right table, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ssm_metarl.action_space import Discrete
from ssm_metarl.adaptation.adapter import AdaptationReport
from ssm_metarl.config import EvaluationConfig
from ssm_metarl.core.pth_policy import as_policy
from ssm_metarl.core.ssm import StateSpaceModel
from ssm_metarl.evaluation.episodes import Episodes
from ssm_metarl.evaluation.score import score, support_for
from ssm_metarl.methods.method import Cost, Data, Method, Model, Prepared
from ssm_metarl.tasks.task_family import TaskFamily, TaskParameter, Tasks, Uniform

STEPS = 5


class Counting:
    """Action 1 earns ``gain``, action 0 nothing; three actions 1 end an episode of five steps."""

    obs_dim = 1
    action_space = Discrete(2)
    max_episode_steps = STEPS
    push_scale: Sequence[float] = (0.0, 0.0)
    start_spread: Sequence[float] = (0.0, 0.0)

    def initial_state(self, uniform: Tensor) -> Tensor:
        """No action 1 so far, and a number of its own, in [0, 1)."""
        return torch.stack([torch.zeros_like(uniform[..., 0]), uniform[..., 1]], dim=-1)

    def step(
        self, state: Tensor, action: Tensor, parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Counts."""
        state = state + torch.stack([action, torch.zeros_like(action)], dim=-1)
        return state, action * parameters["gain"], state[..., 0] >= 3

    def observe(self, state: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The number of its own."""
        return state[..., 1:]


TOY = TaskFamily(
    name="counting",
    dynamics=Counting(),
    parameters=(TaskParameter(name="gain", unit="", default=1.0, id=Uniform(1, 2),
                              ood=Uniform(2, 3)),),
)  # fmt: skip
MODEL = Model(as_policy(StateSpaceModel(input_dim=1, output_dim=2)))


def tasks() -> Tasks:
    gains = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    return Tasks(TOY, {"gain": gains}, (0, 1, 2))


@dataclass(frozen=True)
class Plays(Method):
    """The same action all the time; in a trial, another one in every second episode."""

    action: int
    in_trials: bool = False
    uses_support: bool = False

    label = definition = ""

    @property
    def name(self) -> str:
        return (
            f"plays {self.action}"
            + " in trials" * self.in_trials
            + " at cost" * (self.uses_support)
        )

    @property
    def cost(self) -> Cost:
        return Cost(support=self.uses_support)

    @property
    def trial(self) -> bool:
        return self.in_trials

    def applies(self, model: Model, family: TaskFamily) -> str | None:
        return None

    def prepare(self, model: Model, tasks: Tasks, data: Data) -> Prepared:
        number = torch.zeros(len(tasks), data.num_envs, dtype=torch.int64) - 1
        reports = [AdaptationReport(1, 99, 0.0, 0.0)] * len(tasks) if self.uses_support else []

        def act(obs: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
            assert reset.shape == (3, data.num_envs)
            number.add_(reset)
            action = (self.action + number * self.in_trials) % 2
            return action, torch.zeros(reset.shape)

        return Prepared(act, reports)


def test_returns_steps_and_costs_are_those_that_one_counts() -> None:
    config = EvaluationConfig(num_tasks=3, support_steps=7, support_policy="random", seed=2)
    told: list[str] = []
    methods = (Plays(0), Plays(1), Plays(1, in_trials=True), Plays(0, uses_support=True))
    table = score(
        methods, MODEL, tasks(), support_for(MODEL, tasks(), config),
        num_episodes=3, seed=2, on_method=told.append,
    )  # fmt: skip
    assert list(table) == told == [m.name for m in methods] and len(table) == 4
    assert table.returns.shape == (4, 3, 3)  # methods, K, E
    assert (table["plays 0"].returns == 0).all()
    assert (table["plays 0"].episodes.steps == STEPS).all()  # the time limit
    three_each = np.array([[3.0], [30.0], [300.0]])
    np.testing.assert_array_equal(table["plays 1"].returns, np.tile(three_each, 3))
    assert (table["plays 1"].episodes.steps == 3).all()  # terminated
    trial = table["plays 1 in trials"]  # an episode of 1, one of 0, one of 1
    np.testing.assert_array_equal(trial.returns, three_each * [1, 0, 1])
    assert (trial.episodes.steps == [3, STEPS, 3]).all()
    np.testing.assert_array_equal(trial.per_task, [2, 20, 200])
    assert [row.env_steps.tolist() for row in table.scores] == [[0] * 3] * 3 + [[7] * 3]
    assert [len(row.reports) for row in table.scores] == [0, 0, 0, 3]
    with pytest.raises(KeyError):
        table["plays 2"]


def test_no_support_is_needed_where_no_method_uses_any() -> None:
    table = score((Plays(1),), MODEL, tasks(), None, seed=0)
    assert table.returns[0].tolist() == [[3.0], [30.0], [300.0]]
    with pytest.raises(ValueError, match="support data: expected steps of each task, received no"):
        score((Plays(1, uses_support=True),), MODEL, tasks(), None, seed=0)


def test_another_play_is_asked_for_every_method() -> None:
    asked: list[str] = []

    def play(method: Method, actor: object) -> Episodes:
        asked.append(method.name)
        return Episodes(np.full((3, 1), 4.0), np.ones((3, 1), int))

    table = score((Plays(0), Plays(1)), MODEL, tasks(), None, seed=0, play=play)
    assert asked == list(table) and (table.returns == 4).all()


def test_support_data_lie_where_they_are_asked_to() -> None:
    config = EvaluationConfig(num_tasks=3, support_steps=30, support_policy="random")
    honest = support_for(MODEL, tasks(), config)
    lied = support_for(
        MODEL, tasks(), EvaluationConfig(support_steps=30, support_policy="random",
                                         shuffle_actions=True),
    )  # fmt: skip
    assert torch.equal(honest.obs, lied.obs)
    assert torch.equal(honest.action.sum(0), lied.action.sum(0))
    assert not torch.equal(honest.action, lied.action)
