"""Growth: another size for a model in training, whose function stays what it was where it grows.

Place in the flow: stage 8, between a proposal of another architecture and the candidate's training,
which starts from what `resize` returns.

A *unit* is a channel of the residual stream, a mode of a layer's state or a hidden neuron. The rows
of a weight belong to the units that it writes, its columns to those that it reads (`axes_of`).

- A new unit is written by fresh weights, and what reads it is zero. Nothing sees it yet, so the
  function is the same but for the order of sums; and the zeros get a gradient at once, because what
  they read is not zero. That growth should keep the function is Net2Net's idea (Chen et al. 2016,
  arXiv 1511.05641); LEMON (Wang et al. 2024, arXiv 2310.07999) has it for residual streams and
  their normalisation.
- A new layer comes last. Its C, its bias and D are zero, so its output is gelu(0) * gate = 0, and
  the gradient passes, since gelu'(0) = 1/2.
- The weakest units go when a model shrinks: those with the least product of the norms of what
  writes them and what reads them; of layers, those with the smallest output weights (C and D).

The trap: a LayerNorm over a wider stream is another function. `PolicyConfig.norm_dim` keeps it over
the channels that were there at first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssm_metarl import seeding
from ssm_metarl.checkpoint import Checkpoint
from ssm_metarl.config import PolicyConfig
from ssm_metarl.core.policy import Policy, build_policy
from ssm_metarl.types import FlatParams, Params, flatten

DIMENSIONS = ("state_dim", "hidden_dim", "num_layers")
LAYER_OUTPUT = ("C.weight", "C.bias", "D")
CHECK_STEPS, CHECK_TASKS, CHECK_ENVS, CHECK_RESETS = 20, 3, 4, 0.1


@dataclass(frozen=True)
class Axes:
    """What the axes of a parameter stand for."""

    rows: str | None
    """Group of units along the first axis; None where it has none that could change in number."""
    columns: str | None = None
    """Group of the units that the second axis reads, likewise."""
    writes: bool = True
    """Whether it puts something into the units of its rows, as a rate or a gate does not."""


@dataclass(frozen=True)
class Plan:
    """What becomes of each unit."""

    config: PolicyConfig
    """The new architecture."""
    kept: dict[str, list[int]]
    """The old units that stay, ascending, of each group of the new architecture; new ones follow.
    A new layer keeps none."""
    layers: list[int]
    """The old layers that stay, ascending (diagonal)."""

    def model_for(self, name: str) -> str:
        """The old parameter that a new one continues; in a new layer, its like in the last one."""
        layer, rest = layer_of(name)
        if layer is None:
            return name
        return f"core.layers.{self.layers[min(layer, len(self.layers) - 1)]}.{rest}"

    def is_new(self, name: str) -> bool:
        """Whether a parameter is one of a new layer."""
        layer, _ = layer_of(name)
        return layer is not None and layer >= len(self.layers)


def resize(checkpoint: Checkpoint, sizes: Mapping[str, Any], *, seed: int) -> Checkpoint:
    """A checkpoint of another size that goes on where the given one stands.

    New entries have step size 0, so that an inner step, too, goes where it went. It would be
    longer: the RMS by which it divides the gradient, now over more parameters, falls by about the
    root of their old number over the new (by a sixth for a third layer of a shipped
    model). The old step sizes are multiplied by that root, which cancels it to within 2 %.

    Adam's count of steps stays; the first moment of a new entry is 0, and its second the mean over
    the tensor, so that its first steps are of ordinary size. The limits of adaptation
    (``calibration``) were set for the old model and are dropped. If no dimension changes, the
    checkpoint is returned as it is.

    Args:
        checkpoint: With or without an optimiser.
        sizes: New values of state_dim, hidden_dim and (of a diagonal core) num_layers.
        seed: Names the new weights.
    """
    old = PolicyConfig.from_dict(checkpoint.policy_config)
    config = replace(old, **sizes)
    if config == old:
        return checkpoint
    policy = checkpoint.policy()
    weights = {name: p.detach() for name, p in policy.meta_params().items()}
    plan = make_plan(old, config, weights)
    fresh = build_policy(plan.config, seed=seed, inner_lr=0.0)
    new = moved(weights, silenced(fresh, plan), plan)
    zeros = {name: torch.zeros_like(value) for name, value in new.items()}
    shapes = fresh.step_sizes().shapes
    steps = moved(policy.step_sizes(), zeros, plan)
    tensors = {f"policy.{name}": value for name, value in new.items()}
    shorter = math.sqrt(policy.num_parameters() / fresh.num_parameters())
    tensors["policy.step_size"] = shorter * flatten(steps, shapes).detach()
    tensors |= moved_moments(checkpoint.tensors, policy.step_sizes().shapes, shapes, plan)
    ours = ("policy.", "optimizer.")
    tensors |= {n: v for n, v in checkpoint.tensors.items() if not n.startswith(ours)}
    training = dict(checkpoint.training)
    if training:
        training |= {n: getattr(plan.config, n) for n in (*DIMENSIONS, "norm_dim")}
    return replace(
        checkpoint,
        policy_config=asdict(plan.config),
        tensors=tensors,
        training=training,
        calibration={},
    )


def layer_of(name: str) -> tuple[int | None, str]:
    """The layer that a parameter is in, if any, and its name there."""
    if not name.startswith("core.layers."):
        return None, name
    _, _, layer, rest = name.split(".", 3)
    return int(layer), rest


def axes_of(config: PolicyConfig) -> dict[str, Axes]:
    """Whose units the axes of each parameter are, by the parameter's name."""
    axes: dict[str, Axes] = {}
    if config.core == "state_space":
        linear: dict[str, tuple[str | None, str | None]] = {
            "core.state_transition.0": ("hidden of A", "state"),
            "core.state_transition.2": ("state", "hidden of A"),
            "core.input_projection": ("state", None),
            "core.output_network.0": ("hidden of C", "state"),
            "core.output_network.2": (None, "hidden of C"),
            "core.feedthrough": (None, None),
        }
    else:
        linear = {"core.encoder": ("width", None)}
        linear |= {f"heads.{head}": (None, "width") for head in ("action", "value", "prediction")}
        axes["heads.log_std"] = Axes(None)
        for layer in range(config.num_layers):
            at, state = f"core.layers.{layer}", f"state of layer {layer}"
            linear |= {f"{at}.B": (state, "width"), f"{at}.C": ("width", state)}
            axes |= {f"{at}.D": Axes("width"), f"{at}.log_rate": Axes(state, writes=False)}
            axes[f"{at}.gate.weight"] = Axes("width", "width", writes=False)
            axes[f"{at}.gate.bias"] = Axes("width", writes=False)
    for name, (rows, columns) in linear.items():
        axes |= {f"{name}.weight": Axes(rows, columns), f"{name}.bias": Axes(rows)}
    return axes


