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
from pathlib import Path

from ssm_metarl.daemon.control import Control
from ssm_metarl.recursive_self_improvement.agent import RecursiveSelfImprovementAgent, Update
from ssm_metarl.recursive_self_improvement.config import RSIRun
from ssm_metarl.recursive_self_improvement.executor import Executor, LocalExecutor, Stopped
from ssm_metarl.recursive_self_improvement.generation import Stage
from ssm_metarl.recursive_self_improvement.lineage import Lineage
from ssm_metarl.recursive_self_improvement.safety import is_disk_trouble
from ssm_metarl.recursive_self_improvement.summary import summarize_lineage
from ssm_metarl.tasks.registry import named_family

POLL_SECONDS = 0.1
DISK_POLL_SECONDS = 1.0
STOPPED, DONE, HALTED, USED_UP = "stopped", "done", "halted", "used up"


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
        executor=make_executor(run, control),
        on_update=update,
    )
    control.report(state="RUNNING", **summarize_lineage(agent.lineage))
    return agent


def make_executor(run: RSIRun, control: Control) -> Executor:
    """Where jobs run."""
    limits = {
        "timeout_seconds": run.train_timeout,
        "memory_limit_mb": run.memory_limit_mb,
        "should_stop": control.stopping,
    }
    if run.executor == "ray":
        from ssm_metarl.recursive_self_improvement.ray_executor import RayExecutor

        return RayExecutor(address=run.ray_address, **limits)
    return LocalExecutor(num_workers=run.workers, **limits)


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

    def show(state: str, **more: str) -> None:
        control.report(**(summarize_lineage(agent.lineage) | {"state": state} | more))

    def rest(state: str, reason: str, seconds: float = POLL_SECONDS) -> None:
        show(state, reason=reason)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not control.stopping():
            time.sleep(POLL_SECONDS / 2)

    ended = STOPPED
    goal = None if cycles is None else len(agent.lineage.records) + cycles
    while not control.stopping():
        acknowledged = control.take_ack()  # an old one must not end a later halt
        if agent.lineage.stage == Stage.HALTED:
            if acknowledged:
                agent.acknowledge()
            elif wait_when_halted:
                rest("HALTED", agent.lineage.reason)
            else:
                ended = HALTED
                break
        elif control.paused():
            rest("PAUSED", "asked for")
        elif goal is not None and len(agent.lineage.records) >= goal:
            ended = DONE
            break
        elif agent.finished:
            ended = USED_UP
            break
        else:
            try:
                agent.step()
            except Stopped:
                break
            except OSError as error:
                if not is_disk_trouble(error):
                    raise
                rest("PAUSED", str(error), DISK_POLL_SECONDS)
    show(ended.upper())
    return ended


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
