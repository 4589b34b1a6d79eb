"""Tab 0: which models there are, and what one of them is.

Place in the flow: stage 10. A shipped model is opened once for all visitors, who only read it; a
visitor's own run is opened from their private folder. A visitor chooses by name from a list that
the server made: what they send is never a path.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ssm_metarl.app.kernels import Kernels
from ssm_metarl.app.visitors import Visitor
from ssm_metarl.checkpoint import FILE_NAME, shipped_models
from ssm_metarl.evaluation.episodes import plays_disturbed
from ssm_metarl.evaluation.opened_model import OpenedModel, open_model
from ssm_metarl.meta_rl.training_log import read_log
from ssm_metarl.methods.registry import known_methods
from ssm_metarl.tasks.names import FAMILY

OWN_RUN = "my training"
"""What a visitor's own run is called in the list."""
WITHOUT = "none"
"""The mode that does not adapt."""


def mode_meaning(mode: str) -> str:
    """What a way to run does, as its method says."""
    return "as it is" if mode == WITHOUT else str(known_methods()[mode].definition)


class Models:
    """The models that there are.

    Args:
        kernels: How to compute here.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._shipped = shipped_models()
        self._opened: dict[str, OpenedModel] = {}
        self._expects: dict[object, bool] = {}
        self._lock = threading.Lock()

    @cached_property
    def first(self) -> str:
        """What a new visitor begins with: the first shipped model of the family that is usual."""
        return next(name for name in self._shipped if self._open(name).family.name == FAMILY)

    def names(self, visitor: Visitor) -> list[str]:
        """What a visitor may choose from."""
        return [*self._shipped, *([OWN_RUN] if own_run(visitor) else [])]

    def choose(self, visitor: Visitor, name: object) -> None:
        """Make a model the visitor's."""
        names = self.names(visitor)
        if name not in names:
            raise ValueError(f"model: expected one of {', '.join(names)}, received another")
        with visitor.lock:
            if visitor.model != name or name == OWN_RUN:
                visitor.model = str(name)
                visitor.adaptation = visitor.live = None

    def of(self, visitor: Visitor) -> OpenedModel:
        """The visitor's model, opened."""
        if visitor.model != OWN_RUN:
            return self._open(visitor.model)
        run = own_run(visitor)
        if run is None:
            raise ValueError("model: your training has left no checkpoint yet")
        return open_model(str(run))

    def _open(self, name: str) -> OpenedModel:
        with self._lock:
            if name not in self._opened:
                self._opened[name] = open_model(name)
            return self._opened[name]

    def expects_disturbed(self, visitor: Visitor) -> bool:
        """Whether the visitor's model, before it adapts, expects the default plant disturbed."""
        opened, run = self.of(visitor), own_run(visitor)
        key: object = visitor.model
        if visitor.model == OWN_RUN and run is not None:
            key = run, (run / FILE_NAME).stat().st_mtime
        if key not in self._expects:
            with self._kernels.operations():
                self._expects[key] = plays_disturbed(opened.policy, opened.family)
        return self._expects[key]

    def modes(self, visitor: Visitor) -> list[str]:
        """Ways in which the visitor's model can run; `WITHOUT` first."""
        return [WITHOUT, *self.of(visitor).modes]

    def card(self, visitor: Visitor) -> str:
        """The card of the visitor's model, Markdown; empty where there is none."""
        path = self._shipped.get(visitor.model)
        card = path.with_suffix(".md") if path is not None else None
        return card.read_text() if card is not None and card.is_file() else ""


def own_run(visitor: Visitor) -> Path | None:
    """The folder of the visitor's latest training that has left a checkpoint."""
    job = visitor.jobs.get("training")
    if job is not None and (job.folder / "run" / FILE_NAME).is_file():
        return job.folder / "run"
    return None


def log_rows(path: Path | None) -> list[dict[str, Any]]:
    """A training log, an object an epoch; empty where there is none yet."""
    return read_log(path).rows if path is not None and path.is_file() else []


def facts(opened: OpenedModel) -> Iterator[tuple[str, str]]:
    """What a model is: rows of a table."""
    training, log = opened.checkpoint.training, log_rows(opened.training_log)
    yield "task family", opened.family.name
    yield "sequence model", type(opened.policy.core).__name__
    yield "parameters", f"{opened.policy.num_parameters():,}"
    if log:
        yield "meta-trained for", f"{log[-1]['env_steps']:,} environment steps"
    if "objective" in training:
        yield "a step descends", f"the loss of {training['objective'].replace('_', ' ')}"
    yield "ways to adapt", ", ".join(opened.modes) or "none"
    if opened.buffer is not None:
        yield "experience to replay", f"{len(opened.buffer):,} transitions"
    limits = opened.policy.calibration
    if limits is not None:
        undone = f"inner loss {limits.max_loss[-1]:.2f}, or KL {limits.max_kl:.2f} nats a step"
        yield "a step is undone above", undone
    if command := opened.checkpoint.card.get("command"):
        yield "made by", command
