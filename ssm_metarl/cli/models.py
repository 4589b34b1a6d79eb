"""``ssm-metarl models``: the models that come with the package.

Place in the flow: a command over `checkpoint.shipped_models`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ssm_metarl.cli.console import print_json


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that come with the package."""

    json: bool = False
    """Print the list as one JSON object."""

    def run(self) -> int:
        """Load every shipped model and print what it is."""
        from ssm_metarl.checkpoint import load_model, shipped_models

        rows: list[dict[str, Any]] = []
        for name, path in shipped_models().items():
            checkpoint = load_model(name)
            policy = checkpoint.policy()
            rows.append(
                {
                    "name": name,
                    "family": checkpoint.training.get("family", ""),
                    "core": type(policy.core).__name__,
                    "parameters": policy.num_parameters(),
                    "path": str(path),
                    "command": checkpoint.card.get("command", ""),
                }
            )
        if self.json:
            print_json({"models": rows})
        elif not rows:
            print("no models are shipped yet; train one with: ssm-metarl train")
        for row in [] if self.json else rows:
            print(
                f"{row['name']}: {row['core']}, {row['parameters']:,} parameters, family "
                f"{row['family']}\n  {row['path']}\n  made by: {row['command']}"
            )
        return 0
