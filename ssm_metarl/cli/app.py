"""``ssm-metarl app``: the web app, on this machine.

Place in the flow: a command; the work is `app.serving`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ssm_metarl.app.config import AppConfig
from ssm_metarl.command_line import part_of


@dataclass(frozen=True, kw_only=True)
class App(AppConfig):
    """Open the web app at http://localhost:7860: watch an agent adapt. Ctrl-C ends it.

    SSM_METARL_PASSWORD is what starting and stopping the daemon from the page asks for; without it
    nobody can.
    """

    json: bool = False
    """Print the page's address as one JSON object."""

    def run(self) -> int:
        """Serve until Ctrl-C."""
        from ssm_metarl.app.serving import serve

        return serve(part_of(self, AppConfig), self._announce)

    def _announce(self, url: str) -> None:
        print(json.dumps({"url": url}) if self.json else url, flush=True)
