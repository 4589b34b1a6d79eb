"""Settings of the web app: what ``ssm-metarl app`` and ``python app.py`` build.

Place in the flow: stage 10, under everything in this folder. No gradio here: ``--help`` is instant.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ssm_metarl.settings import Count, Positive, check_fields, require

LOOPBACK = "127.0.0.1"
LOCAL_HOSTS = (LOOPBACK, "localhost", "::1")
PASSWORD = "SSM_METARL_PASSWORD"
"""Environment variable with the password that starts and stops the daemon; unset, nobody can."""


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """The web app: watch an agent adapt."""

    host: str = field(default_factory=lambda: os.environ.get("GRADIO_SERVER_NAME") or LOOPBACK)
    """Address to bind: 127.0.0.1 is this machine alone, 0.0.0.0 lets others in. By default
    $GRADIO_SERVER_NAME, which Hugging Face Spaces set, or else 127.0.0.1."""
    port: int = field(default_factory=lambda: int(os.environ.get("GRADIO_SERVER_PORT") or 7860))
    """Port to bind; by default $GRADIO_SERVER_PORT, or else 7860."""
    max_visitors: Count = 200
    """Visitors whose state is kept at once."""
    visitor_hours: Positive = 6.0
    """Hours after which a visitor who was not seen again is forgotten, runs included."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 <= self.port < 65536, "port", "0 to 65535", self.port)
        require(bool(self.host), "host", "an address", self.host)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOCAL_HOSTS
