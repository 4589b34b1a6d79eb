"""The helper that judges float32 results: it passes what rounding does, and nothing more."""

import pytest
import torch

from float32 import assert_only_rounded, assert_rounds_alike

WEIGHTS = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
X = torch.randn(7, 400, generator=torch.Generator().manual_seed(1))


def product(x, weights):
    return {"out": x @ weights}


def test_sums_in_another_order_are_alike():
    assert_only_rounded({"out": X.flip(1) @ WEIGHTS.flip(0)}, product, X, WEIGHTS)


@pytest.mark.parametrize("error", [1e-4, torch.nan, torch.inf])
def test_an_error_in_one_number_is_not(error):
    out = X @ WEIGHTS
    out[3, 2] *= 1 + error
    with pytest.raises(AssertionError, match=r"^out: off by"):
        assert_only_rounded({"out": out}, product, X, WEIGHTS)


def test_what_is_compared_must_have_one_shape():
    out, exact = X @ WEIGHTS, (X.double() @ WEIGHTS.double())
    with pytest.raises(AssertionError, match="value"):
        assert_rounds_alike(out[:1], [out], exact)
