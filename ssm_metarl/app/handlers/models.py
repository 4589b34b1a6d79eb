"""Tab 0: which models there are, and what one of them is.

Place in the flow: stage 10. A shipped model is opened once for all visitors, who only read it; a
visitor's own run is opened from their private folder. A visitor chooses by name from a list that
the server made: what they send is never a path.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
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
from ssm_metarl.tasks.registry import FAMILIES

OWN_RUN = "my training"
"""What a visitor's own run is called in the list."""
WITHOUT = "none"
"""The mode that does not adapt."""


def mode_meaning(mode: str) -> str:
    """What a way to run does, as its method says."""
    return "as it is" if mode == WITHOUT else str(known_methods()[mode].definition)


@dataclass(frozen=True)
class ModelView:
    """What the page says about a model."""

    name: str
    facts: list[tuple[str, str]]
    """Rows of a table: what, value."""
    card: str
    """Its model card, Markdown; empty for a visitor's own run."""
    log: list[dict[str, Any]]
    """Its training log, a line an epoch."""
    return_bounds: tuple[float, float] | None
    """Least and greatest return of its family's episodes."""


class Models:
    """The models that there are.

    Args:
        kernels: How to compute here.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._shipped = shipped_models()
        self._opened: dict[str, OpenedModel] = {}
        self._expects: dict[str, bool] = {}
        self._lock = threading.Lock()

    @cached_property
    def first(self) -> str:
        """What a new visitor begins with: the first registered family's first shipped model."""
        family = next(iter(FAMILIES))
        return next(name for name in self._shipped if self._open(name).family.name == family)

    def names(self, visitor: Visitor) -> list[str]:
        """What a visitor may choose from."""
        return [*self._shipped, *([OWN_RUN] if own_run(visitor) else [])]

    def choose(self, visitor: Visitor, name: object) -> None:
        """Make a model the visitor's.

        Raises:
            ValueError: There is none of that name.
        """
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
        opened = self.of(visitor)
        run = own_run(visitor)
        key = visitor.model if visitor.model != OWN_RUN else f"{run}:{_version(run)}"
        if key not in self._expects:
            with self._kernels.operations():
                self._expects[key] = plays_disturbed(opened.policy, opened.family)
        return self._expects[key]

    def modes(self, visitor: Visitor) -> list[str]:
        """Ways in which the visitor's model can run; `WITHOUT` first."""
        return [WITHOUT, *self.of(visitor).modes]

    def view(self, visitor: Visitor) -> ModelView:
        """What the page says about the visitor's model."""
        opened = self.of(visitor)
        log = opened.training_log
        lines = [] if log is None else read_log(log).rows
        return ModelView(
            name=visitor.model,
            facts=list(_facts(opened, lines)),
            card=_card(self._shipped.get(visitor.model)),
            log=lines,
            return_bounds=opened.family.return_bounds,
        )


def own_run(visitor: Visitor) -> Path | None:
    """The folder of the visitor's latest training that has left a checkpoint."""
    job = visitor.jobs.get("training")
    if job is not None and (job.folder / "run" / FILE_NAME).is_file():
        return job.folder / "run"
    return None


def _version(run: Path | None) -> float:
    return (run / FILE_NAME).stat().st_mtime if run is not None else 0.0


def _facts(opened: OpenedModel, log: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    training = opened.checkpoint.training
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
        yield (
            "a step is undone above",
            (f"inner loss {limits.max_loss[-1]:.2f}, or KL {limits.max_kl:.2f} nats a step"),
        )
    command = opened.checkpoint.card.get("command")
    if command:
        yield "made by", command


def _card(path: Path | None) -> str:
    card = path.with_suffix(".md") if path is not None else None
    return card.read_text() if card is not None and card.is_file() else ""