def make_plan(old: PolicyConfig, config: PolicyConfig, weights: Params) -> Plan:
    """Choose the units that stay, and with them what the normalisation goes over."""
    axes = axes_of(old)
    kept: dict[str, list[int]] = {}
    if old.core == "state_space":
        hidden = dict.fromkeys(("hidden of A", "hidden of C"), config.hidden_dim)
        for group, size in {"state": config.state_dim, **hidden}.items():
            kept[group] = strongest(strengths(weights, axes, group), size)
        return Plan(replace(config, norm_dim=None), kept, [])
    layers = strongest(layer_strengths(weights, old.num_layers), config.num_layers)
    axes = {n: a for n, a in axes.items() if layer_of(n)[0] in (None, *layers)}
    kept = {f"state of layer {place}": [] for place in range(config.num_layers)}
    for place, layer in enumerate(layers):
        modes = strengths(weights, axes, f"state of layer {layer}")
        kept[f"state of layer {place}"] = strongest(modes, config.state_dim)
    norm_dim = old.norm_dim or old.hidden_dim
    channels = strengths(weights, axes, "width")
    kept["width"] = strongest(channels, config.hidden_dim)
    if kept["width"][0] >= norm_dim:  # nothing would be left to take mean and variance over
        weakest = min(kept["width"], key=lambda unit: float(channels[unit]))
        first = int(channels[:norm_dim].argmax())
        kept["width"] = sorted({first, *kept["width"]} - {weakest})
    normed = sum(unit < norm_dim for unit in kept["width"])
    final = replace(config, norm_dim=None if normed == config.hidden_dim else normed)
    return Plan(final, kept, layers)


def strengths(weights: Params, axes: Mapping[str, Axes], group: str) -> Tensor:
    """Of each unit of a group, the norm of what writes it times the norm of what reads it."""
    written, read = torch.zeros(1), torch.zeros(1)
    for name, axis in axes.items():
        if axis.rows == group and axis.writes:
            value = weights[name].double()
            written = written + value.square().reshape(len(value), -1).sum(1)
        if axis.columns == group:
            read = read + weights[name].double().square().sum(0)
    return (written * read).sqrt()


