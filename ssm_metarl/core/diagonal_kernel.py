"""DiagonalSSM on a processor: its output, and the gradient of its parameters.

Place in the flow: stage 3, run by `fused`; `diagonal_tangent` is the gradient's gradient. Equal to
the plain operations of `diagonal_ssm` within float32 rounding. Those move every tensor through
memory a hundred times; here a block of rows passes through all layers while it is in cache. Matrix
products are BLAS calls, and what lies between them is compiled.

For one task and one layer (rows are time-major, row = t N + n; M' is the transpose)::

    u = (x - mean) r,  r = 1 / sqrt(var + eps)        layer normalisation: of all channels, by mean
                                                      and variance of the first norm
    h_t = a h_{t-1} + b u_t + c                       b = scale B, c = scale times the bias of B
    z = C h + D u,  y = gelu(z),  s = sigmoid(G y)
    x <- x + y s                                      the stream; at first W x
    out = weight x + bias                             after the last layer, where there are readouts

Shapes: T steps of N environments are R = T N rows; X inputs, width D, P states in each of L layers,
M readouts::

    norm      1..D       how many leading channels the normalisation takes mean and variance over
    readouts  (., 2)     of each, where its weight starts in flat (its bias follows), and its rows
    flat      (.,)       parameters one after another, in the order of ``named_parameters``
    x         (R, X)     hidden  (N, L P)     reset  (R,) True where an episode starts
    a, c      (L, P)     b  (L, P, D)         weight, bias  (M, D), (M,): from flat, by `prepare`
    stream    (R, D)     u, z, s  (L, R, D)   r  (L, R)   h  (L, R, P): kept for the gradient
    out       (R, M), or (R, D): the stream, where there are no readouts

g_v is the cotangent of v: the derivative in v of what will be made of the output.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

import numpy as np
from numba import float32

from ssm_metarl.compiled import (
    ONE,
    ZERO,
    add_product,
    add_rows,
    add_to_rows,
    compiled,
    copy_rows,
    dot,
    normal,
    sigmoid,
)

EPS = float32(1e-5)  # of the layer normalisation, as in torch


@compiled
def block_rows(D, P):
    """Rows of a block: its working set, some twenty arrays of this many rows, stays in cache."""
    return max(32, min(128, 2**13 // max(D, P)))


@compiled
def layer_of(flat, layer, X, D, P):
    """One layer's parameters as views, in the order of the module's ``named_parameters``."""
    o = D * X + D + layer * (2 * P + 3 * D + 2 * P * D + D * D)
    rate, o = flat[o : o + P], o + P
    skip, o = flat[o : o + D], o + D
    B, o = flat[o : o + P * D].reshape(P, D), o + P * D
    B_bias, o = flat[o : o + P], o + P
    C, o = flat[o : o + D * P].reshape(D, P), o + D * P
    C_bias, o = flat[o : o + D], o + D
    G, o = flat[o : o + D * D].reshape(D, D), o + D * D
    return rate, skip, B, B_bias, C, C_bias, G, flat[o : o + D]


@compiled
def take_readouts(flat, readouts, weight, bias):
    """Put the weights (M, D) and biases (M,) of all linear readouts together."""
    D, row = weight.shape[1], 0
    for start, rows in readouts:
        end = start + rows * D
        copy_rows(flat[start:end].reshape(rows, D), weight[row : row + rows])
        for i in range(rows):
            bias[row + i] = flat[end + i]
        row += rows


@compiled
def put_readouts(weight, bias, readouts, flat):
    """The way back: into the places of the parameters."""
    D, row = weight.shape[1], 0
    for start, rows in readouts:
        end = start + rows * D
        copy_rows(weight[row : row + rows], flat[start:end].reshape(rows, D))
        for i in range(rows):
            flat[end + i] = bias[row + i]
        row += rows


@compiled
def normalised_input(rate, B, B_bias, a, b, c):
    """Decay a, and the input's weights b and bias c with their normalisation."""
    for p in range(a.shape[0]):
        e = math.exp(rate[p])
        a[p] = math.exp(-e)
        scale = float32(math.sqrt(-math.expm1(-2 * e)))
        c[p] = scale * B_bias[p]
        for i in range(B.shape[1]):
            b[p, i] = scale * B[p, i]


@compiled
def prepare(readouts, flat, a, b, c, weight, bias, X):
    """Fill what depends on the parameters (K, ...) alone: a, b, c of each layer, and readouts."""
    (L, P, D) = b[0].shape
    for k in range(len(flat)):
        for layer in range(L):
            rate, _, B, B_bias, _, _, _, _ = layer_of(flat[k], layer, X, D, P)
            normalised_input(rate, B, B_bias, a[k][layer], b[k][layer], c[k][layer])
        take_readouts(flat[k], readouts, weight[k], bias[k])


