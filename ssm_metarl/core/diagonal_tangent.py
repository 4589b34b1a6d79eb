"""DiagonalSSM on a processor: the derivative of its gradient along a direction.

Place in the flow: stage 3, after `diagonal_kernel`, whose names and shapes it shares; the class
`DiagonalKernel` puts both together for `fused`. This is Pearlmutter's "Fast exact multiplication by
the Hessian" (1994), for a loss that is linear in the output: each variable v gets a companion v_,
its derivative along a direction flat_ in parameter space, and each cotangent g_v a companion g_v_.
What comes from the loss (g_out, carry) does not change along the direction.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import float32

from ssm_metarl.compiled import (
    ONE,
    TWO,
    ZERO,
    add_product,
    add_rows,
    add_to_rows,
    compiled,
    copy_rows,
    dot,
    normal,
)
from ssm_metarl.core.diagonal_kernel import (
    block_rows,
    forward,
    gradient,
    layer_of,
    prepare,
    put_readouts,
    take_readouts,
)


@compiled
def normalised_input_tangent(rate, B, B_bias, rate_, B_, B_bias_, a_, b_, c_):
    """Derivatives of `normalised_input` along the direction."""
    for p in range(a_.shape[0]):
        e = math.exp(rate[p])
        a, scale = math.exp(-e), math.sqrt(-math.expm1(-2 * e))
        slope = -a * e * rate_[p]
        a_[p] = slope
        scale_ = -a * slope / scale
        c_[p] = scale_ * B_bias[p] + scale * B_bias_[p]
        for i in range(B.shape[1]):
            b_[p, i] = scale_ * B[p, i] + scale * B_[p, i]


@compiled
def tangent_task(
    norm, readouts, flat, a, b, c, weight, bias, flat_, x, hidden, reset, stream, u, r, h, z, s,
    g_out, carry, out_, last_, g_flat_,
):  # fmt: skip
    """Derivatives of `forward_task` and `gradient_task` along the direction flat_.

    Fills out_, last_ (of the state after the last step) and g_flat_, which comes as zeros. The
    cotangents g_out and carry do not change along the direction.
    """
    N, (R, X), (L, _, D), P = hidden.shape[0], x.shape, u.shape, h.shape[2]
    rows = block_rows(D, P)
    a_, b_, c_ = np.empty_like(a), np.empty_like(b), np.empty_like(c)
    for layer in range(L):
        rate, _, B, B_bias, _, _, _, _ = layer_of(flat, layer, X, D, P)
        rate_, _, B_, B_bias_, _, _, _, _ = layer_of(flat_, layer, X, D, P)
        normalised_input_tangent(rate, B, B_bias, rate_, B_, B_bias_,
                                 a_[layer], b_[layer], c_[layer])  # fmt: skip
    weight_, bias_ = np.empty_like(weight), np.empty_like(bias)
    take_readouts(flat_, readouts, weight_, bias_)
    g_weight_, g_bias_, MD = np.zeros_like(weight), np.zeros_like(bias), np.empty_like(weight)
    out_product = np.empty((rows, len(bias)), x.dtype)
    stream_ = np.empty_like(stream)
    u_, r_, h_ = np.empty_like(u), np.empty_like(r), np.empty_like(h)
    z_, s_ = np.empty_like(z), np.empty_like(s)
    encoder_ = flat_[: D * X].reshape(D, X)
    encoder_bias_ = flat_[D * X : D * X + D]
    blocks, h_blocks = np.empty((12, rows, D), x.dtype), np.empty((3, rows, P), x.dtype)

    for first in range(0, R, rows):
        last = min(first + rows, R)
        size = last - first
        block_, y, y_ = stream_[first:last], blocks[0][:size], blocks[1][:size]
        product, h_product = blocks[2][:size], h_blocks[0][:size]
        dot(x[first:last], encoder_.T, block_)
        add_to_rows(encoder_bias_, block_)
        for layer in range(L):
            _, skip, _, _, C, _, G, _ = layer_of(flat, layer, X, D, P)
            _, skip_, _, _, C_, C_bias_, G_, G_bias_ = layer_of(flat_, layer, X, D, P)
            layer_u, layer_u_ = u[layer][first:last], u_[layer][first:last]
            layer_h, layer_h_ = h[layer][first:last], h_[layer][first:last]
            layer_z, layer_z_ = z[layer][first:last], z_[layer][first:last]
            layer_s, layer_s_ = s[layer][first:last], s_[layer][first:last]
            normalise_tangent(norm, layer_u, r[layer][first:last], block_, layer_u_,
                              r_[layer][first:last])  # fmt: skip
            dot(layer_u_, b[layer].T, layer_h_)
            dot(layer_u, b_[layer].T, h_product)
            scan_tangent(a[layer], a_[layer], c_[layer], h_product,
                         hidden[:, layer * P : (layer + 1) * P], reset, h[layer], h_[layer],
                         first, last)  # fmt: skip
            dot(layer_h_, C.T, layer_z_)
            dot(layer_h, C_.T, product)
            for m in range(size):
                for i in range(D):
                    value = layer_z[m, i]
                    below, density = normal(value)
                    value_ = layer_z_[m, i] + product[m, i] + C_bias_[i]
                    value_ += skip_[i] * layer_u[m, i] + skip[i] * layer_u_[m, i]
                    layer_z_[m, i] = value_
                    y[m, i] = value * below
                    y_[m, i] = (below + value * density) * value_
            dot(y_, G.T, layer_s_)
            dot(y, G_.T, product)
            for m in range(size):
                for i in range(D):
                    gate = layer_s[m, i]
                    gate_ = layer_s_[m, i] + product[m, i] + G_bias_[i]
                    gate_ *= gate * (ONE - gate)
                    layer_s_[m, i] = gate_
                    block_[m, i] += y_[m, i] * gate + y[m, i] * gate_
        if len(readouts) > 0:
            dot(block_, weight.T, out_[first:last])
            dot(stream[first:last], weight_.T, out_product[:size])
            add_to_rows(bias_, out_[first:last])
            for m in range(size):
                for i in range(len(bias)):
                    out_[first + m, i] += out_product[m, i]
        else:
            copy_rows(block_, out_[first:last])
    for layer in range(L):
        copy_rows(h_[layer][R - N :], last_[:, layer * P : (layer + 1) * P])

    g_a, g_b, g_c = np.zeros_like(a), np.zeros_like(b), np.zeros_like(c)
    g_a_, g_b_, g_c_ = np.zeros_like(a), np.zeros_like(b), np.zeros_like(c)
    carry_ = np.zeros_like(carry)
    DI, DD, DP = np.empty((D, X), x.dtype), np.empty((D, D), x.dtype), np.empty((D, P), x.dtype)
    PD = np.empty((P, D), x.dtype)
    for first in range((R - 1) // rows * rows, -1, -rows):
        last = min(first + rows, R)
        size = last - first
        g, g_, y, y_ = blocks[0][:size], blocks[1][:size], blocks[2][:size], blocks[3][:size]
        g_y, g_y_, g_gate, g_gate_ = (
            blocks[4][:size], blocks[5][:size], blocks[6][:size], blocks[7][:size]
        )  # fmt: skip
        slope, bend, product, product_ = (
            blocks[8][:size], blocks[9][:size], blocks[10][:size], blocks[11][:size]
        )  # fmt: skip
        g_h, g_h_, h_product = h_blocks[0][:size], h_blocks[1][:size], h_blocks[2][:size]
        if len(readouts) > 0:
            dot(g_out[first:last], weight, g)
            dot(g_out[first:last], weight_, g_)
            add_product(g_out[first:last], stream_[first:last], g_weight_, MD)
        else:
            copy_rows(g_out[first:last], g)
            for m in range(size):
                for i in range(D):
                    g_[m, i] = ZERO
        for layer in range(L - 1, -1, -1):
            _, skip, _, _, C, _, G, _ = layer_of(flat, layer, X, D, P)
            _, skip_, _, _, C_, _, G_, _ = layer_of(flat_, layer, X, D, P)
            _, g_skip_, _, _, g_C_, g_C_bias_, g_G_, g_G_bias_ = layer_of(g_flat_, layer, X, D, P)
            layer_u, layer_u_ = u[layer][first:last], u_[layer][first:last]
            layer_h, layer_h_ = h[layer][first:last], h_[layer][first:last]
            layer_z, layer_z_ = z[layer][first:last], z_[layer][first:last]
            layer_s, layer_s_ = s[layer][first:last], s_[layer][first:last]
            for m in range(size):
                for i in range(D):
                    value, value_ = layer_z[m, i], layer_z_[m, i]
                    gate, gate_ = layer_s[m, i], layer_s_[m, i]
                    below, density = normal(value)
                    slope[m, i] = below + value * density
                    bend[m, i] = density * (TWO - value * value) * value_
                    y[m, i] = value * below
                    y_[m, i] = slope[m, i] * value_
                    g_y[m, i] = g[m, i] * gate
                    g_y_[m, i] = g_[m, i] * gate + g[m, i] * gate_
                    rise = gate * (ONE - gate)
                    g_gate[m, i] = g[m, i] * y[m, i] * rise
                    g_gate_[m, i] = (g_[m, i] * y[m, i] + g[m, i] * y_[m, i]) * rise
                    g_gate_[m, i] += g[m, i] * y[m, i] * (ONE - TWO * gate) * gate_
            add_product(g_gate_, y, g_G_, DD)
            add_product(g_gate, y_, g_G_, DD)
            add_rows(g_gate_, g_G_bias_)
            dot(g_gate, G, product)
            dot(g_gate_, G, product_)
            for m in range(size):
                for i in range(D):
                    g_y[m, i] += product[m, i]
                    g_y_[m, i] += product_[m, i]
            dot(g_gate, G_, product)
            for m in range(size):
                for i in range(D):
                    g_y_[m, i] = (g_y_[m, i] + product[m, i]) * slope[m, i]
                    g_y_[m, i] += g_y[m, i] * bend[m, i]
                    g_y[m, i] *= slope[m, i]  # from here on both are those of z
                    g_skip_[i] += g_y_[m, i] * layer_u[m, i] + g_y[m, i] * layer_u_[m, i]
                    g_C_bias_[i] += g_y_[m, i]
            add_product(g_y_, layer_h, g_C_, DP)
            add_product(g_y, layer_h_, g_C_, DP)
            dot(g_y, C, g_h)
            dot(g_y_, C, g_h_)
            dot(g_y, C_, h_product)
            scan_gradient_tangent(
                a[layer], a_[layer], hidden[:, layer * P : (layer + 1) * P], reset,
                h[layer], h_[layer], g_h, g_h_, h_product,
                carry[:, layer * P : (layer + 1) * P], carry_[:, layer * P : (layer + 1) * P],
                g_a[layer], g_a_[layer], first)  # fmt: skip
            add_product(g_h, layer_u, g_b[layer], PD)
            add_product(g_h_, layer_u, g_b_[layer], PD)
            add_product(g_h, layer_u_, g_b_[layer], PD)
            add_rows(g_h, g_c[layer])
            add_rows(g_h_, g_c_[layer])
            dot(g_h, b_[layer], product_)
            dot(g_h_, b[layer], product)
            for m in range(size):
                for i in range(D):
                    product_[m, i] += product[m, i]
                    product_[m, i] += g_y_[m, i] * skip[i] + g_y[m, i] * skip_[i]
            dot(g_h, b[layer], product)
            for m in range(size):
                for i in range(D):
                    product[m, i] += g_y[m, i] * skip[i]
            normalise_gradient_tangent(norm, layer_u, layer_u_, r[layer][first:last],
                                       r_[layer][first:last], product, product_, g, g_)  # fmt: skip
        add_product(g_, x[first:last], g_flat_[: D * X].reshape(D, X), DI)
        add_rows(g_, g_flat_[D * X : D * X + D])
    put_readouts(g_weight_, g_bias_, readouts, g_flat_)
    for layer in range(L):
        rate, _, B, B_bias, _, _, _, _ = layer_of(flat, layer, X, D, P)
        rate_, _, B_, B_bias_, _, _, _, _ = layer_of(flat_, layer, X, D, P)
        g_rate_, _, g_B_, g_B_bias_, _, _, _, _ = layer_of(g_flat_, layer, X, D, P)
        for p in range(P):
            e = math.exp(rate[p])
            decay, scale = math.exp(-e), math.sqrt(-math.expm1(-2 * e))
            e_ = e * rate_[p]
            decay_ = -decay * e_
            scale_ = -decay * decay_ / scale
            g_scale = float(g_c[layer, p] * B_bias[p])
            g_scale_ = float(g_c_[layer, p] * B_bias[p] + g_c[layer, p] * B_bias_[p])
            for i in range(D):
                g_scale += g_b[layer, p, i] * B[p, i]
                g_scale_ += g_b_[layer, p, i] * B[p, i] + g_b[layer, p, i] * B_[p, i]
                g_B_[p, i] = scale_ * g_b[layer, p, i] + scale * g_b_[layer, p, i]
            g_B_bias_[p] = scale_ * g_c[layer, p] + scale * g_c_[layer, p]
            inner = g_scale * decay / scale - g_a[layer, p]
            inner_ = g_scale_ * decay / scale - g_a_[layer, p]
            inner_ += g_scale * (decay_ / scale - decay * scale_ / scale**2)
            g_rate_[p] = (e_ * decay + e * decay_) * inner + e * decay * inner_


@compiled
def normalise_tangent(norm, u, r, x_, u_, r_):
    """Derivatives of `normalise`."""
    D = u.shape[1]
    share = ONE / float32(norm)
    for m in range(u.shape[0]):
        mean, along = ZERO, ZERO
        for i in range(norm):
            mean += x_[m, i]
            along += x_[m, i] * u[m, i]
        mean, along = mean * share, along * share
        r_[m] = -r[m] * r[m] * along
        for i in range(D):
            u_[m, i] = r[m] * (x_[m, i] - mean - u[m, i] * along)


@compiled
def scan_tangent(a, a_, c_, input_, hidden, reset, h, h_, first, last):
    """Derivative of `scan`, in rows h_ that hold b u_ already; input_ is b_ u."""
    N, P = hidden.shape
    for row in range(first, last):
        for p in range(P):
            h_[row, p] += input_[row - first, p] + c_[p]
        if not reset[row]:
            if row < N:
                for p in range(P):
                    h_[row, p] += a_[p] * hidden[row, p]
            else:
                for p in range(P):
                    h_[row, p] += a[p] * h_[row - N, p] + a_[p] * h[row - N, p]


@compiled
def normalise_gradient_tangent(norm, u, u_, r, r_, g_u, g_u_, g, g_):
    """`normalise_gradient` and its derivative."""
    D = u.shape[1]
    share = ONE / float32(norm)
    for m in range(u.shape[0]):
        mean, along, mean_, along_ = ZERO, ZERO, ZERO, ZERO
        for i in range(D):
            mean += g_u[m, i]
            along += g_u[m, i] * u[m, i]
            mean_ += g_u_[m, i]
            along_ += g_u_[m, i] * u[m, i] + g_u[m, i] * u_[m, i]
        mean, along, mean_, along_ = mean * share, along * share, mean_ * share, along_ * share
        for i in range(norm):
            centred = g_u[m, i] - mean - u[m, i] * along
            g[m, i] += r[m] * centred
            g_[m, i] += r_[m] * centred
            g_[m, i] += r[m] * (g_u_[m, i] - mean_ - u_[m, i] * along - u[m, i] * along_)
        for i in range(norm, D):
            g[m, i] += r[m] * g_u[m, i]
            g_[m, i] += r_[m] * g_u[m, i] + r[m] * g_u_[m, i]


@compiled
def scan_gradient_tangent(
    a, a_, hidden, reset, h, h_, g_h, g_h_, product, carry, carry_, g_a, g_a_, first
):
    """`scan_gradient` and its derivative; product joins g_h_."""
    N, P = hidden.shape
    for m in range(g_h.shape[0] - 1, -1, -1):
        row = first + m
        n = row % N
        for p in range(P):
            g_h[m, p] += carry[n, p]
            g_h_[m, p] += product[m, p] + carry_[n, p]
        if reset[row]:
            for p in range(P):
                carry[n, p], carry_[n, p] = ZERO, ZERO
        else:
            for p in range(P):
                before = hidden[row, p] if row < N else h[row - N, p]
                before_ = ZERO if row < N else h_[row - N, p]
                g_a[p] += g_h[m, p] * before
                g_a_[p] += g_h_[m, p] * before + g_h[m, p] * before_
                carry[n, p] = a[p] * g_h[m, p]
                carry_[n, p] = a[p] * g_h_[m, p] + a_[p] * g_h[m, p]


@compiled
def tangent(
    norm, readouts, flat, a, b, c, weight, bias, flat_, x, hidden, reset, stream, u, r, h, z, s,
    g_out, carry, out_, last_, g_flat_, first, last,
):  # fmt: skip
    """`tangent_task` for the tasks first to last - 1."""
    for k in range(first, last):
        j = k if len(flat) > 1 else 0
        tangent_task(
            norm, readouts, flat[j], a[j], b[j], c[j], weight[j], bias[j], flat_[k], x[k],
            hidden[k], reset[k], stream[k], u[k], r[k], h[k], z[k], s[k], g_out[k], carry[k],
            out_[k], last_[k], g_flat_[k],
        )  # fmt: skip


class DiagonalKernel:
    """The three functions for `fused`, and the shapes of what they keep.

    Args:
        model_dim: D.
        state_dim: P of a layer.
        num_layers: L.
        norm_dim: Leading channels that the normalisation takes mean and variance over, 1 to D.
        readouts: For each linear readout of the stream, where its weight starts among the
            parameters (its bias follows), and its number of outputs. None gives the stream itself.
    """

    forward, gradient, tangent = (staticmethod(f) for f in (forward, gradient, tangent))

    def __init__(
        self,
        model_dim: int,
        state_dim: int,
        num_layers: int,
        norm_dim: int,
        readouts: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.model_dim, self.state_dim, self.num_layers = model_dim, state_dim, num_layers
        self.norm_dim = norm_dim
        self.hidden_size = num_layers * state_dim
        self.output_dim = sum(rows for _, rows in readouts) or model_dim
        self._readouts = np.array(readouts, np.int64).reshape(-1, 2)

    def prepare(self, flat: np.ndarray, input_dim: int) -> tuple[Any, ...]:
        """The first arguments of the three functions, from parameters (K, ...)."""
        K, L, M = len(flat), self.num_layers, int(self._readouts[:, 1].sum())
        D, P = self.model_dim, self.state_dim
        shapes = ((K, L, P), (K, L, P, D), (K, L, P), (K, M, D), (K, M))
        prepared = tuple(np.empty(shape, np.float32) for shape in shapes)
        prepare(self._readouts, flat, *prepared, input_dim)
        return self.norm_dim, self._readouts, flat, *prepared

    def activations(self, num_tasks: int, rows: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of stream, u, r, h, z and s of K tasks."""
        lead = (num_tasks, self.num_layers, rows)
        wide, states = (*lead, self.model_dim), (*lead, self.state_dim)
        return (num_tasks, rows, self.model_dim), wide, lead, states, wide, wide
