"""Plants that change while they run: before and after, they are what `TaskBatch` runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from float32 import assert_only_rounded
from ssm_metarl.env_runner.changing_task_batch import ChangingTaskBatch
from ssm_metarl.env_runner.task_batch import TaskBatch
from ssm_metarl.tasks.cartpole import CARTPOLE
from ssm_metarl.tasks.task_family import Tasks


def plants(num_tasks: int = 3) -> tuple[Tasks, Tasks]:
    before = CARTPOLE.sample("id", num_tasks, seed=1)
    after = CARTPOLE.sample("id", num_tasks, seed=2)
    return before, Tasks(CARTPOLE, after.values, before.indices)


def states(worlds: TaskBatch, steps: int) -> torch.Tensor:
    worlds.reset()
    actions = torch.tensor([0, 1] * steps)
    return torch.stack(
        [
            worlds.step(actions[t].expand(worlds.num_tasks, 1)).obs[:, 0].clone()
            for t in range(steps)
        ]
    )


def test_a_plant_is_itself_until_it_changes_and_the_other_one_after() -> None:
    before, after = plants()
    at = torch.tensor([0, 4, 99])
    changing = states(ChangingTaskBatch(before, after, at, seed=0, purpose="x"), 12)
    first = states(TaskBatch(before, 1, seed=0, purpose="x"), 12)
    second = states(TaskBatch(after, 1, seed=0, purpose="x"), 12)
    assert torch.equal(changing[:, 0], second[:, 0])
    assert torch.equal(changing[:, 2], first[:, 2])
    assert torch.equal(changing[:4, 1], first[:4, 1])
    assert not torch.equal(changing[4, 1], first[4, 1]), "the fifth step is the other plant's"
    # From the state in which the plant changed, every step is one of the other plant.
    parameters = {n: v.float()[1:2, None] for n, v in after.values.items()}

    def step(*arguments: Any) -> Tensor:
        return CARTPOLE.dynamics.step(*arguments)[0][0, 0]

    for t in range(4, 12):
        before, action = changing[t - 1, 1][None, None], torch.tensor([[t % 2]])
        assert_only_rounded(changing[t, 1], step, before, action, parameters)


def test_parameters_move_evenly() -> None:
    tasks = plants(1)
    worlds = ChangingTaskBatch(*tasks, torch.tensor([2]), over=4, seed=0, purpose="x")
    worlds.reset()
    seen = []
    for _ in range(8):
        worlds.step(torch.zeros(1, 1, dtype=torch.int64))
        seen.append(float(worlds._parameters["force"]))
    shares = torch.tensor([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    ends = (of.values["force"].float() for of in tasks)
    assert_only_rounded(torch.tensor(seen), lambda a, b: a + shares * (b - a), *ends)


def test_what_is_refused() -> None:
    before, after = plants()
    with pytest.raises(ValueError, match=r"at: expected shape \(3,\)"):
        ChangingTaskBatch(before, after, torch.zeros(2), seed=0, purpose="x")
    with pytest.raises(ValueError, match="over: expected at least 1"):
        ChangingTaskBatch(before, after, torch.zeros(3), over=0, seed=0, purpose="x")
