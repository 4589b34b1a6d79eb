"""StateSpaceModel on a processor: its output, gradient, and gradient of the gradient.

Place in the flow: stage 3, run by `fused`; equal to the plain operations of `ssm` within float32
rounding. The state is a nonlinear function of the previous one, so its recurrence is one small
matrix product after another; all else is done in blocks of rows that stay in cache.

For one task (rows are time-major, row = t N + n; M' is the transpose)::

    inner_t = relu(A1 h_{t-1} + a1)       h_{t-1} is zero where an episode starts
    h_t = A2 inner_t + a2 + B x_t + b
    outer_t = relu(C1 h_t + c1)
    out_t = C2 outer_t + c2 + D x_t + d

Shapes: T steps of N environments are R = T N rows; X inputs, P states, width H, M outputs::

    flat      (.,)       parameters one after another, in the order of ``named_parameters``
    A1t, A2t  (P, H), (H, P): from flat, by `prepare`
    x         (R, X)     hidden  (N, P)          reset  (R,) True where an episode starts
    h         (R, P)     inner, outer  (R, H)    kept for the gradient
    out       (R, M)     end  (N, P)             the output, and the state after the last step
    carry     (N, P)     cotangent of that state; becomes that of ``hidden``

g_v is the cotangent of v: the derivative in v of what will be made of the output. v_ and g_v_ are
the derivatives of both along a direction flat_ in parameter space, as in `diagonal_tangent`. A relu
has no second derivative: whatever passes it does so where its output is positive.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from ssm_metarl.compiled import ZERO, add_product, add_rows, add_to_rows, compiled, dot


@compiled
def block_rows(N, R, P, H):
    """Rows of a block: whole steps, its products below BLAS's threading."""
    return min(R, max(1, min(128, 2**18 // (P * H)) // N) * N)


@compiled
def parameters_of(flat, X, P, H, M):
    """The parameters as views, in the order of the module's ``named_parameters``."""
    o = H * P
    A1, (a1, o) = flat[:o].reshape(H, P), (flat[o : o + H], o + H)
    A2, o = flat[o : o + P * H].reshape(P, H), o + P * H
    a2, o = flat[o : o + P], o + P
    B, o = flat[o : o + P * X].reshape(P, X), o + P * X
    b, o = flat[o : o + P], o + P
    C1, o = flat[o : o + H * P].reshape(H, P), o + H * P
    c1, o = flat[o : o + H], o + H
    C2, o = flat[o : o + M * H].reshape(M, H), o + M * H
    c2, o = flat[o : o + M], o + M
    D, o = flat[o : o + M * X].reshape(M, X), o + M * X
    return A1, a1, A2, a2, B, b, C1, c1, C2, c2, D, flat[o : o + M]


@compiled
def prepare(flat, A1t, A2t):
    """Fill the transposes of A1 and A2: BLAS takes half as long again for a view of a few rows."""
    _, P, H = A1t.shape
    for k in range(len(flat)):
        for i in range(H):
            for p in range(P):
                A1t[k, p, i] = flat[k, i * P + p]
                A2t[k, i, p] = flat[k, H * P + H + p * H + i]


@compiled
def add(rows, out):
    """Out += rows."""
    for m in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[m, i] += rows[m, i]


@compiled
def rectify(bias, rows):
    """Rows = relu(rows + bias); NaN stays."""
    for m in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            value = rows[m, i] + bias[i]
            rows[m, i] = ZERO if value <= ZERO else value


@compiled
def pass_where_positive(rectified, rows):
    """What a relu lets through, from its output."""
    for m in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            rows[m, i] = ZERO if rectified[m, i] <= ZERO else rows[m, i]


@compiled
def take_previous(h, hidden, reset, first, before):
    """Fill ``before`` with the states before rows first, first + 1, ...; zero at a reset."""
    N, P = hidden.shape
    for m in range(before.shape[0]):
        row = first + m
        if reset[row]:
            for p in range(P):
                before[m, p] = ZERO
        elif row < N:
            for p in range(P):
                before[m, p] = hidden[row, p]
        else:
            for p in range(P):
                before[m, p] = h[row - N, p]


@compiled
def forget(reset, first, carry):
    """Zero the cotangents that would pass a reset."""
    for n in range(carry.shape[0]):
        if reset[first + n]:
            for p in range(carry.shape[1]):
                carry[n, p] = ZERO


@compiled
def advance(A1t, A2t, a1, hidden, reset, h, inner, first, last, before, product):
    """The recurrence, in rows h that hold a2 + B x + b already."""
    N = len(hidden)
    for row in range(first, last, N):
        step_h, step_inner = h[row : row + N], inner[row : row + N]
        take_previous(h, hidden, reset, row, before)
        dot(before, A1t, step_inner)
        rectify(a1, step_inner)
        dot(step_inner, A2t, product)
        add(product, step_h)


@compiled
def forward_task(
    flat, A1t, A2t, x, hidden, reset, out, end, h, inner, outer, before, product, out_product
):  # fmt: skip
    """Fills out, end (which may be ``hidden``), h, inner and outer; what follows is scratch."""
    (R, X), (N, P), H, (rows, M) = x.shape, hidden.shape, inner.shape[1], out_product.shape
    _, a1, _, a2, B, b, C1, c1, C2, c2, D, d = parameters_of(flat, X, P, H, M)
    for first in range(0, R, rows):
        last = min(first + rows, R)
        block_x, block_h = x[first:last], h[first:last]
        block_outer, block_out = outer[first:last], out[first:last]
        dot(block_x, B.T, block_h)
        add_to_rows(a2, block_h)
        add_to_rows(b, block_h)
        advance(A1t, A2t, a1, hidden, reset, h, inner, first, last, before, product)
        dot(block_h, C1.T, block_outer)
        rectify(c1, block_outer)
        dot(block_outer, C2.T, block_out)
        dot(block_x, D.T, out_product[: last - first])
        add(out_product, block_out)
        add_to_rows(c2, block_out)
        add_to_rows(d, block_out)
    for n in range(N):
        for p in range(P):
            end[n, p] = h[R - N + n, p]


@compiled
def go_back(A1, A2, reset, inner, g_h, g_inner, carry, first):
    """The recurrence of the cotangents over a block: fills g_inner, adds what comes from later."""
    N = len(carry)
    for m in range(len(g_h) - N, -1, -N):
        step, row = g_h[m : m + N], first + m
        add(carry, step)
        dot(step, A2, g_inner[m : m + N])
        pass_where_positive(inner[row : row + N], g_inner[m : m + N])
        dot(g_inner[m : m + N], A1, carry)
        forget(reset, row, carry)


@compiled
def gradient_task(
    flat, x, hidden, reset, h, inner, outer, g_out, carry, g_flat,
    h_blocks, wide_blocks, HP, PH, PI, MH, MI,
):  # fmt: skip
    """Fills g_flat, which holds zeros; h_blocks and what follows is scratch."""
    (R, X), P, H, M, rows = x.shape, hidden.shape[1], inner.shape[1], len(MH), len(h_blocks[0])
    A1, _, A2, _, _, _, C1, _, C2, _, _, _ = parameters_of(flat, X, P, H, M)
    g_A1, g_a1, g_A2, g_a2, g_B, g_b, g_C1, g_c1, g_C2, g_c2, g_D, g_d = parameters_of(
        g_flat, X, P, H, M
    )
    for first in range((R - 1) // rows * rows, -1, -rows):
        last = min(first + rows, R)
        g_h, before = h_blocks[0][: last - first], h_blocks[1][: last - first]
        g_inner = g_outer = wide_blocks[0][: last - first]
        block_g, block_x = g_out[first:last], x[first:last]
        add_product(block_g, outer[first:last], g_C2, MH)
        add_product(block_g, block_x, g_D, MI)
        add_rows(block_g, g_c2)
        add_rows(block_g, g_d)
        dot(block_g, C2, g_outer)
        pass_where_positive(outer[first:last], g_outer)
        add_product(g_outer, h[first:last], g_C1, HP)
        add_rows(g_outer, g_c1)
        dot(g_outer, C1, g_h)
        go_back(A1, A2, reset, inner, g_h, g_inner, carry, first)
        add_product(g_h, inner[first:last], g_A2, PH)
        add_product(g_h, block_x, g_B, PI)
        add_rows(g_h, g_a2)
        add_rows(g_h, g_b)
        take_previous(h, hidden, reset, first, before)
        add_product(g_inner, before, g_A1, HP)
        add_rows(g_inner, g_a1)


@compiled
def advance_tangent(A1t, A2t, hidden_, reset, inner, h_, inner_, first, last, step, wide_step):
    """Derivative of `advance`, in rows that hold what does not come from the previous state's.

    Those are A1_ h_{t-1} + a1_ of inner_, and A2_ inner + a2_ + B_ x + b_ of h_.
    """
    N = len(hidden_)
    for row in range(first, last, N):
        step_inner_ = inner_[row : row + N]
        take_previous(h_, hidden_, reset, row, step)
        dot(step, A1t, wide_step)
        add(wide_step, step_inner_)
        pass_where_positive(inner[row : row + N], step_inner_)
        dot(step_inner_, A2t, step)
        add(step, h_[row : row + N])


@compiled
def go_back_tangent(A1, A2, reset, inner, g_h_, g_inner_, product, carry_, first, wide_step):
    """Derivative of `go_back`; g_inner_ holds A2_' g_h already, and product A1_' g_inner."""
    N = len(carry_)
    for m in range(len(g_h_) - N, -1, -N):
        step_, step_inner_, row = g_h_[m : m + N], g_inner_[m : m + N], first + m
        add(carry_, step_)
        dot(step_, A2, wide_step)
        add(wide_step, step_inner_)
        pass_where_positive(inner[row : row + N], step_inner_)
        dot(step_inner_, A1, carry_)
        add(product[m : m + N], carry_)
        forget(reset, row, carry_)


@compiled
def tangent_task(
    flat, A1t, A2t, flat_, x, hidden, reset, h, inner, outer, g_out, carry, out_, end_, g_flat_,
    h_, inner_, outer_, h_blocks, wide_blocks, out_block, HP, PH, PI, MH,
):  # fmt: skip
    """Fills out_, end_ and g_flat_, which holds zeros; h_ and what follows is scratch."""
    (R, X), (N, P), H, (rows, M) = x.shape, hidden.shape, inner.shape[1], out_block.shape
    A1, _, A2, _, _, _, C1, _, C2, _, _, _ = parameters_of(flat, X, P, H, M)
    A1_, a1_, A2_, a2_, B_, b_, C1_, c1_, C2_, c2_, D_, d_ = parameters_of(flat_, X, P, H, M)
    end_[:] = ZERO  # the first state's derivative, until the last one's is known
    for first in range(0, R, rows):
        last = min(first + rows, R)
        size = last - first
        before, h_product = h_blocks[0][:size], h_blocks[1][:size]
        product, out_product = wide_blocks[0][:size], out_block[:size]
        block_h_, block_inner_ = h_[first:last], inner_[first:last]
        block_outer_, block_out_ = outer_[first:last], out_[first:last]
        take_previous(h, hidden, reset, first, before)
        dot(before, A1_.T, block_inner_)
        add_to_rows(a1_, block_inner_)
        dot(inner[first:last], A2_.T, block_h_)
        dot(x[first:last], B_.T, h_product)
        add(h_product, block_h_)
        add_to_rows(a2_, block_h_)
        add_to_rows(b_, block_h_)
        advance_tangent(A1t, A2t, end_, reset, inner, h_, inner_, first, last,
                        before[:N], product[:N])  # fmt: skip
        dot(block_h_, C1.T, block_outer_)
        dot(h[first:last], C1_.T, product)
        add(product, block_outer_)
        add_to_rows(c1_, block_outer_)
        pass_where_positive(outer[first:last], block_outer_)
        dot(block_outer_, C2.T, block_out_)
        dot(outer[first:last], C2_.T, out_product)
        add(out_product, block_out_)
        dot(x[first:last], D_.T, out_product)
        add(out_product, block_out_)
        add_to_rows(c2_, block_out_)
        add_to_rows(d_, block_out_)

    carry_ = np.zeros_like(carry)
    g_A1_, g_a1_, g_A2_, g_a2_, g_B_, g_b_, g_C1_, g_c1_, g_C2_, _, _, _ = parameters_of(
        g_flat_, X, P, H, M
    )
    for first in range((R - 1) // rows * rows, -1, -rows):
        last = min(first + rows, R)
        size = last - first
        g_h, g_h_, h_product = h_blocks[0][:size], h_blocks[1][:size], h_blocks[2][:size]
        g_wide, g_wide_ = wide_blocks[0][:size], wide_blocks[1][:size]  # of outer, then of inner
        block_g = g_out[first:last]
        add_product(block_g, outer_[first:last], g_C2_, MH)
        dot(block_g, C2, g_wide)
        dot(block_g, C2_, g_wide_)
        pass_where_positive(outer[first:last], g_wide)
        pass_where_positive(outer[first:last], g_wide_)
        add_product(g_wide_, h[first:last], g_C1_, HP)
        add_product(g_wide, h_[first:last], g_C1_, HP)
        add_rows(g_wide_, g_c1_)
        dot(g_wide, C1, g_h)
        dot(g_wide_, C1, g_h_)
        dot(g_wide, C1_, h_product)
        add(h_product, g_h_)
        go_back(A1, A2, reset, inner, g_h, g_wide, carry, first)
        dot(g_h, A2_, g_wide_)
        dot(g_wide, A1_, h_product)
        go_back_tangent(A1, A2, reset, inner, g_h_, g_wide_, h_product, carry_, first,
                        wide_blocks[2][:N])  # fmt: skip
        add_product(g_h_, inner[first:last], g_A2_, PH)
        add_product(g_h, inner_[first:last], g_A2_, PH)
        add_product(g_h_, x[first:last], g_B_, PI)
        add_rows(g_h_, g_a2_)
        add_rows(g_h_, g_b_)
        take_previous(h, hidden, reset, first, h_product)
        add_product(g_wide_, h_product, g_A1_, HP)
        take_previous(h_, end_, reset, first, h_product)
        add_product(g_wide, h_product, g_A1_, HP)
        add_rows(g_wide_, g_a1_)
    for n in range(N):
        for p in range(P):
            end_[n, p] = h_[R - N + n, p]


@compiled
def forward(flat, A1t, A2t, x, hidden, reset, out, end, h, inner, outer, first, last):
    """`forward_task` for the tasks first to last - 1; shared parameters have a single row."""
    (N, P), (R, H), M = hidden[0].shape, inner[0].shape, out.shape[2]
    before, product = np.empty((N, P), x.dtype), np.empty((N, P), x.dtype)
    out_product = np.empty((block_rows(N, R, P, H), M), x.dtype)
    for k in range(first, last):
        j = k if len(flat) > 1 else 0
        forward_task(flat[j], A1t[j], A2t[j], x[k], hidden[k], reset[k], out[k], end[k],
                     h[k], inner[k], outer[k], before, product, out_product)  # fmt: skip


@compiled
def gradient(
    flat, A1t, A2t, x, hidden, reset, h, inner, outer, g_out, carry, g_flat, first, last
):  # fmt: skip
    """`gradient_task` for the tasks first to last - 1."""
    (N, P), (R, H), X, M = hidden[0].shape, inner[0].shape, x.shape[2], g_out.shape[2]
    kind, rows = x.dtype, block_rows(N, R, P, H)
    h_blocks, wide_blocks = np.empty((2, rows, P), kind), np.empty((1, rows, H), kind)
    HP, PH, PI = np.empty((H, P), kind), np.empty((P, H), kind), np.empty((P, X), kind)
    MH, MI = np.empty((M, H), kind), np.empty((M, X), kind)
    for k in range(first, last):
        j = k if len(flat) > 1 else 0
        gradient_task(flat[j], x[k], hidden[k], reset[k], h[k], inner[k], outer[k],
                      g_out[k], carry[k], g_flat[k],
                      h_blocks, wide_blocks, HP, PH, PI, MH, MI)  # fmt: skip


@compiled
def tangent(
    flat, A1t, A2t, flat_, x, hidden, reset, h, inner, outer,
    g_out, carry, out_, end_, g_flat_, first, last,
):  # fmt: skip
    """`tangent_task` for the tasks first to last - 1."""
    (N, P), (R, H), X, M = hidden[0].shape, inner[0].shape, x.shape[2], g_out.shape[2]
    kind, rows = x.dtype, block_rows(N, R, P, H)
    h_, inner_, outer_ = np.empty_like(h[0]), np.empty_like(inner[0]), np.empty_like(outer[0])
    h_blocks, wide_blocks = np.empty((3, rows, P), kind), np.empty((3, rows, H), kind)
    out_block = np.empty((rows, M), kind)
    HP, PH = np.empty((H, P), kind), np.empty((P, H), kind)
    PI, MH = np.empty((P, X), kind), np.empty((M, H), kind)
    for k in range(first, last):
        j = k if len(flat) > 1 else 0
        tangent_task(flat[j], A1t[j], A2t[j], flat_[k], x[k], hidden[k], reset[k],
                     h[k], inner[k], outer[k], g_out[k], carry[k], out_[k], end_[k], g_flat_[k],
                     h_, inner_, outer_, h_blocks, wide_blocks, out_block,
                     HP, PH, PI, MH)  # fmt: skip


class SSMKernel:
    """The three functions for `fused`, and the shapes of what they keep.

    Args:
        state_dim: P.
        hidden_dim: H, width of the hidden layers.
        output_dim: M.
    """

    forward, gradient, tangent = (staticmethod(f) for f in (forward, gradient, tangent))

    def __init__(self, state_dim: int, hidden_dim: int, output_dim: int) -> None:
        self.hidden_size, self.hidden_dim, self.output_dim = state_dim, hidden_dim, output_dim

    def prepare(self, flat: np.ndarray, input_dim: int) -> tuple[np.ndarray, ...]:
        """The first arguments of the three functions, from parameters (K, ...)."""
        P, H = self.hidden_size, self.hidden_dim
        A1t, A2t = (np.empty((len(flat), *shape), np.float32) for shape in ((P, H), (H, P)))
        prepare(flat, A1t, A2t)
        return flat, A1t, A2t

    def activations(self, num_tasks: int, rows: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of h, inner and outer of K tasks."""
        wide = (num_tasks, rows, self.hidden_dim)
        return (num_tasks, rows, self.hidden_size), wide, wide
