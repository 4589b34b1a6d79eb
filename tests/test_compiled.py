"""Compiled functions: how exact they are, how they are shared out, what the user is told."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numba import njit
from scipy import special

from float32 import EPS, TIMES, assert_rounds_alike, mapped, nudged
from ssm_metarl.compiled import (
    compiled,
    exp,
    kernels_apply,
    normal,
    on_compile,
    plain_operations,
    share,
    sigmoid,
    subnormals_are_zero,
    threads_for_kernels,
    threads_worth,
)
from ssm_metarl.core import fused, fused_actor, scan
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner import task_batch
from ssm_metarl.evaluation.episodes import collect_support, episodes_of, played_direction
from ssm_metarl.evaluation.opened_model import open_model
from ssm_metarl.tasks import cartpole


@compiled
def elementwise(x, out):
    for i in range(x.shape[0]):
        out[0, i], out[1, i] = exp(x[i]), sigmoid(x[i])
        out[2, i], out[3, i] = normal(x[i])


def test_elementwise_functions_are_exact_to_float32() -> None:
    x = np.linspace(-30, 30, 100_001, dtype=np.float32)
    out = np.empty((4, len(x)), np.float32)
    elementwise(x, out)
    t, exact = torch.from_numpy(x), x.astype(np.float64)
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    size = np.where(density > 1e-6, density, 1)  # a density of next to nothing need not be exact
    for received, plain, true, scale in (
        (out[0], t.exp(), np.exp(exact), np.exp(exact)),
        (out[1], t.sigmoid(), special.expit(exact), special.expit(exact)),
        (out[2], torch.special.ndtr(t), special.ndtr(exact), 1),
        (out[3], (-t * t / 2).exp() / math.sqrt(2 * math.pi), density, size),
    ):
        error, usual = (np.abs((of - true) / scale).max() for of in (received, plain.numpy()))
        assert error <= TIMES * (usual + EPS)


def test_nan_stays_nan() -> None:
    out = np.empty((4, 1), np.float32)
    elementwise(np.array([np.nan], np.float32), out)
    assert np.isnan(out[1:]).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tasks", [1, 2, 5, 7])
def test_every_task_is_done_once(threads: int, tasks: int) -> None:
    done = np.zeros(tasks, int)

    def work(counts: np.ndarray, first: int, last: int) -> None:
        counts[first:last] += 1

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        share(work, done, tasks=tasks, rows=100_000)
        with threads_for_kernels():
            assert torch.get_num_threads() == 1
            assert threads_worth(100_000) == threads
            share(work, done, tasks=tasks, rows=100_000)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (done == 2).all()


def test_subnormals_count_as_zero_inside_only() -> None:
    def work(first: int, last: int) -> None:
        zero[first:last] = subnormals_are_zero()

    zero, before = np.zeros(2, bool), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert not subnormals_are_zero()
        with threads_for_kernels():
            with threads_for_kernels():
                share(work, tasks=2, rows=100_000)
            assert subnormals_are_zero()
        assert not subnormals_are_zero()
        torch.set_flush_denormal(True)  # a caller who wants it keeps it
        with threads_for_kernels():
            pass
        assert subnormals_are_zero()
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
    assert zero.all(), "in this thread and in the worker"


def test_an_error_in_a_worker_is_raised() -> None:
    def work(first: int, last: int) -> None:
        if first > 0:
            raise ValueError("of the second half")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="second half"):
            share(work, tasks=2, rows=100_000)
    finally:
        torch.set_num_threads(before)


def test_a_compilation_is_announced_once() -> None:
    told = []
    on_compile(lambda: told.append(1))

    def double(x):
        return 2 * x

    def triple(x):
        return 3 * x

    # not `compiled`: what the last run left on disk needs no compilation
    assert njit(double)(2.0) == 4.0
    assert njit(triple)(2.0) == 6.0
    assert told == [1]


def test_plain_operations_are_the_threads_own() -> None:
    seen: list[bool] = []
    with plain_operations():
        assert not kernels_apply()
        other = threading.Thread(target=lambda: seen.append(kernels_apply()))
        other.start()
        other.join()
    assert kernels_apply() and seen == [True]


@pytest.mark.parametrize("name", ["cartpole", "cartpole_hybrid_real_model"])
def test_plain_operations_adapt_and_act_the_same_and_call_no_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(name)
    tasks = opened.family.task({"sign": played_direction(opened.policy, opened.family)})

    how = opened.trained.adaptation()

    def run(policy: Policy = opened.policy) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss after adapting, and the actions then."""
        support = collect_support(policy, tasks, 20, "random", seed=0)
        adapted = replace(opened, policy=policy).adapt(support, "hybrid", how)
        rollout = episodes_of(
            policy, [adapted.meta_params()], tasks, num_episodes=2, seed=0, max_steps=60
        )
        return torch.tensor([adapted.report.loss_after]), rollout.action[:20]

    loss, actions = run()

    def refuse(*_: object) -> None:
        raise AssertionError("a kernel was called")

    for module, function in (
        (fused, "share"), (scan, "share"), (cartpole, "_step"), (task_batch, "settle"),
        (fused_actor, "observe"),
    ):  # fmt: skip
        monkeypatch.setattr(module, function, refuse)
    with pytest.raises(AssertionError, match="a kernel was called"):
        run()
    nudges = [partial(nudged, rng=torch.Generator().manual_seed(seed)) for seed in range(3)]
    with plain_operations():
        plain_loss, plain_actions = run()
        losses = [run(mapped(opened.policy, nudge))[0] for nudge in nudges]
    assert_rounds_alike(loss, losses, plain_loss.double())
    assert torch.equal(plain_actions, actions)
