"""The rule that adaptation does not hurt: which gradient steps a task keeps.

Place in the flow: stage 4, asked by `inner_loop.adapt_params` after each step of an adapter.
Meta-training does not ask: it must feel the steps that go wrong. A step is undone, and the task
takes no more, unless

    0. these data tell what an action does: half of what is predicted moves in them, or more, and
    1. the inner loss on this task's own data is finite and has fallen, and
    2. it is at most ``max_loss`` for data of this length, and
    3. KL(adapted || meta) on these data is at most ``max_kl``.

The limits are a model's `Calibration` (`evaluation.calibration`). Without one, or with a step size
(``adapt_lr``) or objective that it was not made for, rules 0 and 1 decide.

The trap: a falling loss by itself is no evidence. On shuffled actions the first step always lowers
it, and turns a third of the tasks for the worse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssm_metarl.adaptation.inner_objective import WatchedLoss
from ssm_metarl.config import Calibration
from ssm_metarl.core.policy import Policy
from ssm_metarl.objectives.prediction import is_uninformative
from ssm_metarl.types import Params, Rollout

KEPT, LOSS_ROSE, LOSS_HIGH, MOVED_FAR, UNINFORMATIVE = range(5)
REASONS = {
    LOSS_ROSE: "the inner loss did not fall",
    LOSS_HIGH: "the adapted model does not explain the data",
    MOVED_FAR: "the policy changed more than in any meta-training task",
    UNINFORMATIVE: "the data do not tell what an action does (frozen or missing sensors)",
}
"""Why a step was undone, by the code in `Safeguard.verdict`."""


class Safeguard:
    """One adaptation's judge, for K tasks at once.

    Args:
        policy: Before adapting: what the change is measured against.
        loss: The tasks' inner losses on their own data, without replay.
        current: Those data, (T, K, N).
        calibration: The limits; None leaves only the rules 0 and 1.
        silent: Predicted dimensions that stand still in the data, shape (K, D); None for none.
        rollback: False keeps every step, and only watches.
    """

    def __init__(
        self,
        policy: Policy,
        loss: WatchedLoss,
        current: Rollout,
        calibration: Calibration | None,
        *,
        silent: Tensor | None = None,
        rollback: bool = True,
    ) -> None:
        self._loss, self._taken = loss, current.mask
        self._calibration, self._rollback = calibration, rollback
        with torch.no_grad():
            self.loss, self._reference = loss.look(policy.meta_params())
        """Inner loss by now, shape (K,)."""
        if calibration is not None:
            device = current.mask.device
            lengths = torch.tensor(calibration.support_steps, device=device)
            reached = torch.searchsorted(lengths, current.steps_taken(), right=True) - 1
            # data shorter than any that limits were set for have the shortest's
            limits = torch.tensor(calibration.max_loss, device=device)
            self._max_loss = limits[reached.clamp(min=0)]  # (K,)
        self.kl = torch.zeros_like(self.loss)
        """KL(adapted || unadapted) by now, in nats a step, shape (K,)."""
        self.steps_kept = torch.zeros_like(self.loss, dtype=torch.int64)
        self.verdict = torch.full_like(self.steps_kept, KEPT)
        """Why the last step was undone, a key of `REASONS`, or `KEPT`; shape (K,)."""
        if silent is not None and rollback:
            self.verdict[is_uninformative(silent)] = UNINFORMATIVE

    @torch.no_grad()
    def accept(self, candidate: Params) -> Tensor:
        """Whether each task keeps a step to a candidate (K, ...), shape (K,), bool."""
        loss, distribution = self._loss.look(candidate)
        kl = torch.where(self._taken, distribution.kl(self._reference), 0.0).sum(dim=(0, 2))
        kl = kl / self._taken.sum(dim=(0, 2))  # KL(adapted || meta), mean over the data's steps
        verdict = torch.where(loss < self.loss, KEPT, LOSS_ROSE)  # NaN is not less
        if self._calibration is not None:
            fits = loss <= self._max_loss
            near = kl <= self._calibration.max_kl
            verdict = torch.where((verdict == KEPT) & ~fits, LOSS_HIGH, verdict)
            verdict = torch.where((verdict == KEPT) & ~near, MOVED_FAR, verdict)
        if self._rollback:
            self.verdict = torch.where(self.verdict == KEPT, verdict, self.verdict)
        kept = self.verdict == KEPT
        self.loss = torch.where(kept, loss, self.loss)
        self.kl = torch.where(kept, kl, self.kl)
        self.steps_kept = self.steps_kept + kept
        return kept
