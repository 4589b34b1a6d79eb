"""Rows `ssm_vs_gru` and `scan`: a training step through a whole sequence, and its recurrence alone.

Place in the flow: rows of `performance`. `core.diagonal_ssm` against `torch.nn.GRU`; the scan that
it uses against the other ways to compute a linear recurrence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.results import Measurement, compare
from benchmarks.scans import scan_associative, scan_reference, scan_sequential
from benchmarks.settings import Settings
from benchmarks.timing import interleave, limited_threads
from ssm_metarl.compiled import threads_for_kernels
from ssm_metarl.core import scan as scans
from ssm_metarl.core.diagonal_ssm import DiagonalSSM

WIDTH, STEPS = 128, 128
EQUAL_STATE = 96
"""State size at which two layers of width 128 have a GRU(128, 128)'s number of parameters."""
TOLERANCE = 0.05
"""How far two models of equal size may differ in parameters."""
REFERENCE_LIMIT = 2**28
"""T^2 K N above which the plain loop is left out: a minute a call, all of it filling zeros."""
Scan = Callable[[Tensor, Tensor, Tensor], Tensor]


def num_parameters(module: nn.Module) -> int:
    """Size of a model."""
    return sum(p.numel() for p in module.parameters())


def ssm_vs_gru(settings: Settings) -> list[Measurement]:
    """Forward, squared loss and backward of `DiagonalSSM` against `torch.nn.GRU`."""
    torch.manual_seed(0)
    gru = nn.GRU(WIDTH, WIDTH)
    equal = DiagonalSSM(WIDTH, WIDTH, EQUAL_STATE, 2)
    larger = DiagonalSSM(WIDTH, WIDTH, WIDTH, 2)
    assert abs(num_parameters(equal) / num_parameters(gru) - 1) < TOLERANCE
    repetitions, seconds = settings.choose((15, 0.2), (5, 0.05), (1, 0.0))
    every = torch.get_num_threads()
    cases = [
        ("batch32", 32, equal, every),
        ("batch8", 8, equal, every),
        ("batch128", 128, equal, every),
        ("batch32_state128", 32, larger, every),
    ]
    if every > 1:
        cases.append(("batch32_one_thread", 32, equal, 1))
    rows = []
    for done, (slug, batch, model, threads) in enumerate(cases):
        settings.progress(done / len(cases), slug)
        with limited_threads(threads):
            series = interleave(
                {"ours": ssm_step(model, batch), "GRU": gru_step(gru, batch)},
                repetitions,
                seconds=seconds,
            )
        surplus = num_parameters(model) / num_parameters(gru) - 1
        rows.append(
            compare(
                series,
                f"ssm_vs_gru/{slug}",
                f"2 layers, width {WIDTH}, state {model.state_dim}; T = {STEPS}, batch {batch}",
                "GRU",
                unit="ms",
                scale=1e3,
                note=f"{num_parameters(model):,} and {num_parameters(gru):,} parameters "
                f"({surplus:+.1%}); both with {threads} thread{'s' if threads > 1 else ''}",
            )
        )
    return rows


def ssm_step(model: DiagonalSSM, batch: int, steps: int = STEPS) -> Callable[[], None]:
    """A training step without the optimiser's, one task of ``batch`` sequences."""
    params = dict(model.named_parameters())
    x, target = _sequences(batch, steps, model.input_dim, model.output_dim)
    hidden = torch.zeros(1, batch, model.hidden_size)
    reset = torch.zeros(steps, 1, batch, dtype=torch.bool)
    reset[0] = True

    @threads_for_kernels()  # as in meta-training
    def step() -> None:
        model.zero_grad(set_to_none=True)
        out, _ = model.unroll(params, x[:, None], hidden, reset)
        (out[:, 0] - target).square().mean().backward()

    return step


def gru_step(model: nn.GRU, batch: int, steps: int = STEPS) -> Callable[[], None]:
    """The same of a GRU."""
    x, target = _sequences(batch, steps, model.input_size, model.hidden_size)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        out, _ = model(x)
        (out - target).square().mean().backward()

    return step


