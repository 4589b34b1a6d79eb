"""Compiled functions: how exact they are, how they are shared out, what the user is told."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
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
from ssm_metarl.core import compiled_actor, fused, scan
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner import task_batch
from ssm_metarl.env_runner.rollout import collect_rollout
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.evaluation.episodes import collect_support, plays_disturbed
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
    sign = -1 if plays_disturbed(opened.policy, opened.family) else 1
    tasks = opened.family.task({"sign": sign})

    how = opened.trained.adaptation()

    def run(policy: Policy = opened.policy) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss after adapting, and the actions then."""
        support = collect_support(policy, tasks, 20, "random", seed=0)
        adapted = replace(opened, policy=policy).adapt(support, "hybrid", how)
        worlds = make_worlds(tasks, 2, seed=0, purpose="evaluation", max_episode_steps=60)
        rollout = collect_rollout(worlds, policy.actor(adapted.meta_params(), 1, 2), 60)
        return torch.tensor([adapted.report.loss_after]), rollout.action[:20]

    loss, actions = run()

    def refuse(*_: object) -> None:
        raise AssertionError("a kernel was called")

    for module, function in (
        (fused, "share"), (scan, "share"), (cartpole.CartPoleDynamics, "kernel"),
        (task_batch, "settle"), (compiled_actor, "observe"),
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


def run_script(script: str) -> str:
    """What a Python of its own prints, whose libraries may use two threads."""
    environment = {n: v for n, v in os.environ.items() if not n.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    """Forked idle, from inside, and while another thread is inside: each child has its own."""
    printed = run_script(
        """
        import os, threading, torch
        torch.set_num_threads(2)
        from ssm_metarl.compiled import share, threads_for_kernels, threads_worth

        def work(done, first, last):
            done[first:last] = [threading.get_ident()] * (last - first)

        def compute():
            done = [0] * 4
            with threads_for_kernels():
                share(work, done, tasks=4, rows=100_000)
                worth = threads_worth(100_000)
            return f"{len(set(done))} threads, {worth} worth, then {torch.get_num_threads()}"

        def in_child(where):
            child = os.fork()
            if child == 0:
                print(where, compute(), flush=True)
                os._exit(0)
            os.waitpid(child, 0)

        print("parent", compute(), flush=True)
        in_child("idle")
        with threads_for_kernels():
            child = os.fork()
            inside = compute()
        if child == 0:
            print("inside", inside, "and", torch.get_num_threads(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        entered, leave = threading.Event(), threading.Event()

        def stay():
            with threads_for_kernels():
                entered.set()
                leave.wait()

        other = threading.Thread(target=stay)
        other.start()
        entered.wait()
        in_child("beside")
        leave.set()
        other.join()
        print("parent", compute())
        """
    )
    assert printed.splitlines() == [
        "parent 2 threads, 2 worth, then 2",
        "idle 2 threads, 2 worth, then 2",
        "inside 2 threads, 2 worth, then 1 and 2",
        "beside 2 threads, 2 worth, then 2",
        "parent 2 threads, 2 worth, then 2",
    ]


def test_the_process_has_its_own_settings_back() -> None:
    """Neither the import nor a training leaves anything changed; inside, BLAS has one thread."""
    printed = run_script(
        """
        import ctypes, os, pathlib, random, signal, sys, warnings
        import numpy as np, scipy, torch
        libraries = (pathlib.Path(scipy.__file__).parents[1] / "scipy.libs").glob("*openblas*")
        blas = next((ctypes.CDLL(str(x)) for x in libraries), None)
        if blas is None:
            print("2 1 2 2 []")
            sys.exit()
        blas.scipy_openblas_set_num_threads(2)
        threads, seen = blas.scipy_openblas_get_num_threads, []
        torch.set_num_threads(2)

        def settings():
            return {
                "torch": (torch.get_num_threads(), torch.get_default_dtype(),
                          torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()),
                "torch's generator": torch.get_rng_state().numpy().tobytes(),
                "NumPy's generator": repr(np.random.get_state()),
                "NumPy's errors": np.geterr(), "printing": np.get_printoptions(),
                "Python's generator": random.getstate(),
                "warnings": list(warnings.filters), "environment": dict(os.environ),
                "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
                "recursion": sys.getrecursionlimit(), "hooks": (sys.excepthook, sys.stdout),
                "subnormals": float(np.float32(1e-30) * np.float32(1e-10)),
            }

        import matplotlib, numba, gymnasium, scipy.optimize  # have settings of their own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch._dynamo, torch.utils.checkpoint  # have, too
        before, first = settings(), threads()
        import ssm_metarl
        from ssm_metarl import StandardAdapter, MetaTrainer, MetaTrainingConfig, load_pretrained
        from ssm_metarl.compiled import share
        from ssm_metarl.evaluation.episodes import collect_support
        from ssm_metarl.tasks.registry import family_of_env
        after_import = threads()
        share(lambda *_: seen.append(threads()), tasks=1, rows=100)
        policy = load_pretrained("cartpole")
        support = collect_support(policy, family_of_env("cartpole").task({}), 20, "random", seed=0)
        StandardAdapter().adapt(policy, support)
        MetaTrainer(MetaTrainingConfig(num_epochs=1, tasks_per_epoch=2, horizon=10)).train()
        after = settings()
        changed = [n for n in before if before[n] != after[n]]
        print(first, *seen, after_import, threads(), changed)
        """
    )
    assert printed.split(maxsplit=4) == ["2", "1", "2", "2", "[]\n"]
