"""What is converted at an entrance to compiled code, and what is refused."""

from __future__ import annotations

import pytest
import torch

from ssm_metarl.entrance import array, counts, fitted, parameters, sequence, shaped


def test_what_fits_is_passed_on_as_it_is() -> None:
    x = torch.zeros(2, 3)
    assert fitted("x", x, (2, 3), torch.float32, "K, N") is x
    assert shaped("x", x, (2, 3), torch.float32, "K, N") is x
    assert array("x", x, (2, 3), torch.float32, "K, N").ctypes.data == x.data_ptr()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.ones(2, 3, dtype=torch.float64), torch.float32),
        (torch.ones(2, 3, dtype=torch.int32), torch.float32),
        (torch.ones(2, 3, dtype=torch.int32), torch.int64),
        (torch.ones(2, 3, dtype=torch.uint8), torch.bool),
        (torch.ones(3, 2).T, torch.float32),
        (torch.ones(1, 3).expand(2, 3), torch.float32),
        (torch.ones(2, 3, requires_grad=True), torch.float32),
        (torch.nn.Parameter(torch.ones(2, 3)), torch.float32),
    ],
)
def test_what_means_the_same_is_converted(value: torch.Tensor, dtype: torch.dtype) -> None:
    got = fitted("x", value, (2, 3), dtype, "K, N")
    assert got.dtype is dtype and got.is_contiguous() and not got.requires_grad
    assert torch.equal(got, torch.ones(2, 3).to(dtype))
    if dtype is not torch.int64:
        taken = array("x", value, (2, 3), dtype, "K, N")
        assert taken.flags.c_contiguous and torch.equal(torch.from_numpy(taken), got)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (
            torch.ones(3, 2),
            torch.float32,
            r"x: expected shape \(K, N\) = \(2, 3\), received \(3, 2",
        ),
        (torch.ones(2, 3), torch.int64, r"x: expected whole numbers \(int64\), received float32"),
        (torch.ones(2, 3), torch.bool, r"x: expected truth values \(bool\), received float32"),
        (torch.ones(2, 3) * 1j, torch.float32, "x: expected float32, received complex64"),
        (torch.ones(2, 3, device="meta"), torch.float32, "x: expected a tensor on cpu, received"),
        ([[1.0]], torch.float32, "x: expected a tensor, received list"),
    ],
)
def test_what_does_not_is_refused(value: object, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted("x", value, (2, 3), dtype, "K, N")  # type: ignore[arg-type]
    if dtype is not torch.int64:
        with pytest.raises(ValueError, match=message):
            array("x", value, (2, 3), dtype, "K, N")  # type: ignore[arg-type]


def test_a_sequence_has_at_least_one_step_and_one_environment() -> None:
    hidden, flat = torch.zeros(2, 3, 5), torch.zeros(7)
    reset = torch.zeros(4, 2, 3, dtype=torch.bool)
    x = torch.zeros(4, 2, 3, 6, dtype=torch.float64)
    got, _, _ = sequence(flat, 7, x, hidden, reset, (6, 5))
    assert got.dtype is torch.float32
    for shape in ((0, 2, 3, 6), (4, 0, 3, 6), (4, 2, 3, 7), (4, 2, 3)):
        with pytest.raises(ValueError, match=r"x: expected shape \(T, K, N, 6\), each at least 1"):
            sequence(flat, 7, torch.zeros(shape), hidden, reset, (6, 5))
    with pytest.raises(ValueError, match="params: expected floating-point numbers, received whole"):
        parameters(torch.zeros(7).long(), 7, 2)


@pytest.mark.parametrize("wrong", [0, -1, 1.0, None])
def test_counts_are_whole_and_positive(wrong: object) -> None:
    counts(a=1, b=2)
    with pytest.raises(ValueError, match="b: expected a whole number of at least 1, received"):
        counts(a=1, b=wrong)  # type: ignore[arg-type]
