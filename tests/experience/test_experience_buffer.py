"""The buffer holds whole sequences, never too many, and gives back what it was given."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ssm_metarl.experience.experience_buffer import STORED, ExperienceBuffer, is_saved_buffer
from ssm_metarl.types import Rollout


def make_rollout(columns: list[list[tuple[int, ...]]], *, first: float = 0.0) -> Rollout:
    """Episodes of the given lengths: ``columns[k][n]`` are those of task k's environment n.

    Every step's observation, action and so on follow from its ``reward``, a number that counts
    the steps of all columns one after the other; steps that were not taken hold NaN.
    """
    tasks, envs = len(columns), len(columns[0])
    steps = max(1, *(sum(episodes) for task in columns for episodes in task))
    shape = (steps, tasks, envs)
    number = torch.full(shape, torch.nan)
    reset, ended = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    count = first
    for k, task in enumerate(columns):
        for n, episodes in enumerate(task):
            t = 0
            for length in episodes:
                number[t : t + length, k, n] = count + torch.arange(length)
                reset[t, k, n] = ended[t + length - 1, k, n] = True
                t, count = t + length, count + length
    mask = ~number.isnan()
    return Rollout(
        obs=torch.stack([number, -number], dim=-1),
        action=number.nan_to_num(99).long() % 2,
        reward=number,
        next_obs=torch.stack([number + 1, -number - 1], dim=-1),
        terminated=ended | ~mask,
        truncated=~ended & ~mask,
        reset=reset | ~mask,
        mask=mask,
        log_prob=-number / 10,
    )


def numbers(buffer: ExperienceBuffer) -> list[list[float]]:
    """The rewards of each sequence held, oldest first."""
    tensors = buffer.tensors()
    if not tensors:
        return []
    return [part.tolist() for part in tensors["reward"].split(tensors["length"].tolist())]


def filled(max_size: int = 100) -> ExperienceBuffer:
    """Sequences of 3, 2, 1 and 4 steps, of tasks 7, 7, 7 and 8."""
    buffer = ExperienceBuffer(max_size)
    buffer.add(make_rollout([[(3, 2), (1,)], [(4,), ()]]), [7, 8])
    return buffer


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    same = all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a.keys() & b.keys())
    return a.keys() == b.keys() and same


class TestAdd:
    def test_episodes_become_sequences_of_their_task(self) -> None:
        buffer = filled()
        assert numbers(buffer) == [[0, 1, 2], [3, 4], [5], [6, 7, 8, 9]]
        assert buffer.task_ids == (7, 7, 7, 8)
        assert len(buffer) == 10
        assert buffer.num_sequences == 4
        assert (buffer.next_task_id, ExperienceBuffer().next_task_id) == (9, 0)

    def test_every_field_of_a_step_stays_together(self) -> None:
        content = filled().tensors()
        number = content["reward"]
        assert torch.equal(content["obs"], torch.stack([number, -number], dim=-1))
        assert torch.equal(content["next_obs"], torch.stack([number + 1, -number - 1], dim=-1))
        assert torch.equal(content["action"], number.long() % 2)
        assert torch.equal(content["log_prob"], -number / 10)
        assert content["terminated"].nonzero()[:, 0].tolist() == [2, 4, 5, 9]
        assert not content["truncated"].any()

    def test_steps_before_the_first_reset_belong_to_no_whole_episode(self) -> None:
        rollout = make_rollout([[(3, 2)]])
        reset = rollout.reset.clone()
        reset[0] = False
        buffer = ExperienceBuffer()
        buffer.add(replace(rollout, reset=reset), [0])
        assert numbers(buffer) == [[3, 4]]

    @pytest.mark.parametrize("what", ["no step taken", "no episode starts"])
    def test_a_rollout_without_a_whole_episode_adds_nothing(self, what: str) -> None:
        rollout = make_rollout([[(3, 2)]])
        no = torch.zeros_like(rollout.mask)
        changed = {"mask": no} if what == "no step taken" else {"reset": no}
        buffer = ExperienceBuffer()
        buffer.add(replace(rollout, **changed), [0])
        assert len(buffer) == buffer.num_sequences == 0

    def test_the_rollout_may_be_changed_afterwards(self) -> None:
        buffer, rollout = ExperienceBuffer(), make_rollout([[(3,)]])
        buffer.add(rollout, [0])
        rollout.reward.zero_()
        assert numbers(buffer) == [[0, 1, 2]]

    def test_gradients_are_not_kept(self) -> None:
        rollout = make_rollout([[(3,)]])
        buffer = ExperienceBuffer()
        buffer.add(replace(rollout, log_prob=rollout.log_prob.requires_grad_()), [0])
        assert not buffer.tensors()["log_prob"].requires_grad

    def test_refusals(self) -> None:
        buffer, rollout = filled(), make_rollout([[(3,)]])
        with pytest.raises(ValueError, match=r"task_ids: expected 1, one a task, received 2"):
            buffer.add(rollout, [0, 1])
        wide = replace(
            rollout,
            obs=rollout.obs.repeat(1, 1, 1, 2),
            next_obs=rollout.next_obs.repeat(1, 1, 1, 2),
        )
        with pytest.raises(ValueError, match=r"obs: expected \(2,\) .* received \(4,\) of float32"):
            buffer.add(wide, [0])
        continuous = replace(rollout, action=rollout.action[..., None].float())
        with pytest.raises(ValueError, match=r"action: expected \(\) of int64.*received \(1,\)"):
            buffer.add(continuous, [0])
        assert numbers(buffer) == numbers(filled())
        with pytest.raises(ValueError, match=r"max_size: expected at least 1, received 0"):
            ExperienceBuffer(0)


class TestEviction:
    @pytest.mark.parametrize(
        ("max_size", "kept"),
        [
            (10, [[0, 1, 2], [3, 4], [5], [6, 7, 8, 9]]),
            (9, [[3, 4], [5], [6, 7, 8, 9]]),
            (6, [[5], [6, 7, 8, 9]]),
            (4, [[6, 7, 8, 9]]),
            (3, [[3, 4], [5]]),  # the last sequence cannot be held at all
        ],
    )
    def test_the_oldest_leave_first_and_whole(self, max_size: int, kept: list[list[float]]) -> None:
        buffer = filled(max_size)
        assert numbers(buffer) == kept
        assert len(buffer) == sum(map(len, kept))

    def test_a_sequence_longer_than_the_buffer_displaces_nothing(self) -> None:
        buffer = filled(10)
        buffer.add(make_rollout([[(11,)]], first=50), [9])
        assert numbers(buffer) == numbers(filled(10))

    @given(
        max_size=st.integers(1, 12),
        added=st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=5),
    )
    @settings(max_examples=60, deadline=None)
    def test_never_too_many_and_always_the_latest(
        self, max_size: int, added: list[list[int]]
    ) -> None:
        buffer, model, count = ExperienceBuffer(max_size), [], 0.0
        for task_id, episodes in enumerate(added):
            buffer.add(make_rollout([[tuple(episodes)]], first=count), [task_id])
            for length in episodes:
                if length <= max_size:
                    model.append((task_id, [count + i for i in range(length)]))
                count += length
                while sum(len(s) for _, s in model) > max_size:
                    model.pop(0)
            assert len(buffer) <= max_size
            assert numbers(buffer) == [s for _, s in model]
            assert buffer.task_ids == tuple(i for i, _ in model)
            assert len(buffer) == sum(len(s) for _, s in model)


class TestSample:
    def test_sequences_are_padded_and_masked(self) -> None:
        rollout = filled().sample(4, np.random.default_rng(0))
        assert rollout.obs.shape == (4, 1, 4, 2)
        held = {tuple(s) for s in numbers(filled())}
        for m in range(4):
            length = int(rollout.mask[:, 0, m].sum())
            assert tuple(rollout.reward[:length, 0, m].tolist()) in held
            assert not rollout.mask[length:, 0, m].any()
            assert rollout.reset[:, 0, m].tolist() == [True, False, False, False]
        assert int(rollout.mask.sum()) == 10
        taken = rollout.mask
        assert torch.equal(rollout.obs[taken][:, 0], rollout.reward[taken])

    def test_none_twice_unless_there_are_too_few(self) -> None:
        buffer = filled()
        for seed in range(10):
            drawn = buffer.sample(4, np.random.default_rng(seed)).reward[0, 0]
            assert sorted(drawn.tolist()) == [0, 3, 5, 6]
        assert buffer.sample(9, np.random.default_rng(0)).num_envs == 9

    def test_every_sequence_is_equally_likely(self) -> None:
        buffer, rng = filled(), np.random.default_rng(0)
        drawn = torch.cat([buffer.sample(2, rng).reward[0, 0] for _ in range(1000)])
        counts = [int((drawn == first).sum()) for first in (0, 3, 5, 6)]
        assert sum(counts) == 2000
        assert all(420 < count < 580 for count in counts)

    def test_the_generator_decides_and_nothing_else(self) -> None:
        buffer, state = filled(), torch.get_rng_state()
        one, same, other = (buffer.sample(2, np.random.default_rng(s)) for s in (0, 0, 3))
        assert torch.equal(one.reward, same.reward)
        assert not torch.equal(one.reward[0], other.reward[0])
        assert torch.equal(torch.get_rng_state(), state)

    def test_what_was_drawn_may_be_changed(self) -> None:
        buffer = filled()
        buffer.sample(4, np.random.default_rng(0)).reward.zero_()
        assert numbers(buffer) == numbers(filled())

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match=r"at least one sequence, received none"):
            ExperienceBuffer().sample(1, np.random.default_rng(0))
        with pytest.raises(ValueError, match=r"num_sequences: expected at least 1, received 0"):
            filled().sample(0, np.random.default_rng(0))


class TestTensors:
    def test_round_trip(self) -> None:
        buffer = filled()
        again = ExperienceBuffer(100).restore(buffer.tensors())
        assert equal(again.tensors(), buffer.tensors())
        assert (again.task_ids, len(again)) == (buffer.task_ids, len(buffer))
        one, two = (b.sample(3, np.random.default_rng(1)) for b in (buffer, again))
        assert all(torch.equal(getattr(one, n), getattr(two, n)) for n in vars(one))

    def test_an_empty_buffer_has_no_tensors_and_empties_another(self) -> None:
        assert ExperienceBuffer().tensors() == {}
        buffer = filled().restore({})
        assert len(buffer) == buffer.num_sequences == len(buffer.task_ids) == 0

    def test_a_smaller_buffer_keeps_the_latest(self) -> None:
        assert numbers(ExperienceBuffer(6).restore(filled().tensors())) == [[5], [6, 7, 8, 9]]

    @pytest.mark.parametrize("missing", [*STORED, "length", "task_id"])
    def test_missing_tensors_are_named_and_nothing_is_lost(self, missing: str) -> None:
        buffer, tensors = filled(), filled().tensors()
        del tensors[missing]
        with pytest.raises(ValueError, match=rf"expected tensors \['{missing}'\]"):
            buffer.restore(tensors)
        assert numbers(buffer) == numbers(filled())

    @pytest.mark.parametrize("name", ["obs", "log_prob", "task_id"])
    def test_tensors_of_another_length_are_named_and_nothing_is_lost(self, name: str) -> None:
        buffer, tensors = filled(), filled().tensors()
        rows = len(tensors[name])
        tensors[name] = tensors[name][:-1]
        with pytest.raises(ValueError, match=rf"{name}: expected {rows} rows, received {rows - 1}"):
            buffer.restore(tensors)
        assert numbers(buffer) == numbers(filled())


class TestFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        path, buffer = tmp_path / "experience.safetensors", filled(60)
        buffer.save(path)
        again = ExperienceBuffer.load(path)
        assert equal(again.tensors(), buffer.tensors())
        assert (again.max_size, again.task_ids, len(again)) == (60, (7, 7, 7, 8), 10)
        assert again.family is None
        assert [p.name for p in tmp_path.iterdir()] == ["experience.safetensors"]

    def test_the_family_that_it_is_of_is_kept(self, tmp_path: Path) -> None:
        ExperienceBuffer(5, "cartpole").save(tmp_path / "named")
        assert ExperienceBuffer.load(tmp_path / "named").family == "cartpole"
        assert is_saved_buffer(tmp_path / "named")
        save_file({"obs": torch.zeros(3)}, tmp_path / "other")
        (tmp_path / "text").write_text("no buffer")
        for other in ("other", "text", "missing", "."):
            assert not is_saved_buffer(tmp_path / other)

    def test_an_empty_buffer_too(self, tmp_path: Path) -> None:
        ExperienceBuffer(5).save(tmp_path / "empty")
        again = ExperienceBuffer.load(tmp_path / "empty")
        assert (again.max_size, len(again)) == (5, 0)

    def test_a_failed_save_leaves_the_old_file_and_no_debris(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "experience"
        filled().save(path)

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            ExperienceBuffer(5).save(path)
        assert numbers(ExperienceBuffer.load(path)) == numbers(filled())
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        "content", ["missing", "a folder", "empty", "text", "random", "truncated", "cut in data"]
    )
    def test_what_is_no_file_of_ours_is_refused(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "experience"
        filled().save(path)
        whole = path.read_bytes()
        path.unlink()
        if content == "a folder":
            path.mkdir()
        elif content != "missing":
            path.write_bytes(
                {
                    "empty": b"",
                    "text": b"not a buffer\n",
                    "random": np.random.default_rng(0).bytes(500),
                    "truncated": whole[:100],
                    "cut in data": whole[:-5],
                }[content]
            )
        with pytest.raises(ValueError, match=r"experience: expected a saved experience buffer"):
            ExperienceBuffer.load(path)

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            (None, "received None"),
            ({"format": "pt"}, "received 'pt'"),
            ({"format": "ssm-metarl-experience-1"}, "max_size: expected a number, received ''"),
            (
                {"format": "ssm-metarl-experience-1", "max_size": "-3"},
                "max_size: expected a number, received '-3'",
            ),
            (
                {"format": "ssm-metarl-experience-1", "max_size": "0"},
                "max_size: expected at least 1, received 0",
            ),
            (
                {"format": "ssm-metarl-experience-1", "max_size": "9"},
                r"expected tensors \['action'",
            ),
        ],
    )
    def test_other_safetensors_are_refused(
        self, tmp_path: Path, metadata: dict[str, str] | None, message: str
    ) -> None:
        path = tmp_path / "weights.safetensors"
        save_file({"obs": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(ValueError, match=rf"weights\.safetensors: .*{message}"):
            ExperienceBuffer.load(path)