def layer_strengths(weights: Params, num_layers: int) -> Tensor:
    """Of each layer, the norm of its output weights."""
    outputs = [[f"core.layers.{layer}.{n}" for n in LAYER_OUTPUT] for layer in range(num_layers)]
    squares = [sum(weights[n].double().square().sum() for n in names) for names in outputs]
    return torch.tensor(squares, dtype=torch.float64).sqrt()


def strongest(strength: Tensor, size: int) -> list[int]:
    """The ``size`` strongest units (or all), ascending; of equals, the first."""
    return sorted(torch.argsort(strength, descending=True, stable=True)[:size].tolist())


def silenced(fresh: Policy, plan: Plan) -> dict[str, Tensor]:
    """Fresh weights of the new architecture, with zeros wherever something new is read."""
    axes = axes_of(plan.config)
    weights = {name: p.detach().clone() for name, p in fresh.meta_params().items()}
    for name, value in weights.items():
        columns = axes[name].columns
        if columns is not None:
            value[:, len(plan.kept[columns]) :] = 0
        if plan.is_new(name) and layer_of(name)[1] in LAYER_OUTPUT:
            value.zero_()
    return weights


def moved(old: Params, bases: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The kept entries of the old values, before those of ``bases``, whose shapes are the new."""
    axes, result = axes_of(plan.config), {}
    for name, base in bases.items():
        result[name] = base.clone()
        if not plan.is_new(name):
            value = old[plan.model_for(name)].detach()
            for axis, group in enumerate((axes[name].rows, axes[name].columns)[: value.dim()]):
                if group is not None:
                    value = value.index_select(axis, torch.tensor(plan.kept[group]))
            result[name][tuple(slice(size) for size in value.shape)] = value
    return result


def moved_moments(
    tensors: Mapping[str, Tensor],
    before: Mapping[str, torch.Size],
    after: Mapping[str, torch.Size],
    plan: Plan,
) -> dict[str, Tensor]:
    """Adam's state for the new parameters, of those whose old ones have any.

    Args:
        tensors: A checkpoint's, with ``optimizer.NAME.step``, ``.exp_avg`` and ``.exp_avg_sq``.
        before: Shapes of the old parameters, in the order of the flat step sizes.
        after: Of the new ones.
        plan: What becomes of each unit.
    """
    result: dict[str, Tensor] = {}
    for key in ("exp_avg", "exp_avg_sq"):

        def continued(old: Params, key: str = key) -> dict[str, Tensor]:
            bases = {}
            for name, shape in after.items():
                if (like := old.get(plan.model_for(name))) is not None:
                    fill = float(like.mean()) if key == "exp_avg_sq" else 0.0
                    bases[name] = like.new_full(shape, fill)
            return moved(old, bases, plan)

        named = {n: tensors[k] for n in before if (k := f"optimizer.{n}.{key}") in tensors}
        result |= {f"optimizer.{n}.{key}": value for n, value in continued(named).items()}
        if (flat := tensors.get(f"optimizer.step_size.{key}")) is not None:
            sizes = continued(FlatParams(flat, before))
            result[f"optimizer.step_size.{key}"] = flatten(sizes, after)
    for name in (*after, "step_size"):
        if (step := tensors.get(f"optimizer.{plan.model_for(name)}.step")) is not None:
            result[f"optimizer.{name}.step"] = step.clone()
    return result


def relative_change(
    old: Checkpoint, new: Checkpoint, *, seed: int, dtype: torch.dtype = torch.float32
) -> float:
    """The largest difference between two policies' outputs, over the old one's largest output.

    Both see the same random observations, as large as the family's, with resets. In float32 on a
    processor they run compiled, in float64 by the plain operations.
    """
    before, after = (checked_output(c.policy().to(dtype), seed) for c in (old, new))
    difference, largest = float((after - before).abs().max()), float(before.abs().max())
    if largest == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / largest  # NaN where either is


@torch.no_grad()
def checked_output(policy: Policy, seed: int) -> Tensor:
    """`PolicyOutput.output` on observations that the seed names, (T, K, N or 2 N, M)."""
    rng = seeding.generator(seed, "growth-check")
    lead = (CHECK_STEPS, CHECK_TASKS, CHECK_ENVS)
    scale = torch.where(policy.obs_limit.isfinite(), policy.obs_limit, 1.0)
    obs = torch.from_numpy(rng.standard_normal((*lead, policy.obs_dim))).to(scale) * scale
    reset = torch.from_numpy(rng.random(lead) < CHECK_RESETS)
    hidden = policy.init_hidden(CHECK_TASKS, CHECK_ENVS)
    said, _ = policy.unroll(policy.meta_params(), obs, hidden, reset)
    return said.output
