"""The app as a process: how it is launched, and its life until Ctrl-C.

Place in the flow: stage 10; ``ssm-metarl app`` and ``app.py`` end here.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from ssm_metarl.app.config import AppConfig
from ssm_metarl.app.server import Server

MAX_QUEUE = 64
"""Events that wait at once; one more is told that the server is busy."""
MAX_THREADS = 16
POLL_SECONDS = 0.1


def launch(server: Server) -> Any:
    """Serve the page, and return it, a `gradio.Blocks`; its thread goes on.

    Raises:
        OSError: The port is taken.
    """
    # Before gradio is imported: it asks its makers' servers for news otherwise.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from starlette.middleware import Middleware

    from ssm_metarl.app.guard import MAX_VALUES, Guard
    from ssm_metarl.app.interface import build, page_options

    config = server.config
    blocks = build(server)
    blocks.queue(max_size=MAX_QUEUE, default_concurrency_limit=MAX_THREADS // 2)
    most = max(MAX_VALUES, *(len(event.inputs) for event in blocks.fns.values()))
    guard: Any = Middleware(Guard, local=config.is_local, most_values=most)
    blocks.launch(
        server_name=config.host, server_port=config.port, max_threads=MAX_THREADS,
        prevent_thread_lock=True, quiet=True, share=False, allowed_paths=[], ssr_mode=False,
        mcp_server=False, run_history=False, enable_monitoring=False, pwa=False, footer_links=[],
        max_file_size=1, state_session_capacity=config.max_visitors,
        app_kwargs={"middleware": [guard]}, **page_options(),
    )  # fmt: skip
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
