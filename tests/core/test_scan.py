"""The three scans are one function: in value, gradient and second gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.scans import scan_reference, scan_sequential
from ssm_metarl.core.scan import reset_decay, scan, scan_compiled, scan_parallel

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]
FAST: dict[str, Scan] = {
    "compiled": scan_compiled,
    "sequential": scan_sequential,
    "parallel": scan_parallel,
    "parallel-chunk-3": lambda a, b, h: scan_parallel(a, b, h, chunk=3),
}
every_fast_scan = pytest.mark.parametrize("scan", FAST.values(), ids=FAST.keys())
every_scan = pytest.mark.parametrize(
    "scan", [scan_reference, *FAST.values()], ids=["reference", *FAST.keys()]
)


def problem(
    seed: int, tasks: int = 2, steps: int = 5, envs: int = 2, modes: int = 3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decay (K, P), reset flags (K, T, N), drive (K, T, N, P) and hidden (K, N, P)."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, dtype=torch.float64)

    decay = 0.2 + 0.7 * draw(tasks, modes)
    reset = draw(tasks, steps, envs) < 0.25
    return decay, reset, draw(tasks, steps, envs, modes) - 0.5, draw(tasks, envs, modes) - 0.5


def first_and_second_gradient(
    scan: Scan, decay: Tensor, reset: Tensor, drive: Tensor, hidden: Tensor
) -> list[Tensor]:
    """Value, gradient, and gradient of the gradient's squared norm, for all three inputs."""
    inputs = [x.clone().requires_grad_() for x in (decay, drive, hidden)]
    states = scan(reset_decay(inputs[0], reset), inputs[1], inputs[2])
    first = torch.autograd.grad(states.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [states, *first, *second]


@every_fast_scan
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10_000),
    tasks=st.integers(1, 3),
    steps=st.integers(1, 40),
    envs=st.integers(1, 2),
)
def test_equals_the_loop_in_value_gradient_and_second_gradient(
    scan: Scan, seed: int, tasks: int, steps: int, envs: int
) -> None:
    arguments = problem(seed, tasks, steps, envs)
    expected = first_and_second_gradient(scan_reference, *arguments)
    received = first_and_second_gradient(scan, *arguments)
    for e, r in zip(expected, received, strict=True):
        torch.testing.assert_close(r, e, rtol=1e-10, atol=1e-12)


@every_fast_scan
@pytest.mark.parametrize("seed", [0, 1])
def test_gradcheck_and_gradgradcheck(scan: Scan, seed: int) -> None:
    decay, reset, drive, hidden = problem(seed, steps=4)
    assert reset.any(), "the case must have a reset"

    def run(decay: Tensor, drive: Tensor, hidden: Tensor) -> Tensor:
        return scan(reset_decay(decay, reset), drive, hidden)

    inputs = tuple(x.requires_grad_() for x in (decay, drive, hidden))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("steps", [1, 2, 7, 31, 32, 33, 64])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 32, 100])
def test_chunked_equals_whole(steps: int, chunk: int) -> None:
    decay, reset, drive, hidden = problem(steps, steps=steps)
    a = reset_decay(decay, reset)
    torch.testing.assert_close(
        scan_parallel(a, drive, hidden, chunk=chunk), scan_reference(a, drive, hidden)
    )


@every_scan
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_pieces_with_carried_hidden_equal_the_whole(scan: Scan, cut: int) -> None:
    decay, reset, drive, hidden = problem(3, steps=9)
    a = reset_decay(decay, reset)
    first = scan(a[:, :cut], drive[:, :cut], hidden)
    second = scan(a[:, cut:], drive[:, cut:], first[:, -1])
    torch.testing.assert_close(torch.cat([first, second], dim=1), scan(a, drive, hidden))


@every_scan
def test_a_reset_in_the_middle_makes_two_sequences(scan: Scan) -> None:
    decay, reset, drive, hidden = problem(4, steps=8)
    reset = torch.zeros_like(reset)
    reset[:, 5] = True
    whole = scan(reset_decay(decay, reset), drive, hidden)
    a = decay[:, None, None, :]
    first = scan(a, drive[:, :5], hidden)
    second = scan(a, drive[:, 5:], torch.zeros_like(hidden))
    torch.testing.assert_close(whole, torch.cat([first, second], dim=1))


@every_scan
def test_one_step(scan: Scan) -> None:
    decay, _, drive, hidden = problem(5, steps=1)
    states = scan(decay[:, None, None, :], drive, hidden)
    torch.testing.assert_close(states[:, 0], decay[:, None, :] * hidden + drive[:, 0])


@every_scan
def test_constant_drive_gives_the_geometric_series(scan: Scan) -> None:
    decay, steps = 0.9, 50
    drive = torch.ones(1, steps, 1, 1, dtype=torch.float64)
    states = scan(torch.tensor([decay], dtype=torch.float64), drive, drive[:, 0] * 0)
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    torch.testing.assert_close(states.flatten(), (1 - decay**t) / (1 - decay))


@every_scan
def test_gradients_of_the_last_state_are_powers_of_the_decay(scan: Scan) -> None:
    steps = 6
    a = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(1, steps, 1, 1, dtype=torch.float64, requires_grad=True)
    hidden = torch.ones(1, 1, 1, dtype=torch.float64, requires_grad=True)
    scan(a, b, hidden)[0, -1, 0, 0].backward()
    powers = 0.5 ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(b.grad.flatten(), powers)
    assert hidden.grad.item() == pytest.approx(0.5**steps)
    assert a.grad.item() == pytest.approx(steps * 0.5 ** (steps - 1))


@every_scan
def test_no_gradient_crosses_a_reset(scan: Scan) -> None:
    decay, reset, drive, hidden = problem(6, steps=6)
    reset = torch.zeros_like(reset)
    reset[:, 3] = True
    drive.requires_grad_()
    hidden.requires_grad_()
    states = scan(reset_decay(decay, reset), drive, hidden)
    grad_drive, grad_hidden = torch.autograd.grad(states[:, 3:].sum(), [drive, hidden])
    assert torch.count_nonzero(grad_hidden) == 0
    assert torch.count_nonzero(grad_drive[:, :3]) == 0
    assert torch.count_nonzero(grad_drive[:, 3:]) == grad_drive[:, 3:].numel()


def test_shared_decay_serves_every_task() -> None:
    decay, reset, _, _ = problem(7)
    shared = decay[0]
    torch.testing.assert_close(reset_decay(shared, reset), reset_decay(shared.expand(2, -1), reset))
    assert torch.count_nonzero(reset_decay(shared, reset)[reset]) == 0


def test_what_does_not_fit_is_refused() -> None:
    a, b, hidden = torch.rand(2, 5, 3, 4), torch.rand(2, 5, 3, 4), torch.rand(2, 3, 4)
    scan_compiled(a, b, hidden.double())
    with pytest.raises(ValueError, match=r"hidden: expected shape .* = \(2, 3, 4\), received \(1,"):
        scan_compiled(a, b, hidden[:1])
    with pytest.raises(ValueError, match=r"a: expected a shape that broadcasts to \(2, 5, 3, 4\)"):
        scan_compiled(a[:, :2], b, hidden)
    with pytest.raises(ValueError, match=r"b: expected shape \(\.\.\., T, N, P\), .*float16"):
        scan_compiled(a, b.half(), hidden)
    half = scan(a.half(), b.half(), hidden.half())
    torch.testing.assert_close(half.float(), scan(a, b, hidden), rtol=0.02, atol=0.02)
