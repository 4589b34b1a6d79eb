"""What the compiled kernels share: the compiler's settings, and functions that vectorise.

Place in the flow: before everything that is compiled: the kernels and actors of `core`, the physics
of `tasks`, the bookkeeping of `env_runner`. Numba compiles on first use, for this processor, and
keeps the result on disk: no compiler needs to be installed.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import scipy
import torch
from numba import float32, int32, njit
from numba.core import event

from ssm_metarl.reproducibility import is_reproducible

# Everything that is fast and keeps infinities and NaN what they are: a diverged training must show.
# What the compiler makes of it depends on the processor, and on what was compiled before.
FAST = set() if is_reproducible() else {"contract", "reassoc", "nsz", "arcp"}


def compiled(function: Any, *, fast: Set[str] = FAST) -> Any:
    """Compile a function on its first use; it runs without Python's lock.

    Args:
        function: What to compile.
        fast: How the compiler may change its arithmetic.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fast), "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return njit(**options)(function)


_PLAIN: ContextVar[bool] = ContextVar("plain operations", default=False)


def kernels_apply() -> bool:
    """Whether this thread may call compiled functions (see `plain_operations`)."""
    return not _PLAIN.get()


@contextmanager
def plain_operations() -> Iterator[None]:
    """Have this thread run PyTorch's own operations where there is a compiled function as well.

    The kernels pay where there is much to do. For one task they would first take half a minute
    to compile, where nobody has used them on this machine before.
    """
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def on_compile(announce: Callable[[], None]) -> None:
    """Have ``announce`` called once, when a function is about to be compiled.

    The kernels take up to half a minute, in which nothing else moves.
    """

    class FirstCompilation(event.Listener):
        told = False

        def on_start(self, _: event.Event) -> None:
            if not self.told:
                self.told = True
                announce()

        def on_end(self, _: event.Event) -> None:
            pass

    event.register("numba:compile", FirstCompilation())  # type: ignore[no-untyped-call]


