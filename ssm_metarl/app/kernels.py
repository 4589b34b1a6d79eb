"""Compiled or plain: the first visitor does not wait for the kernels.

Place in the flow: stage 10, around whatever a handler computes itself. On a machine where nobody
has used the package yet, the kernels take half a minute to compile. Until they are ready a handler
runs PyTorch's own operations: a second for an adaptation and its episodes, not a tenth.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ssm_metarl.app.jobs import Job, JobQueue, JobState

WARM_UP = "ssm_metarl.app.warm_up"
LIMIT_SECONDS = 600.0


class Kernels:
    """Whether the compiled kernels lie on disk, and how to compute until they do."""

    def __init__(self) -> None:
        self._ready = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether they are used."""
        return self._ready.is_set()

    def compile(self, jobs: JobQueue, folder: Path) -> None:
        """Compile them, in a process that leaves them on disk: the queue's first jobs."""
        for part, on_end in (("adapting", self._compiled), ("training", None)):
            jobs.submit(
                f"compiling-{part}", (WARM_UP, part), folder,
                limit_seconds=LIMIT_SECONDS, on_end=on_end,
            )  # fmt: skip

    def operations(self) -> AbstractContextManager[None]:
        """How a handler's thread is to compute now."""
        from ssm_metarl.compiled import plain_operations

        return nullcontext() if self.ready else plain_operations()

    def _compiled(self, job: Job) -> None:
        if job.state == JobState.DONE:
            self._ready.set()