def _sequences(batch: int, steps: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(steps, batch, inputs, generator=generator),
        torch.randn(steps, batch, outputs, generator=generator),
    )


def scan_candidates() -> dict[str, Scan]:
    """Our scan and its peers, by name."""
    return {
        "ours": scans.scan,
        "scan_parallel": scans.scan_parallel,
        "scan_sequential": scan_sequential,
        "associative_scan": scan_associative,
        "scan_reference": scan_reference,
    }


def prove_second_gradient(scan: Scan) -> None:
    """Raise AssertionError unless a scan has `scan_reference`'s value and first two derivatives."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    start = draw(2, 37, 3, 4), draw(2, 37, 3, 4), draw(2, 3, 4)
    weights, directions = draw(2, 37, 3, 4), [draw(*x.shape) for x in start]
    results = []
    for candidate in (scan, scan_reference):
        inputs = [x.clone().requires_grad_() for x in start]
        states = candidate(*inputs)
        first = torch.autograd.grad((states.square() * weights).sum(), inputs, create_graph=True)
        along = sum((g * d).sum() for g, d in zip(first, directions, strict=True))
        assert isinstance(along, Tensor)
        second = torch.autograd.grad(along, inputs)
        results.append([states, *first, *second])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def scan(settings: Settings) -> list[Measurement]:
    """Forward and backward of the scan against the others, decay different at each step."""
    lengths, repetitions, seconds = settings.choose(
        ((64, 128, 512, 4096), 9, 0.05), ((64, 512), 3, 0.01), ((8,), 1, 0.0)
    )
    proofs = {name: _proof(candidate) for name, candidate in scan_candidates().items()}
    rows: list[Measurement] = []
    shapes = [(t, *shape) for shape in ((16, 8, 32), (1, 1, 32)) for t in lengths]
    for done, (steps, tasks, envs, size) in enumerate(shapes):
        settings.progress(done / len(shapes), f"T = {steps}, K = {tasks}, N = {envs}")
        calls = scan_calls(steps, tasks, envs, size)
        too_long = steps * steps * tasks * envs > REFERENCE_LIMIT
        if too_long:
            del calls["scan_reference"]
        series = interleave(calls, repetitions, seconds=seconds, best_threads=set(calls) - {"ours"})
        if too_long:
            series.failures["scan_reference"] = "left out: its backward pass is quadratic in T"
        for peer in list(proofs)[1:]:
            rows.append(
                compare(
                    series,
                    f"scan/{peer}_{steps}_{tasks}x{envs}",
                    f"T = {steps}, K = {tasks}, N = {envs}, P = {size}",
                    peer,
                    unit="ms",
                    scale=1e3,
                    note="" if peer in series.failures else proofs[peer],
                    plotted=steps in (lengths[0], lengths[-1]),
                )
            )
    return rows


def _proof(candidate: Scan) -> str:
    try:
        prove_second_gradient(candidate)
    except Exception as error:
        return (
            f"second gradient NOT proven: {type(error).__name__}: {' '.join(str(error).split())}"[
                :160
            ]
        )
    return "second gradient equals the reference's"


def scan_calls(steps: int, tasks: int, envs: int, size: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of each candidate at one shape."""
    generator = torch.Generator().manual_seed(0)
    shape = (tasks, steps, envs, size)
    a = torch.rand(shape, generator=generator).requires_grad_()
    b = torch.randn(shape, generator=generator).requires_grad_()
    hidden = torch.zeros(tasks, envs, size, requires_grad=True)
    weights = torch.randn(shape, generator=generator)

    def call(candidate: Scan) -> Callable[[], None]:
        def run() -> None:
            torch.autograd.grad((candidate(a, b, hidden) * weights).sum(), [a, b, hidden])

        return run

    return {name: call(candidate) for name, candidate in scan_candidates().items()}
