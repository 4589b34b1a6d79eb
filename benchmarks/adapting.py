"""Rows `adapt_one` and `adapt_many`: what adapting to a plant costs, and to a thousand at once.

Place in the flow: rows of `performance`, over `adaptation`. At these sizes the arithmetic is
nothing: the floor is the start of each operation, PyTorch's and the compiled kernels', at what an
empty one costs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.acting import default_policy
from benchmarks.floors import best
from benchmarks.results import Measurement, compare
from benchmarks.settings import Settings
from benchmarks.timing import Series, interleave
from ssm_metarl.adaptation.standard_adapter import StandardAdapter
from ssm_metarl.checkpoint import load_pretrained
from ssm_metarl.core.policy import Policy
from ssm_metarl.env_runner.rollout import collect_rollout, random_actor
from ssm_metarl.env_runner.worlds import make_worlds
from ssm_metarl.seeding import TaskNoise
from ssm_metarl.tasks.registry import family_of_env
from ssm_metarl.types import Rollout

SUPPORT, MANY = 20, 1000
PACKAGE = "ssm_metarl"


def adapt_one(settings: Settings) -> list[Measurement]:
    """Milliseconds of one adaptation, over its floor."""
    repetitions, seconds = settings.choose((21, 0.1), (9, 0.03), (1, 0.0))
    policy, source = trained_policy()
    data, adapter = support(1), StandardAdapter()

    def call() -> object:
        return adapter.adapt(policy, data)

    series = interleave({"ours": call}, repetitions, seconds=seconds, warmup=5)
    if series.failures:
        raise RuntimeError(series.failures["ours"])
    operations, kernels = count_launches(call)
    operation, kernel = launch_seconds()
    floor = operations * operation + kernels * kernel
    figures = series.figures["ours"]
    return [
        compare(
            Series({"ours": figures, "floor": [floor] * len(figures)}),
            "adapt_one/floor",
            f"one step on one episode of {SUPPORT} steps, model {source}",
            "floor",
            unit="ms",
            scale=1e3,
            kind="over",
            floor=floor,
            note=f"{operations} PyTorch operations at {operation * 1e6:.2f} µs and {kernels} "
            f"compiled ones at {kernel * 1e6:.2f} µs",
        )
    ]


def adapt_many(settings: Settings) -> list[Measurement]:
    """The time for a thousand tasks at once over the time for one."""
    repetitions, seconds, many = settings.choose((15, 0.1, MANY), (5, 0.03, MANY), (1, 0.0, 8))
    policy, source = trained_policy()
    one, all_tasks, adapter = support(1), support(many), StandardAdapter()
    series = interleave(
        {
            "one task": lambda: adapter.adapt_tasks(policy, one),
            "ours": lambda: adapter.adapt_tasks(policy, all_tasks),
        },
        repetitions,
        seconds=seconds,
    )
    return [
        compare(
            series,
            "adapt_many/one",
            f"{many:,} tasks at once, one step on {SUPPORT} steps each, model {source}",
            "one task",
            unit="ms",
            scale=1e3,
            kind="over",
        )
    ]


def trained_policy() -> tuple[Policy, str]:
    """The shipped cartpole model, or a fresh one where it does not load; and its name."""
    try:
        return load_pretrained("cartpole"), "cartpole"
    except (OSError, ValueError, KeyError, RuntimeError):
        return default_policy(), "not trained"


def support(num_tasks: int) -> Rollout:
    """20 random steps of each task, episodes following one another."""
    tasks = family_of_env("cartpole").sample("id", num_tasks, seed=0)
    with closing(make_worlds(tasks, 1, seed=0, purpose="benchmark-support")) as worlds:
        noise = TaskNoise(0, "benchmark-support-action", tasks.indices)
        return collect_rollout(
            worlds, random_actor(worlds, noise, SUPPORT), SUPPORT, autoreset=True
        )


class _Counting(TorchDispatchMode):
    """Counts the operations that reach a backend: forward, backward, views and copies alike."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return function(*args, **(kwargs or {}))


def count_launches(call: Callable[[], object]) -> tuple[int, int]:
    """Operations that a call starts: PyTorch's own, and compiled kernels.

    What an operation starts inside itself is not counted: its own start already stands for it.
    """
    call()
    with _Counting() as operations:
        call()
    with counted_kernels() as kernels:
        call()
    return operations.count, kernels[0]


@contextlib.contextmanager
def counted_kernels() -> Iterator[list[int]]:
    """Count the calls of this package's compiled functions from Python, in the list's only item.

    They stand in modules and, as static methods, in classes; both are put back at the end.
    """
    count = [0]
    undo: list[tuple[Any, str, Any]] = []

    def counting(function: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            count[0] += 1
            return function(*args)

        return call

    kinds = _compiled_kinds()
    modules = [m for n, m in list(sys.modules.items()) if n.split(".")[0] == PACKAGE and m]
    classes = {c for m in modules for c in vars(m).values() if isinstance(c, type)}
    owners = [*modules, *(c for c in classes if c.__module__.startswith(PACKAGE))]
    try:
        for owner in owners:
            for name, value in list(vars(owner).items()):
                inner = value.__func__ if isinstance(value, staticmethod) else value
                if isinstance(inner, kinds):
                    undo.append((owner, name, value))
                    wrapped = counting(inner)
                    static = isinstance(value, staticmethod)
                    setattr(owner, name, staticmethod(wrapped) if static else wrapped)
        yield count
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


def _compiled_kinds() -> tuple[type, ...]:
    try:
        from numba.core.dispatcher import Dispatcher
    except ModuleNotFoundError:
        return ()
    return (Dispatcher,)


def launch_seconds() -> tuple[float, float]:
    """Seconds that starting an operation of one element takes, and an empty compiled function."""
    x, out = torch.ones(1), torch.ones(1)
    with torch.no_grad():
        operation = best(lambda: torch.add(x, x, out=out))
    try:
        from numba import njit
    except ModuleNotFoundError:
        return operation, 0.0

    @njit
    def empty(a, b, c, d):  # type: ignore[no-untyped-def]
        return None

    array = np.ones((1, 1), np.float32)
    return operation, best(lambda: empty(array, array, array, array))