@compiled
def forward_task(
    norm, readouts, flat, a, b, c, weight, bias, x, hidden, reset, out, stream, u, r, h, z, s
):  # fmt: skip
    """One task: fills out, stream, u, r, h, z, s."""
    (R, X), (L, _, D), P = x.shape, u.shape, h.shape[2]
    rows = block_rows(D, P)
    encoder, encoder_bias = flat[: D * X].reshape(D, X), flat[D * X : D * X + D]
    y_block = np.empty((rows, D), x.dtype)
    for first in range(0, R, rows):
        last = min(first + rows, R)
        block, y = stream[first:last], y_block[: last - first]
        dot(x[first:last], encoder.T, block)
        add_to_rows(encoder_bias, block)
        for layer in range(L):
            _, skip, _, _, C, C_bias, G, G_bias = layer_of(flat, layer, X, D, P)
            layer_u, layer_h = u[layer][first:last], h[layer][first:last]
            layer_z, layer_s = z[layer][first:last], s[layer][first:last]
            normalise(norm, block, layer_u, r[layer][first:last])
            dot(layer_u, b[layer].T, layer_h)
            scan(a[layer], c[layer], hidden[:, layer * P : (layer + 1) * P], reset, h[layer],
                 first, last)  # fmt: skip
            dot(layer_h, C.T, layer_z)
            for m in range(last - first):
                for i in range(D):
                    value = layer_z[m, i] + C_bias[i] + skip[i] * layer_u[m, i]
                    below, _ = normal(value)
                    layer_z[m, i] = value
                    y[m, i] = value * below
            dot(y, G.T, layer_s)
            for m in range(last - first):
                for i in range(D):
                    gate = sigmoid(layer_s[m, i] + G_bias[i])
                    layer_s[m, i] = gate
                    block[m, i] += y[m, i] * gate
        if len(readouts) > 0:
            dot(block, weight.T, out[first:last])
            add_to_rows(bias, out[first:last])
        else:
            copy_rows(block, out[first:last])


@compiled
def normalise(norm, x, u, r):
    """Layer normalisation without weights, by mean and variance of the first channels."""
    D = x.shape[1]
    share = ONE / float32(norm)
    for m in range(x.shape[0]):
        mean = ZERO
        for i in range(norm):
            mean += x[m, i]
        mean *= share
        square = ZERO
        for i in range(norm):
            square += (x[m, i] - mean) * (x[m, i] - mean)
        r[m] = ONE / np.sqrt(square * share + EPS)
        for i in range(D):
            u[m, i] = (x[m, i] - mean) * r[m]


@compiled
def scan(a, c, hidden, reset, h, first, last):
    """The recurrence, in rows that hold b u already."""
    N, P = hidden.shape
    for row in range(first, last):
        for p in range(P):
            h[row, p] += c[p]
        if not reset[row]:
            if row < N:
                for p in range(P):
                    h[row, p] += a[p] * hidden[row, p]
            else:
                for p in range(P):
                    h[row, p] += a[p] * h[row - N, p]


