"""``ssm-metarl models``: the models that come with the package.

Place in the flow: a command over `checkpoint.shipped_models`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssm_metarl.cli.console import print_json


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that come with the package."""

    json: bool = False
    """Print the list as one JSON object."""

    def run(self) -> int:
        """Load every shipped model and print what it is."""
        from ssm_metarl.checkpoint import shipped_models
        from ssm_metarl.evaluation.opened_model import open_model

        rows = []
        for name, path in shipped_models().items():
            opened = open_model(str(path))
            rows.append(
                {
                    "name": name,
                    "family": opened.family.name,
                    "core": type(opened.policy.core).__name__,
                    "parameters": opened.policy.num_parameters(),
                    "path": str(path),
                    "command": opened.checkpoint.card.get("command", ""),
                }
            )
        if self.json:
            print_json({"models": rows})
            return 0
        for row in rows:
            print(
                f"{row['name']}: {row['core']}, {row['parameters']:,} parameters, family "
                f"{row['family']}\n  {row['path']}\n  made by: {row['command'] or 'not recorded'}"
            )
        if not rows:
            print("no models come with this version; train one with: ssm-metarl train")
        return 0
