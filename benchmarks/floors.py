"""The least that the same arithmetic can cost on this machine: what is left to win.

Place in the flow: under `meta_training` and `adapting`. A floor counts the work that the definition
of an algorithm asks for and multiplies it by rates that are measured here and now, in cache:

    matrix products       floating-point operations x the best rate over some shapes
    element-wise passes   elements x the rate of one fused pass (addcmul, gelu, sigmoid)
    environment           steps x the compiled physics alone, many environments at once

What a pass must read and write, what Python does between operations, and every element-wise pass
that a fused kernel saves are left out on purpose: nothing can be below the floor, and little will
come near it.

Products are counted as forward : gradient : derivative of both along a direction (Pearlmutter
1994) = 1 : 2 : 6. For y = W x these are W x; g_W and g_x; and W x' + W' x for the output, twice
two for the cotangents.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl.config import MetaTrainingConfig, PolicyConfig
from ssm_metarl.tasks.registry import family_of_env

TRIES = 7
SECONDS = 0.01
PRODUCT_SHAPES = (
    (1, 256, 32, 32), (1, 1024, 32, 32), (1, 8192, 32, 32), (16, 64, 32, 32), (16, 512, 32, 32),
)  # fmt: skip
"""Batch, rows, inner and outer size of the default policy's products, among which the best rate is
looked for."""


@dataclass(frozen=True)
class Work:
    """Counts of arithmetic."""

    flops: float = 0.0
    """Floating-point operations in matrix products, two a multiplication with addition."""
    simple: float = 0.0
    """Elements of passes that multiply and add."""
    gelu: float = 0.0
    """Elements of passes with a Gaussian distribution function."""
    sigmoid: float = 0.0
    """Elements of passes with an exponential."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.simple + other.simple,
            self.gelu + other.gelu,
            self.sigmoid + other.sigmoid,
        )

    def __mul__(self, factor: float) -> Work:
        return Work(*(factor * x for x in (self.flops, self.simple, self.gelu, self.sigmoid)))


@dataclass(frozen=True)
class Rates:
    """Seconds that one unit of each kind costs here and now, at best."""

    flop: float
    simple: float
    gelu: float
    sigmoid: float
    env_step: float

    def seconds(self, work: Work, env_steps: float = 0.0) -> float:
        """The floor of some work."""
        return (
            self.flop * work.flops
            + self.simple * work.simple
            + self.gelu * work.gelu
            + self.sigmoid * work.sigmoid
            + self.env_step * env_steps
        )


def readouts(config: PolicyConfig) -> tuple[int, int]:
    """Outputs that acting reads (action logits), and that a prediction reads."""
    actions = config.num_actions or config.action_dim
    code = 1 if config.num_actions == 2 else actions
    return actions, len(config.obs_scale) * (1 + code)


def forward(config: PolicyConfig, rows: float, outputs: int) -> Work:
    """A policy's first ``outputs`` outputs for so many rows.

    A mirrored history is a row of its own.
    """
    inputs, width, state = len(config.obs_scale), config.hidden_dim, config.state_dim
    if config.core == "state_space":  # all outputs, two hidden layers, a state
        outputs = config.output_dim
        products = 3 * state * width + width * outputs + inputs * (state + outputs)
        return Work(2 * products * rows, (2 * width + state) * rows)
    products = inputs * width + width * outputs
    products += config.num_layers * (width * state + state * width + width * width)
    # a layer: normalisation and residual over the width, the recurrence over the state
    simple = config.num_layers * (2 * width + state)
    activations = config.num_layers * width
    return Work(2 * products * rows, simple * rows, activations * rows, activations * rows)


def first_product(config: PolicyConfig, rows: float) -> Work:
    """The input's products, whose other side nothing differentiates."""
    if config.core == "state_space":
        return Work(2 * len(config.obs_scale) * (config.state_dim + config.output_dim) * rows)
    return Work(2 * len(config.obs_scale) * config.hidden_dim * rows)


def gradient(config: PolicyConfig, rows: float, outputs: int) -> Work:
    """Output and its cotangent's way back to the parameters.

    The slopes of the activations come from the same evaluations as their values.
    """
    once = forward(config, rows, outputs)
    products = 3 * once.flops - first_product(config, rows).flops
    return Work(products, 2 * once.simple, once.gelu, once.sigmoid)


