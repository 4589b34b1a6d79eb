"""What belongs to one server, and all its visitors share: nothing stands in module globals.

Place in the flow: stage 10, under the page (`interface`); `serving` launches it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ssm_metarl.app.config import AppConfig
from ssm_metarl.app.handlers.daemon import Daemon
from ssm_metarl.app.handlers.models import Models
from ssm_metarl.app.jobs import JobQueue
from ssm_metarl.app.kernels import Kernels
from ssm_metarl.app.visitors import Visitor, Visitors
from ssm_metarl.tasks.registry import registered_families
from ssm_metarl.tasks.task_family import TaskFamily


@dataclass
class Server:
    """What all visitors share.

    Args:
        config: Its settings.
    """

    config: AppConfig
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ssm-metarl-app-")))
    """Private, and gone with the server."""

    def __post_init__(self) -> None:
        self.jobs = JobQueue()
        self.kernels = Kernels()
        self.models = Models(self.kernels)
        self.daemon = Daemon()
        self.families = _families()
        self.visitors = Visitors(
            self.folder / "visitors",
            model=self.models.first,
            most=self.config.max_visitors,
            seconds=3600 * self.config.visitor_hours,
            on_leave=self._leave,
        )

    def close(self) -> None:
        """Stop all jobs, forget all visitors."""
        self.jobs.close()
        self.visitors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _leave(self, visitor: Visitor) -> None:
        for job in visitor.jobs.values():
            self.jobs.cancel(job)


def _families() -> dict[str, TaskFamily]:
    """Every family that is known by name; of those of other packages, all that can be loaded."""
    found = {}
    for name, give in registered_families().items():
        try:
            found[name] = give()
        except ValueError as error:
            print(f"ssm-metarl: {error}; the page is without it", file=sys.stderr)
    return found
