"""Compiled or plain: the first visitor does not wait for the kernels.

Place in the flow: stage 10, around whatever a handler computes itself. On a machine where nobody
has used the package yet, the kernels take half a minute to compile. Until they are ready a handler
runs PyTorch's own operations: a second for an adaptation and its episodes, not a tenth.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ssm_metarl.app.jobs import Job, JobQueue, JobState
from ssm_metarl.compiled import plain_operations

WARM_UP = "ssm_metarl.app.warm_up"
LIMIT_SECONDS = 600.0


@dataclass
class Kernels:
    """Whether the compiled kernels lie on disk, and how to compute until they do."""

    compiling: Job | None = None
    """What compiles those that adapting needs."""

    def compile(self, jobs: JobQueue, folder: Path) -> None:
        """Compile them, in processes that leave them on disk: the queue's first jobs."""
        self.compiling, _ = (
            jobs.submit(Job(f"compiling-{part}", (WARM_UP, part), folder, LIMIT_SECONDS))
            for part in ("adapting", "training")
        )

    def operations(self) -> AbstractContextManager[None]:
        """How a handler's thread is to compute now."""
        ready = self.compiling is not None and self.compiling.state == JobState.DONE
        return nullcontext() if ready else plain_operations()
