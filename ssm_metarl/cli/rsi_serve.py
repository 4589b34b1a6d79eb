"""The daemon's work, from the words that it was started with.

Place in the flow: `daemon.process` names this module, and a daemon imports it when it has its
lock and beats; it reads the flags, and `recursive_self_improvement.service` does the rest. What is
refused here ends with one line in the log, which `rsi_daemon.start` shows to whoever started it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssm_metarl.cli.parsing import read_flags
from ssm_metarl.cli.rsi import find_start, has_begun
from ssm_metarl.recursive_self_improvement.config import RSIRun
from ssm_metarl.tasks import names

if TYPE_CHECKING:
    from ssm_metarl.daemon.control import Control

BAD_INPUT = 2


def serve(lineage: Path, control: Control, arguments: Sequence[str]) -> int:
    """Work at a lineage, as the flags of `RSIRun` say, until the control says stop.

    Returns:
        The exit code: 2 where the arguments, or the lineage, are refused.
    """
    from ssm_metarl.cli.main import describe

    try:
        run = read_flags(RSIRun, "rsi start", list(arguments))
        if run.model is None and not has_begun(lineage):
            run = replace(run, model=names.FAMILY)  # the shipped model of that name
        find_start(lineage, run.model)
        from ssm_metarl.recursive_self_improvement import service  # torch: a mistake need not wait

        agent = service.open_agent(lineage, run, control, service.log)
    except (ValueError, OSError) as error:
        print(describe(error), flush=True)
        return BAD_INPUT
    with agent:
        ended = service.supervise(agent, control, cycles=run.cycles, wait_when_halted=True)
        print(f"{ended}: {agent.finished or ''}".rstrip(": "), flush=True)
    return 0
