"""The app as a process: its shared state, its life, how it is launched.

Place in the flow: stage 10; ``ssm-metarl app`` and ``app.py`` end here. All that belongs to one
server stands in `Server`, nothing in module globals.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_metarl.app.config import AppConfig
from ssm_metarl.app.handlers.daemon import Daemon
from ssm_metarl.app.handlers.models import Models
from ssm_metarl.app.jobs import JobQueue
from ssm_metarl.app.kernels import Kernels
from ssm_metarl.app.visitors import Visitor, Visitors

if TYPE_CHECKING:
    from gradio import Blocks

MAX_QUEUE = 64
"""Events that wait at once; one more is told that the server is busy."""
MAX_THREADS = 16
POLL_SECONDS = 0.1


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
            if job.active:
                self.jobs.cancel(job)


def launch(server: Server) -> Blocks:
    """Serve the page, and return; its thread goes on.

    Raises:
        OSError: The port is taken.
    """
    # Before gradio is imported: it asks its makers' servers for news otherwise.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from starlette.middleware import Middleware

    from ssm_metarl.app.guard import Guard
    from ssm_metarl.app.interface import build, page_options

    config = server.config
    blocks = build(server)
    blocks.queue(max_size=MAX_QUEUE, default_concurrency_limit=MAX_THREADS // 2)
    guard: Any = Middleware(Guard, local=config.is_local)
    blocks.launch(
        server_name=config.host,
        server_port=config.port,
        share=False,
        allowed_paths=[],
        max_threads=MAX_THREADS,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        footer_links=[],
        max_file_size=1,
        state_session_capacity=config.max_visitors,
        app_kwargs={"middleware": [guard]},
        **page_options(),
    )
    server.kernels.compile(server.jobs, server.folder)
    return blocks


def serve(config: AppConfig, announce: Callable[[str], None]) -> int:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        config: Its settings.
        announce: Called with the page's address as soon as it is served.

    Raises:
        ValueError: Gradio is not installed, or the port is taken.
    """
    if find_spec("gradio") is None:
        raise ValueError("app: expected gradio, received none; pip install 'ssm-metarl[web]'")
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    server = Server(config)
    try:
        try:
            blocks = launch(server)
        except OSError:
            raise ValueError(
                f"port: expected one that is free, received {config.port}, which is taken"
            ) from None
        host = "localhost" if config.is_local else config.host
        announce(f"http://{host}:{blocks.server_port}")
        # Not an event's wait(): a thread that waits for a lock does not always hear of a signal.
        while not asked:
            time.sleep(POLL_SECONDS)
        blocks.close(verbose=False)
    finally:
        server.close()
    return 0
