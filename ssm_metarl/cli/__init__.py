"""The command line: ``ssm-metarl train | adapt | evaluate | verify | models | bench | app``.

Place in the flow: stage 11, on top of everything. Each command is a dataclass whose fields are
its flags (tyro) and whose ``run`` does the work; `main` turns errors into one line.
"""

from ssm_metarl.cli.main import main

__all__ = ["main"]
