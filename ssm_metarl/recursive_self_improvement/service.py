"""Run a lineage for as long as it is wanted: pauses, a full disk, halts, stops.

Place in the flow: stage 8, over `agent`. The daemon and ``ssm-metarl rsi run`` both run this; what
they hear from a person comes through a `Control`.

    RUNNING   steps, one event after another
    PAUSED    a person asked for it, or the disk is full: it goes on when there is room
    HALTED    too many failures, or another evaluator: until ``resume --ack``, also after a restart

The trap: none of these may be in the ledger's chain, which has deterministic events only; they are
the process's state, and say so through `Control.report`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ssm_metarl.recursive_self_improvement.agent import RecursiveSelfImprovementAgent, Update
from ssm_metarl.recursive_self_improvement.config import RSIRun
from ssm_metarl.recursive_self_improvement.executor import Executor, LocalExecutor, Stopped
from ssm_metarl.recursive_self_improvement.lineage import Lineage, Stage
from ssm_metarl.recursive_self_improvement.safety import is_disk_trouble
from ssm_metarl.recursive_self_improvement.summary import summarize_lineage
from ssm_metarl.tasks.registry import named_family

POLL_SECONDS = 0.1
DISK_POLL_SECONDS = 1.0
STOPPED, DONE, HALTED, USED_UP = "stopped", "done", "halted", "used up"


class Control(Protocol):
    """What a person asks for, and is told (`daemon.control.Control`)."""

    def stopping(self) -> bool:
        """Whether to save and return."""

    def paused(self) -> bool:
        """Whether to do nothing for now."""

    def take_ack(self) -> bool:
        """Whether a halt was acknowledged since the last call."""

    def report(self, **status: Any) -> None:
        """Say how far the work is."""


def open_agent(
    folder: Path, run: RSIRun, control: Control, on_update: Update
) -> RecursiveSelfImprovementAgent:
    """The agent of a run, whose executor stops when the control says so."""
    folder.mkdir(parents=True, exist_ok=True)

    def update(lineage: Lineage, kind: str, detail: str) -> None:
        control.report(state="RUNNING", **summarize_lineage(lineage))
        on_update(lineage, kind, detail)

    agent = RecursiveSelfImprovementAgent(
        initial_model=run.model,
        env=None if run.family is None else named_family(run.family),
        config=run.settings,
        folder=folder,
        executor=make_executor(run, control.stopping),
        on_update=update,
    )
    control.report(state="RUNNING", **summarize_lineage(agent.lineage))
    return agent


def make_executor(run: RSIRun, should_stop: Callable[[], bool]) -> Executor:
    """Where jobs run."""
    if run.executor == "ray":
        from ssm_metarl.recursive_self_improvement.ray_executor import RayExecutor

        return RayExecutor(
            address=run.ray_address,
            timeout_seconds=run.train_timeout,
            memory_limit_mb=run.memory_limit_mb,
            should_stop=should_stop,
        )
    return LocalExecutor(
        num_workers=run.workers,
        timeout_seconds=run.train_timeout,
        memory_limit_mb=run.memory_limit_mb,
        should_stop=should_stop,
    )


def supervise(
    agent: RecursiveSelfImprovementAgent,
    control: Control,
    *,
    cycles: int | None,
    wait_when_halted: bool,
) -> str:
    """Run generations until there is a reason not to; returns it.

    Args:
        agent: Whose lineage.
        control: What a person asks for.
        cycles: Generations; None for no limit.
        wait_when_halted: Whether to wait for an acknowledgement, or return.
    """
    goal = None if cycles is None else len(agent.lineage.records) + cycles
    while not control.stopping():
        acknowledged = control.take_ack()  # an old one must not end a later halt
        if agent.lineage.stage == Stage.HALTED:
            if acknowledged:
                agent.acknowledge()
            elif wait_when_halted:
                _rest(agent, control, "HALTED", agent.lineage.reason)
            else:
                return _ended(agent, control, HALTED)
        elif control.paused():
            _rest(agent, control, "PAUSED", "asked for")
        elif goal is not None and len(agent.lineage.records) >= goal:
            return _ended(agent, control, DONE)
        elif agent.finished:
            return _ended(agent, control, USED_UP)
        else:
            try:
                agent.step()
            except Stopped:
                break
            except OSError as error:
                if not is_disk_trouble(error):
                    raise
                _rest(agent, control, "PAUSED", str(error), DISK_POLL_SECONDS)
    return _ended(agent, control, STOPPED)


def _ended(agent: RecursiveSelfImprovementAgent, control: Control, why: str) -> str:
    control.report(**(summarize_lineage(agent.lineage) | {"state": why.upper()}))
    return why


def _rest(
    agent: RecursiveSelfImprovementAgent,
    control: Control,
    state: str,
    reason: str,
    seconds: float = POLL_SECONDS,
) -> None:
    """Do nothing for a moment, and say why."""
    control.report(**(summarize_lineage(agent.lineage) | {"state": state, "reason": reason}))
    until = time.monotonic() + seconds
    while time.monotonic() < until and not control.stopping():
        time.sleep(POLL_SECONDS / 2)


def log(lineage: Lineage, kind: str, detail: str) -> None:
    """A line of the daemon's log."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{moment} {describe(lineage, kind, detail)}", flush=True)


def describe(lineage: Lineage, kind: str, detail: str = "") -> str:
    """What an event did, in a line."""
    head = f"generation {lineage.generation} {kind}"
    gate = lineage.confirmation
    match kind:
        case "init":
            return f"generation 0 is {lineage.champion[:12]}, family {lineage.family}"
        case "baseline":
            numbers = ", ".join(f"{n} {v:.1f}" for n, v in lineage.baseline.items())
            return f"baseline: {numbers}"
        case "trained":
            return f"{head} {detail}"
        case "screen":
            means = " ".join(f"{c.role[:3]} {100 * c.mean:+.1f}" for c in lineage.candidates)
            return f"{head} {lineage.screened_pairs} pairs, points over the champion: {means}"
        case "confirm" if gate is not None:
            return (
                f"{head} {gate.primary.num_pairs} of {gate.cap} pairs: "
                f"{100 * gate.mean:+.2f} points, wealth {gate.primary.wealth:.3g} of "
                f"{gate.primary.threshold:.0f}, open: {', '.join(gate.open_tests) or 'none'}"
            )
        case "commit":
            return f"{head}: the champion is now {lineage.champion[:12]}"
        case "generation" | "failure":
            record = lineage.records[-1]
            return (
                f"generation {record.generation} {record.outcome}: {record.reason}; "
                f"{record.env_steps:,} environment steps, alpha left {lineage.alpha_left:.4f}"
            )
        case "halt":
            return f"{head}: {lineage.reason}"
    return head
