"""HTML of tab 2: what adapting brought, and a plant's parameters.

Place in the flow: stage 10, from `before_after` to the browser.
"""

from __future__ import annotations

from ssm_metarl.app.forms import Between
from ssm_metarl.app.handlers.before_after import REMEMBERING, Adaptation
from ssm_metarl.app.handlers.plants import field_of
from ssm_metarl.app.markup import render
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.tasks.task_parameter import TaskParameter, Uniform

UNITS = {"m/s^2": "m/s²"}


def label(parameter: TaskParameter) -> str:
    """What a parameter's field is called: ``Mass (kg)``."""
    return parameter.name.capitalize() + (f" ({_unit(parameter)})" if parameter.unit else "")


def _unit(parameter: TaskParameter) -> str:
    return UNITS.get(parameter.unit, parameter.unit)


def range_strip(parameter: TaskParameter) -> str:
    """Where a slider is in the range that training saw, and where out of it."""
    slider, inside = field_of(parameter), parameter.id
    assert isinstance(slider, Between) and isinstance(inside, Uniform)
    scale = 100 / (slider.high - slider.low)
    parts = [
        (kind, scale * (a - slider.low), scale * (b - a))
        for kind, drawn in (("id", inside), ("ood", parameter.ood))
        for a, b in (drawn.intervals if isinstance(drawn, Uniform) else ())
    ]
    said = f"trained on {inside.low:g} to {inside.high:g} {_unit(parameter)}"
    return render("strip", parts=parts, said=said)


def result(adaptation: Adaptation, family: TaskFamily) -> str:
    """Before and after in two numbers, the episodes as bars, and what it took."""
    before, after = adaptation.before.returns, adaptation.after.returns
    low, high = family.return_bounds or (min(0.0, *before, *after), max(0.0, *before, *after))
    task = adaptation.task
    plant = [f"{p.name} {task[p.name]:g} {_unit(p)}".rstrip() for p in family.parameters]
    return render(
        "result", presses=adaptation.presses, before=before, after=after, low=low, high=high,
        scale=f"of {high:g}" if low == 0 else f"from {low:g} to {high:g}",
        took=_what_it_took(adaptation), plant=" · ".join(plant),
    )  # fmt: skip


def _what_it_took(adaptation: Adaptation) -> list[tuple[str, str]]:
    report, seconds, rows = adaptation.report, adaptation.seconds, list[tuple[str, str]]()
    if adaptation.mode in REMEMBERING:
        number = adaptation.presses + 1
        rows.append(("memory", f"after: episode {number} of a trial, which it remembers"))
    if report is None and rows:
        return [*rows, ("weights", "no step: they stay as they are")]
    if report is None:
        return [("mode", "none: the model stays as it is, so before and after are the same")]
    kept = f"{report.num_steps} of {adaptation.total.num_adapt_steps} kept"
    if report.rolled_back is not None:
        kept += f"; the next was undone, because {report.rolled_back}"
    time = "" if seconds is None else f", {seconds:.1f} s of the plant"
    rows += [
        ("prediction error on the data", f"{report.loss_before:.3f} → {report.loss_after:.3f}"),
        ("data", f"{report.env_steps} environment steps{time}; no reward"),
        ("gradient steps", kept),
        ("change of the policy", f"KL {report.kl:.2f} nats a step"),
    ]
    if report.replay_trust is not None:
        rows.append(("trust in the replayed experience", f"{report.replay_trust:.2f}"))
    if adaptation.presses > 1:
        rows.append(("presses", f"{adaptation.presses}, of which this is the sum"))
    return rows