@compiled
def gradient_task(
    norm, readouts, flat, a, b, c, weight, bias, x, hidden, reset, stream, u, r, h, z, s,
    g_out, carry, g_flat,
):  # fmt: skip
    """Cotangent of one task's parameters: fills g_flat, which comes as zeros.

    carry (N, L P) is the cotangent of the state after the last step; it becomes that of hidden.
    """
    (R, X), (L, _, D), P = x.shape, u.shape, h.shape[2]
    rows = block_rows(D, P)
    g_a, g_b, g_c = np.zeros_like(a), np.zeros_like(b), np.zeros_like(c)
    DI, DD, DP = np.empty((D, X), x.dtype), np.empty((D, D), x.dtype), np.empty((D, P), x.dtype)
    PD = np.empty((P, D), x.dtype)
    g_weight, g_bias, MD = np.zeros_like(weight), np.zeros_like(bias), np.empty_like(weight)
    blocks = np.empty((6, rows, D), x.dtype)
    h_block = np.empty((rows, P), x.dtype)
    for first in range((R - 1) // rows * rows, -1, -rows):
        last = min(first + rows, R)
        size = last - first
        g, y, g_y, g_gate = blocks[0][:size], blocks[1][:size], blocks[2][:size], blocks[3][:size]
        slope, product, g_h = blocks[4][:size], blocks[5][:size], h_block[:size]
        if len(readouts) > 0:
            dot(g_out[first:last], weight, g)
            add_product(g_out[first:last], stream[first:last], g_weight, MD)
            add_rows(g_out[first:last], g_bias)
        else:
            copy_rows(g_out[first:last], g)
        for layer in range(L - 1, -1, -1):
            _, skip, _, _, C, _, G, _ = layer_of(flat, layer, X, D, P)
            _, g_skip, _, _, g_C, g_C_bias, g_G, g_G_bias = layer_of(g_flat, layer, X, D, P)
            layer_u, layer_h = u[layer][first:last], h[layer][first:last]
            layer_z, layer_s = z[layer][first:last], s[layer][first:last]
            for m in range(size):
                for i in range(D):
                    value, gate = layer_z[m, i], layer_s[m, i]
                    below, density = normal(value)
                    slope[m, i] = below + value * density
                    y[m, i] = value * below
                    g_y[m, i] = g[m, i] * gate
                    g_gate[m, i] = g_y[m, i] * y[m, i] * (ONE - gate)
            add_product(g_gate, y, g_G, DD)
            add_rows(g_gate, g_G_bias)
            dot(g_gate, G, product)
            for m in range(size):
                for i in range(D):
                    g_z = (g_y[m, i] + product[m, i]) * slope[m, i]
                    g_y[m, i] = g_z  # from here on that of z
                    g_skip[i] += g_z * layer_u[m, i]
                    g_C_bias[i] += g_z
            add_product(g_y, layer_h, g_C, DP)
            dot(g_y, C, g_h)
            scan_gradient(a[layer], hidden[:, layer * P : (layer + 1) * P], reset, h[layer], g_h,
                          carry[:, layer * P : (layer + 1) * P], g_a[layer], first)  # fmt: skip
            add_product(g_h, layer_u, g_b[layer], PD)
            add_rows(g_h, g_c[layer])
            dot(g_h, b[layer], product)
            for m in range(size):
                for i in range(D):
                    product[m, i] += g_y[m, i] * skip[i]
            normalise_gradient(norm, layer_u, r[layer][first:last], product, g)
        add_product(g, x[first:last], g_flat[: D * X].reshape(D, X), DI)
        add_rows(g, g_flat[D * X : D * X + D])
    put_readouts(g_weight, g_bias, readouts, g_flat)
    for layer in range(L):
        rate, _, B, B_bias, _, _, _, _ = layer_of(flat, layer, X, D, P)
        g_rate, _, g_B, g_B_bias, _, _, _, _ = layer_of(g_flat, layer, X, D, P)
        for p in range(P):
            e = math.exp(rate[p])
            decay, scale = math.exp(-e), math.sqrt(-math.expm1(-2 * e))
            g_scale = float(g_c[layer, p] * B_bias[p])
            for i in range(D):
                g_scale += g_b[layer, p, i] * B[p, i]
                g_B[p, i] = scale * g_b[layer, p, i]
            g_B_bias[p] = scale * g_c[layer, p]
            g_rate[p] = e * decay * (g_scale * decay / scale - g_a[layer, p])


@compiled
def normalise_gradient(norm, u, r, g_u, g):
    """Add to g what the normalisation's cotangent g_u makes of its input's.

    Every channel of u depends on mean and variance, and these on the first channels of x alone.
    """
    D = u.shape[1]
    share = ONE / float32(norm)
    for m in range(u.shape[0]):
        mean, along = ZERO, ZERO
        for i in range(D):
            mean += g_u[m, i]
            along += g_u[m, i] * u[m, i]
        mean, along = mean * share, along * share
        for i in range(norm):
            g[m, i] += r[m] * (g_u[m, i] - mean - u[m, i] * along)
        for i in range(norm, D):
            g[m, i] += r[m] * g_u[m, i]


@compiled
def scan_gradient(a, hidden, reset, h, g_h, carry, g_a, first):
    """The recurrence of the cotangents: the same one, in reversed time."""
    N, P = hidden.shape
    for m in range(g_h.shape[0] - 1, -1, -1):
        row = first + m
        n = row % N
        for p in range(P):
            g_h[m, p] += carry[n, p]
        if reset[row]:
            for p in range(P):
                carry[n, p] = ZERO
        elif row < N:
            for p in range(P):
                g_a[p] += g_h[m, p] * hidden[row, p]
                carry[n, p] = a[p] * g_h[m, p]
        else:
            for p in range(P):
                g_a[p] += g_h[m, p] * h[row - N, p]
                carry[n, p] = a[p] * g_h[m, p]


@compiled
def forward(
    norm, readouts, flat, a, b, c, weight, bias, x, hidden, reset, out, end,
    stream, u, r, h, z, s, first, last,
):  # fmt: skip
    """`forward_task` for the tasks first to last - 1; shared parameters have a single row.

    Fills ``end`` (K, N, L P), the state after the last step, too.
    """
    R, N, (L, _, P) = x.shape[1], hidden.shape[1], h[0].shape
    for k in range(first, last):
        j = k if len(flat) > 1 else 0
        forward_task(
            norm, readouts, flat[j], a[j], b[j], c[j], weight[j], bias[j], x[k], hidden[k],
            reset[k], out[k], stream[k], u[k], r[k], h[k], z[k], s[k],
        )  # fmt: skip
        for layer in range(L):
            copy_rows(h[k][layer][R - N :], end[k][:, layer * P : (layer + 1) * P])


@compiled
def gradient(
    norm, readouts, flat, a, b, c, weight, bias, x, hidden, reset, stream, u, r, h, z, s,
    g_out, carry, g_flat, first, last,
):  # fmt: skip
    """`gradient_task` for the tasks first to last - 1."""
    for k in range(first, last):
        j = k if len(flat) > 1 else 0
        gradient_task(
            norm, readouts, flat[j], a[j], b[j], c[j], weight[j], bias[j], x[k], hidden[k],
            reset[k], stream[k], u[k], r[k], h[k], z[k], s[k], g_out[k], carry[k], g_flat[k],
        )  # fmt: skip
