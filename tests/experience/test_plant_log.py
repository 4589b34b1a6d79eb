"""A plant's CSV file as support data: known rollouts, and mistakes named by their line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssm_metarl.action_space import ActionSpace, Continuous, Discrete
from ssm_metarl.experience.plant_log import read_plant_log
from ssm_metarl.types import Rollout

Read = Callable[..., Rollout]
NAMES = ("x", "v")


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def run(text: str, action_space: ActionSpace | None = None, **options: object) -> Rollout:
        path = tmp_path / "log.csv"
        path.write_text(text)
        settings = {"obs_dim": 2, "obs_names": NAMES} | options
        return read_plant_log(path, action_space=action_space or Discrete(2), **settings)  # type: ignore[arg-type]

    return run


def test_two_episodes_in_a_row(read: Read) -> None:
    rollout = read(
        "time,v,action,x,episode,reward\n"
        "0,10,1,1,a,0.5\n"
        "1,20,0,2,a,0.25\n"
        "2,30,,3,a,\n"
        "3,40,1,4,b,2\n"
        "4,50,,5,b,\n"
    )
    assert rollout.obs.shape == (3, 1, 1, 2)
    assert rollout.obs[:, 0, 0].tolist() == [[1, 10], [2, 20], [4, 40]]
    assert rollout.next_obs[:, 0, 0].tolist() == [[2, 20], [3, 30], [5, 50]]
    assert rollout.action[:, 0, 0].tolist() == [1, 0, 1] and rollout.action.dtype == torch.int64
    assert rollout.reward[:, 0, 0].tolist() == [0.5, 0.25, 2]
    assert rollout.reset[:, 0, 0].tolist() == [True, False, True]
    assert rollout.mask.all() and not rollout.terminated.any()


def test_numbered_columns_no_episodes_and_a_last_action_without_outcome(read: Read) -> None:
    rollout = read("obs_0,obs_1,action\n1,2,0\n3,4,1\n5,6,1\n")
    assert rollout.obs[:, 0, 0].tolist() == [[1, 2], [3, 4]]
    assert rollout.action[:, 0, 0].tolist() == [0, 1]
    assert rollout.reward.eq(0).all()


def test_spaces_and_a_byte_order_mark_do_not_matter(read: Read) -> None:
    rollout = read("\ufeffx, v , action\n 1, 2, 0\n3,4,\n")
    assert rollout.obs[:, 0, 0].tolist() == [[1, 2]]


def test_continuous_actions(read: Read) -> None:
    one = read("x,v,action\n1,2,0.5\n3,4,\n", Continuous(1))
    assert one.action[:, 0, 0].tolist() == [[0.5]]
    two = read("x,v,action_0,action_1\n1,2,0.5,-1\n3,4,,\n", Continuous(2))
    assert two.action[:, 0, 0].tolist() == [[0.5, -1.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,action\n1,0\n2,\n", "expected columns x, v, action, received x, action"),
        ("", "expected columns x, v, action, received no header"),
        ("x,v,action\n", "expected at least two rows of an episode.*received 0 row"),
        ("x,v,action\n1,2,0\n", "expected at least two rows of an episode.*received 1 row"),
        ("x,v,action\n1,2,0\n3,oops,1\n4,5,\n", "line 3: v: expected a finite number.*'oops'"),
        ("x,v,action\n1,2,0\n3,,1\n4,5,\n", "line 3: v: expected a finite number.*'nothing'"),
        ("x,v,action\n1,2,0\n3,nan,1\n4,5,\n", "line 3: v: expected a finite number.*'nan'"),
        ("x,v,action\n1,2,2\n3,4,\n", "line 2: action: expected a whole number from 0 to 1.*2"),
        ("x,v,action\n1,2,0.5\n3,4,\n", r"line 2: action: expected a whole number.*received 0\.5"),
        ("x,v,action\n1,2,\n3,4,1\n5,6,\n", "line 2: action: expected a finite number"),
        ("x,v,action\n0,5,1,5,0\n3,4,\n", "line 2: expected 3 cells, received 5"),
        ("x,v,v,action\n1,2,2,0\n3,4,4,\n", "expected columns x, v, action, received x, v, v"),
        ("x,v,action,reward\n1,2,0,?\n3,4,,\n", "line 2: reward: expected a finite number"),
    ],
)
def test_a_mistake_is_named_by_its_line(read: Read, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


def test_what_is_no_csv_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a CSV file, received no such file"):
        read_plant_log(tmp_path / "no.csv", obs_dim=2, action_space=Discrete(2))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"binary\.csv: expected"):
        read_plant_log(binary, obs_dim=2, action_space=Discrete(2))