def threads_worth(rows: int) -> int:
    """How many threads so many rows of work are worth, at least one."""
    return max(1, min(_TORCH.before or torch.get_num_threads(), rows // ROWS_WORTH_A_THREAD))


def share(function: Callable[..., None], *args: Any, tasks: int, rows: int) -> None:
    """Call ``function(*args, first, last)`` for all tasks, in as many threads as PyTorch uses.

    Compiled functions hold no lock, and tasks are independent: the result does not depend on the
    number of threads.

    Args:
        function: Does the tasks first to last - 1.
        args: Its first arguments.
        tasks: How many there are.
        rows: Rows of work in all; few are not worth a thread.
    """
    if rows > FEW_ROWS and _BLAS.here.depth == 0:  # no `threads_for_kernels` around it
        with _BLAS:
            share(function, *args, tasks=tasks, rows=rows)
        return
    threads = min(tasks, threads_worth(rows))
    if threads < 2:
        function(*args, 0, tasks)
        return
    ends = [tasks * i // threads for i in range(threads + 1)]
    _keep_apart()
    others = [_pool().submit(function, *args, *part) for part in pairwise(ends[1:])]
    function(*args, 0, ends[1])
    for other in others:
        other.result()


_LOCK = threading.RLock()


class _Depth(threading.local):
    depth = 0  # how often this thread is inside


S = TypeVar("S")


class Held(Generic[S]):
    """A setting of the whole process: another value while any thread is inside, and then as before.

    Args:
        read: Gives the setting.
        write: Changes it.
        value: What it is inside.
    """

    def __init__(self, read: Callable[[], S], write: Callable[[S], object], value: S) -> None:
        self._read, self._write, self._value = read, write, value
        self._inside = 0  # calls of any thread
        self.here = _Depth()
        """How often this thread is inside."""
        self.before: S | None = None
        """What it will be again; None where nobody is inside."""

    def __enter__(self) -> None:
        with _LOCK:
            if self._inside == 0:
                self.before = self._read()
                if self.before != self._value:
                    self._write(self._value)
            self._inside += 1
        self.here.depth += 1

    def __exit__(self, *_: object) -> None:
        self.here.depth -= 1
        with _LOCK:  # threads may come and go in any order
            self._leave(self._inside - 1)

    def after_fork(self) -> None:
        """Forget the threads that a child process does not have."""
        if self._inside > 0:
            self._leave(self.here.depth)

    def _leave(self, still_inside: int) -> None:
        self._inside = still_inside
        if still_inside == 0:
            if self.before is not None and self.before != self._value:
                self._write(self.before)
            self.before = None


class usual_modes(ContextDecorator):
    """Run PyTorch as it is by default, whatever the caller has set for operations of their own.

    That is float32 on the processor, without autocast. Inference mode ends inside, for its tensors
    can take no part in a gradient step, not even one that the caller never sees.

    A class, for a generator takes three times as long to enter, and a control step enters one.
    """

    def __enter__(self) -> None:
        _DTYPE.__enter__()
        self._unusual: ExitStack | None = None
        if torch.is_inference_mode_enabled():
            self._leave_for(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                self._leave_for(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            self._leave_for(torch.device("cpu"))

    def __exit__(self, *error: object) -> None:
        if self._unusual is not None:
            self._unusual.close()
        _DTYPE.__exit__(*error)

    def _leave_for(self, usual: AbstractContextManager[object]) -> None:
        self._unusual = self._unusual or ExitStack()
        self._unusual.enter_context(usual)

    def _recreate_cm(self) -> usual_modes:  # each call of a decorated function has its own
        return usual_modes()


@contextmanager
def threads_for_kernels() -> Iterator[None]:
    """Run PyTorch's own operations in one thread, and compiled functions in as many as it had.

    Its operations are too small here to gain from a second thread, which would spin between them
    on the processor that a kernel could use. Subnormal numbers count as zero meanwhile: processors
    take many times as long for one, and states and gradients that fade over long episodes were
    full of them. Late in a training, an epoch took five times as long.
    """
    with usual_modes(), _TORCH, _BLAS:
        flushed_before = subnormals_are_zero()
        torch.set_flush_denormal(True)  # of this thread
        try:
            yield
        finally:
            torch.set_flush_denormal(flushed_before)


def subnormals_are_zero() -> bool:
    """Whether this thread takes numbers too small for full precision for zero."""
    return float(np.float32(1e-30) * np.float32(1e-10)) == 0


ROWS_WORTH_A_THREAD = 256
"""Below so many rows a thread, waking it takes longer than it saves."""
FEW_ROWS = 16
"""BLAS itself does products of so few rows in one thread, up to a width of 128: a single step of a
policy takes no longer than it must."""


_WORKERS: list[int] = []  # their system thread ids


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="ssm-metarl", initializer=_start_worker)


def _start_worker() -> None:
    _WORKERS.append(threading.get_native_id())
    torch.set_flush_denormal(True)


def _keep_apart() -> None:
    """Keep the workers off the processor that this thread is on (Linux).

    A worker that wakes up is put where it was woken from, and there it waits for this thread, which
    has as much to do. The system takes milliseconds to move one of them, longer than the work.
    """
    if _CURRENT_CPU is None:
        return
    here = _CURRENT_CPU()
    elsewhere = frozenset(os.sched_getaffinity(0) - {here})
    for worker in _WORKERS if elsewhere else ():
        if _ALLOWED.get(worker) != elsewhere:
            os.sched_setaffinity(worker, elsewhere)
            _ALLOWED[worker] = elsewhere


_ALLOWED: dict[int, frozenset[int]] = {}
_CURRENT_CPU = getattr(ctypes.CDLL(None), "sched_getcpu", None) if os.name == "posix" else None


def _blas_threads() -> Held[int]:
    """The threads of the products inside compiled functions (SciPy's BLAS), where it has any.

    They are small, tasks run beside each other already, and its own threads would wait in line.
    The number is the whole process's: whoever calls SciPy gets it back.
    """
    libraries = (Path(scipy.__file__).parents[1] / "scipy.libs").glob("*openblas*")
    for library in libraries:  # none on systems where SciPy uses another BLAS
        handle = ctypes.CDLL(str(library))
        if hasattr(handle, "scipy_openblas_set_num_threads"):
            return Held(
                handle.scipy_openblas_get_num_threads, handle.scipy_openblas_set_num_threads, 1
            )
    return Held(lambda: 1, lambda _: None, 1)


_BLAS, _TORCH = _blas_threads(), Held(torch.get_num_threads, torch.set_num_threads, 1)
_DTYPE = Held(torch.get_default_dtype, torch.set_default_dtype, torch.float32)


def _start_anew() -> None:
    """A forked child has none of its parent's other threads, nor what they were about to do."""
    _pool.cache_clear()
    _WORKERS.clear()
    _ALLOWED.clear()
    for setting in (_BLAS, _TORCH, _DTYPE):
        setting.after_fork()
    _LOCK.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_start_anew
    )

ZERO, HALF, ONE, TWO = float32(0), float32(0.5), float32(1), float32(2)
LOG2_E, LN2_HIGH, LN2_LOW = float32(1.44269504), float32(0.693359375), float32(-2.12194440e-4)
SQRT_HALF, NORMAL_DENSITY = float32(math.sqrt(0.5)), float32(1 / math.sqrt(2 * math.pi))
SMALLEST, LARGEST = float32(-87), float32(88)


@partial(compiled, fast=FAST - {"reassoc"})
def exp(x):  # type: ignore[no-untyped-def]
    """e^x to 1e-7 of itself, without a branch: Cephes' expf.

    The two parts of ln 2 are taken off one after the other. In one, as a compiler that may
    reassociate does it, they cost a processor without fused operations a digit.
    """
    x = min(max(x, SMALLEST), LARGEST)
    n = np.floor(x * LOG2_E + HALF)
    x = x - n * LN2_HIGH - n * LN2_LOW
    p = float32(1.9875691500e-4)
    p = p * x + float32(1.3981999507e-3)
    p = p * x + float32(8.3334519073e-3)
    p = p * x + float32(4.1665795894e-2)
    p = p * x + float32(1.6666665459e-1)
    p = p * x + float32(5.0000001201e-1)
    power = (int32(n) + int32(127)) << int32(23)
    return (p * x * x + x + ONE) * np.int32(power).view(np.float32)


@compiled
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp(-x))


@compiled
def normal(x):  # type: ignore[no-untyped-def]
    """Distribution function and density of N(0, 1), to 1e-7: Abramowitz & Stegun 1964, 7.1.26."""
    gauss = exp(-HALF * x * x)
    t = ONE / (ONE + float32(0.3275911) * SQRT_HALF * abs(x))
    p = float32(1.061405429)
    p = p * t + float32(-1.453152027)
    p = p * t + float32(1.421413741)
    p = p * t + float32(-0.284496736)
    p = p * t + float32(0.254829592)
    tail = HALF * p * t * gauss
    return (tail if x < ZERO else ONE - tail), gauss * NORMAL_DENSITY


@compiled
def dot(left, right, out):  # type: ignore[no-untyped-def]
    """Out = left right, by BLAS; a function of its own, so that it is compiled once."""
    np.dot(left, right, out)


@compiled
def copy_rows(rows, out):  # type: ignore[no-untyped-def]
    """out[:] = rows, whose assignment would take Numba seconds to compile."""
    for m in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            out[m, i] = rows[m, i]


@compiled
def add_product(left, right, out, scratch):  # type: ignore[no-untyped-def]
    """Out += left^T right, for rows of cotangents and inputs."""
    dot(left.T, right, scratch)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] += scratch[i, j]


@compiled
def add_rows(rows, out):  # type: ignore[no-untyped-def]
    """Out += the sum of the rows."""
    for m in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            out[i] += rows[m, i]


@compiled
def add_to_rows(vector, rows):  # type: ignore[no-untyped-def]
    """Add a vector to every row."""
    for m in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            rows[m, i] += vector[i]
