"""A GRU in place of the state space model, for the same in-context training.

Place in the flow: a baseline of `benchmarks`: `in_context` times it, and `gru_trainer` trains it to
be evaluated like any other in-context policy (`evaluation.episodes.run_trials`). Inputs, heads,
mirror, worlds, advantages and optimiser are the same.

The trap: `torch.nn.GRU` cannot clear its state in the middle of a sequence. Where a trial starts
inside one, the sequences are cut there, and the pieces run side by side as one packed sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from ssm_metarl.config_in_context import InContextConfig
from ssm_metarl.core.heads import LinearHeads
from ssm_metarl.core.policy import Policy
from ssm_metarl.meta_rl.in_context import INNER_LR, InContextTrainer
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.types import Params


class GRUModel(nn.Module):
    """A linear encoder and a `torch.nn.GRU`, as a `SequenceModel` with shared parameters.

    Args:
        input_dim: Size of the input.
        width: Size of the encoder's output, of the state and of the output.
    """

    def __init__(self, input_dim: int, width: int) -> None:
        super().__init__()
        self.input_dim, self.output_dim, self.hidden_size = input_dim, width, width
        self.encoder, self.gru = nn.Linear(input_dim, width), nn.GRU(width, width)

    def kernel(self, readouts: Sequence[tuple[int, int]] = ()) -> None:
        """None: PyTorch's own operations."""

    def unroll(
        self, params: Params, x: Tensor, hidden: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `SequenceModel.unroll`."""
        rows, starts = x.flatten(1, 2), reset.flatten(1, 2)  # tasks are environments here
        state = (hidden.flatten(0, 1) * ~starts[0, :, None])[None]  # (1, R, D)
        features = nn.functional.linear(rows, params["encoder.weight"], params["encoder.bias"])
        weights = {n[4:]: params[n] for n in params if n.startswith("gru.")}
        if bool(starts[1:].any()):
            order, lengths = pieces(starts)
            packed = PackedSequence(features.flatten(0, 1)[order], lengths)
            # A piece that begins inside starts from zero; the first of each row, from its state.
            first = order[: int(lengths[0])]
            begun = torch.where(
                (first < len(state[0]))[:, None], state[0][first % len(state[0])], 0.0
            )
            out, _ = functional_call(self.gru, weights, (packed, begun[None]))
            out = torch.empty_like(out.data).index_copy(0, order, out.data).view_as(features)
        else:
            out, _ = functional_call(self.gru, weights, (features, state))
        return out.view(*x.shape[:-1], -1), out[-1].view(*hidden.shape)


def pieces(starts: Tensor) -> tuple[Tensor, Tensor]:
    """Cut R rows of T steps where they start anew, longest pieces first.

    Args:
        starts: True where a piece begins, shape (T, R); every row begins at t = 0.

    Returns:
        The steps in the order of a packed sequence, each as t R + r, shape (T R,), and how many
        pieces have at least 1, 2, ... steps.
    """
    steps, rows = starts.shape
    starts = starts.clone()
    starts[0] = True
    time = torch.arange(steps)[:, None].expand(-1, rows)
    began = torch.where(starts, time, 0).cummax(dim=0).values
    position = time - began
    # The last position of each piece says how long it is: spread it back over its steps.
    ends = torch.cat([starts[1:], torch.ones_like(starts[:1])])
    end = torch.where(ends, time, steps).flip(0).cummin(dim=0).values.flip(0)
    length = end - began + 1
    place = torch.arange(steps * rows).view(steps, rows)
    first = began * rows + place % rows  # where the piece begins: its name
    key = (position * (steps + 1) + steps - length) * (steps * rows) + first
    return key.flatten().argsort(), torch.bincount(position.flatten())


def gru_policy(like: Policy, *, seed: int, width: int | None = None) -> Policy:
    """An in-context policy with a GRU.

    Args:
        like: An in-context policy, whose inputs, heads and mirror it has.
        seed: Names the initial weights.
        width: Of the GRU; None for that which gives about as many parameters as ``like`` has.
    """
    space, obs_dim = like.action_space, like.obs_dim
    if width is None:
        # 6 W^2 + 6 W in the GRU, (I + 1) W in the encoder, (W + 1) M in the heads
        outputs = sum(head.out_features for head in like.heads.readouts.values())
        linear = 6 + like.input_dim + 1 + outputs
        free = like.num_parameters() - outputs
        width = round((math.sqrt(linear**2 + 24 * free) - linear) / 12)
    with torch.random.fork_rng(devices=[]):  # the initialisers draw from the global generator
        torch.manual_seed(seed)
        core = GRUModel(like.input_dim, width)
        heads = LinearHeads(width, space, obs_dim, scaled=like.config.action_scaled)
    return Policy(core, heads, like.config, inner_lr=INNER_LR)


def gru_trainer(
    config: InContextConfig, family: TaskFamily | None = None, *, width: int | None = None
) -> InContextTrainer:
    """The training that a configuration describes, of a GRU; it resumes by `tensors` and `restore`.

    Args:
        config: The settings; its sizes are those of the state space model that stands aside.
        family: Overrides the family that ``config.family`` names.
        width: As in :func:`gru_policy`.
    """
    like = InContextTrainer(config, family)
    policy = gru_policy(like.policy, seed=config.seed, width=width)
    return InContextTrainer(config, family, policy=policy)
