"""`Rollout`: from a plant's log, and what it refuses."""

import numpy as np
import pytest
import torch

from ssm_metarl.types import Rollout


def test_an_episode_becomes_a_rollout_of_one_task() -> None:
    observations = np.arange(12.0).reshape(4, 3)
    rollout = Rollout.from_episode(observations, [0, 1, 1], [1.0, 2.0, 3.0], terminated=True)
    assert rollout.obs.shape == (3, 1, 1, 3)
    assert torch.equal(rollout.obs[:, 0, 0], torch.tensor(observations[:-1]).float())
    assert torch.equal(rollout.next_obs[:, 0, 0], torch.tensor(observations[1:]).float())
    assert rollout.action.dtype == torch.int64
    assert rollout.terminated[:, 0, 0].tolist() == [False, False, True]
    assert rollout.reset[:, 0, 0].tolist() == [True, False, False]
    assert rollout.steps_taken().tolist() == [3]
    assert rollout.log_prob.isnan().all()  # unknown, which is not the same as certain
    assert rollout.episode_returns().tolist() == [[6.0]]


def test_continuous_actions_stay_floating_point() -> None:
    rollout = Rollout.from_episode(np.zeros((3, 2)), np.array([[0.5], [-0.5]]))
    assert rollout.action.shape == (2, 1, 1, 1)
    assert rollout.action.dtype == torch.float32
    assert not rollout.terminated.any()


@pytest.mark.parametrize(
    ("observations", "actions"),
    [(np.zeros((3, 2)), [0, 1, 1]), (np.zeros(4), [0, 1, 1]), (np.zeros((1, 2)), [])],
)
def test_lengths_that_do_not_fit_are_refused(observations: np.ndarray, actions: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected shape \(\d, O\).*received"):
        Rollout.from_episode(observations, actions)


def test_rewards_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="reward: expected leading shape"):
        Rollout.from_episode(np.zeros((3, 2)), [0, 1], [1.0, 1.0, 1.0])


def test_steps_that_were_not_taken_count_for_nothing_and_are_cleaned() -> None:
    rollout = Rollout.from_episode(np.ones((4, 2)), [0, 1, 1], [1.0, 2.0, float("nan")])
    mask = rollout.mask.clone()
    mask[2] = False
    rollout = Rollout(**{**vars(rollout), "mask": mask})
    assert rollout.episode_returns().tolist() == [[3.0]]
    assert rollout.cleaned().reward[:, 0, 0].tolist() == [1.0, 2.0, 0.0]