def tangent(config: PolicyConfig, rows: float, outputs: int) -> Work:
    """Derivative of both along a direction in parameter space, given what `gradient` computed."""
    once = forward(config, rows, outputs)
    products = 6 * once.flops - 4 * first_product(config, rows).flops
    return Work(products, 4 * once.simple)


def epoch_work(
    policy: PolicyConfig,
    training: MetaTrainingConfig,
    *,
    support_steps: float,
    query_steps: float,
    inner_steps: int,
    num_params: int,
) -> Work:
    """One epoch of second-order meta-training, prediction as the inner objective.

    Each outer step needs the inner steps' gradients and their derivatives, the inner loss's
    gradient after them, and the outer loss's. The inner steps before the query episodes are those
    of the first outer step.

    Args:
        policy: The architecture.
        training: Outer steps and tasks.
        support_steps: Environment steps of support data, all tasks together.
        query_steps: Environment steps of query episodes, all tasks together.
        inner_steps: Inner steps in this epoch.
        num_params: Parameters of the policy.
    """
    copies = 2 if policy.mirror else 1
    support, query = copies * support_steps, copies * query_steps
    actions, predictions = readouts(policy)
    # the step itself: scale, gradient and difference of each task's parameters
    step = Work(simple=3.0 * num_params * training.tasks_per_epoch)
    inner = gradient(policy, support, predictions) + step
    if not training.first_order:
        inner = inner + tangent(policy, support, predictions) + step
    outer = inner * inner_steps + gradient(policy, query, actions)
    if training.inner_loss_coef > 0:
        outer = outer + gradient(policy, support, predictions)
    return forward(policy, query, actions) + outer * training.update_epochs


def best(call: Callable[[], object]) -> float:
    """Seconds of one call, the least of several measurements: noise only ever adds."""
    call()
    took, calls = _timed(call, 1), 1
    calls = max(1, int(SECONDS / max(took, 1e-9)))
    return min(_timed(call, calls) for _ in range(TRIES))


def _timed(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


@torch.no_grad()
def measure_rates() -> Rates:
    """The best rates over some shapes, with as many threads as PyTorch uses now."""
    flop = min(_product_rate(*shape) for shape in PRODUCT_SHAPES)
    passes: list[Callable[[Tensor, Tensor], object]] = [
        lambda x, out: torch.addcmul(x, x, x, out=out),
        lambda x, out: torch.ops.aten.gelu.out(x, out=out),
        lambda x, out: torch.sigmoid(x, out=out),
    ]
    simple, gelu, sigmoid = (min(_pass_rate(p, n) for n in (2**13, 2**16, 2**18)) for p in passes)
    return Rates(flop, simple, gelu, sigmoid, env_step_seconds())


def _product_rate(batch: int, rows: int, inner: int, outer: int) -> float:
    left, right = torch.randn(batch, rows, inner), torch.randn(batch, inner, outer)
    out = torch.empty(batch, rows, outer)
    if batch == 1:
        left, right, out = left[0], right[0], out[0]
        return best(lambda: torch.mm(left, right, out=out)) / (2 * rows * inner * outer)
    return best(lambda: torch.bmm(left, right, out=out)) / (2 * batch * rows * inner * outer)


def _pass_rate(call: Callable[[Tensor, Tensor], object], size: int) -> float:
    x, out = torch.randn(size), torch.empty(size)
    return best(lambda: call(x, out)) / size


@torch.no_grad()
def env_step_seconds(num_tasks: int = 64, num_envs: int = 32) -> float:
    """Seconds that the physics of one CartPole step takes, many environments at once."""
    family = family_of_env("cartpole")
    assert family.dynamics is not None
    dynamics = family.dynamics
    tasks = family.sample("train", num_tasks, seed=0)
    parameters = {n: v.float()[:, None].expand(-1, num_envs) for n, v in tasks.values.items()}
    state = dynamics.initial_state(torch.rand(num_tasks, num_envs, 4))
    action = torch.randint(2, (num_tasks, num_envs))
    return best(lambda: dynamics.step(state, action, parameters)) / (num_tasks * num_envs)
