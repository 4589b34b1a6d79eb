"""HTML of the page's texts and tables: every value escaped, no logic.

Place in the flow: stage 10, from the handlers' views to the browser; charts and animations are
drawn there (`charts`, ``static``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ssm_metarl.app.handlers.adapting import REMEMBERING, Adaptation, Side
from ssm_metarl.app.handlers.improving import LineageView, as_text, audit_rows
from ssm_metarl.app.handlers.plants import slider_range
from ssm_metarl.tasks.task_family import TaskFamily
from ssm_metarl.tasks.task_parameter import TaskParameter, Uniform

UNITS = {"m/s^2": "m/s²"}
LONG_TEXT = 40  # characters, above which a cell may wrap


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of what and value."""
    cells = "".join(f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>" for what, value in rows)
    return f'<dl class="ssm-facts">{cells}</dl>'


def with_code(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def notice(text: str, kind: str = "info") -> str:
    """A line of news; empty for none."""
    if not text:
        return ""
    return f'<p class="ssm-notice" data-kind="{kind}" role="status">{with_code(text)}</p>'


def command(text: str) -> str:
    """A shell command to copy."""
    return f'<pre class="ssm-command"><code>{escape(text)}</code></pre>' if text else ""


def progress(share: float, text: str) -> str:
    """A bar with a text under it."""
    percent = round(100 * max(0.0, min(1.0, share)))
    return (
        f'<div class="ssm-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}"><span style="width: {percent}%"></span></div>'
        f'<p class="ssm-muted">{escape(text)}</p>'
    )


def unit(parameter: TaskParameter) -> str:
    """A parameter's unit as it is printed."""
    return UNITS.get(parameter.unit, parameter.unit)


def label(parameter: TaskParameter) -> str:
    """What a parameter's slider is called: ``Mass (kg)``."""
    return parameter.name.capitalize() + (f" ({unit(parameter)})" if parameter.unit else "")


def range_strip(parameter: TaskParameter) -> str:
    """Where a slider is in the range that training saw, and where out of it."""
    low, high = slider_range(parameter.id, parameter.ood)
    parts = []
    for kind, drawn in (("id", parameter.id), ("ood", parameter.ood)):
        for a, b in drawn.intervals if isinstance(drawn, Uniform) else ():
            left, width = 100 * (a - low) / (high - low), 100 * (b - a) / (high - low)
            parts.append(f'<i data-kind="{kind}" style="left:{left:.2f}%;width:{width:.2f}%"></i>')
    inside = parameter.id
    assert isinstance(inside, Uniform)
    label = f"trained on {inside.low:g} to {inside.high:g} {unit(parameter)}"
    return f'<div class="ssm-strip" role="img" aria-label="{escape(label)}">{"".join(parts)}</div>'


def plant_line(family: TaskFamily, task: dict[str, float]) -> str:
    """A task's parameters in a line: ``force 7 N · sign -1``."""
    return " · ".join(f"{p.name} {task[p.name]:g} {unit(p)}".rstrip() for p in family.parameters)


def result(adaptation: Adaptation, family: TaskFamily) -> str:
    """Before and after in two numbers, the episodes as bars, and what it took."""
    before, after = adaptation.before, adaptation.after
    every = [*before.returns, *after.returns]
    bounds = family.return_bounds or (min(0.0, *every), max(0.0, *every))
    head = (
        '<div class="ssm-score">'
        f"{_score('before', before, 'before adapting', bounds)}"
        '<span class="ssm-arrow" aria-hidden="true">→</span>'
        f"{_score('after', after, 'after adapting', bounds)}</div>"
    )
    line = f'<p class="ssm-muted">{escape(plant_line(family, adaptation.task))}</p>'
    body = head + facts(_what_it_took(adaptation)) + line
    return f'<div data-presses="{adaptation.presses}">{body}</div>'


def _score(name: str, side: Side, label: str, bounds: tuple[float, float]) -> str:
    low, high = bounds
    scale = f"of {high:g}" if low == 0 else f"from {low:g} to {high:g}"
    mean = sum(side.returns) / len(side.returns)
    bars = "".join(
        f'<i style="height:{max(2.0, 100 * (r - low) / (high - low or 1)):.1f}%" '
        f'title="episode {i + 1}: {r:.4g}"></i>'
        for i, r in enumerate(side.returns)
    )
    texts = ", ".join(f"{r:.4g}" for r in side.returns)
    return (
        f'<div class="ssm-side" data-side="{name}"><b data-return="{name}">{mean:.0f}</b>'
        f"<span>{escape(label)}<br><small>mean return, {scale}</small></span>"
        f'<div class="ssm-bars" role="img" aria-label="return per episode: {texts}">{bars}</div>'
        f"<small>per episode: {texts}</small></div>"
    )


def _what_it_took(adaptation: Adaptation) -> list[tuple[str, str]]:
    report, seconds, rows = adaptation.report, adaptation.seconds, list[tuple[str, str]]()
    time = "" if seconds is None else f", {seconds:.1f} s of the plant"
    if adaptation.mode in REMEMBERING:
        number = adaptation.presses + 1
        rows.append(("memory", f"after: episode {number} of a trial, which it remembers"))
    if report is None and rows:
        return [*rows, ("weights", "no step: they stay as they are")]
    if report is None:
        return [("mode", "none: the model stays as it is, so before and after are the same")]
    asked = adaptation.num_adapt_steps
    kept = f"{report.num_steps} of {asked} kept"
    if report.rolled_back is not None:
        kept += f"; the next was undone, because {report.rolled_back}"
    rows += [
        ("prediction error on the data", f"{report.loss_before:.3f} → {report.loss_after:.3f}"),
        ("data", f"{report.env_steps} environment steps{time}; no reward"),
        ("gradient steps", kept),
        ("change of the policy", f"KL {report.kl:.2f} nats a step"),
    ]  # fmt: skip
    if report.replay_trust is not None:
        rows.append(("trust in the replayed experience", f"{report.replay_trust:.2f}"))
    if adaptation.presses > 1:
        rows.append(("presses", f"{adaptation.presses}, of which this is the sum"))
    return rows


def table(rows: Sequence[dict[str, Any]], caption: str = "") -> str:
    """Records as a table that scrolls sideways where it is wide."""
    if not rows:
        return ""
    head = "".join(
        f"<th scope='col'{_align(_first(rows, c))}>{escape(str(c).replace('_', ' '))}</th>"
        for c in rows[0]
    )
    body = "".join(
        "<tr>" + "".join(f"<td{_align(v)}>{escape(cell(v))}</td>" for v in row.values()) + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    name = escape(caption or "table")
    return (
        f'<div class="ssm-table" tabindex="0" role="region" aria-label="{name}">'
        f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _first(rows: Sequence[dict[str, Any]], column: str) -> object:
    """The first value of a column that is one."""
    return next((row[column] for row in rows if row[column] is not None), "")


def cell(value: object) -> str:
    """A value as a table has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _align(value: object) -> str:
    """The class of a cell: numbers to the right, short texts on one line."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return ' class="num"'
    return f' class="{"long" if len(str(value)) > LONG_TEXT else "short"}"'


def details(summary: str, content: str) -> str:
    """Content that is shown on request."""
    return (
        f'<details class="ssm-details"><summary>{escape(summary)}</summary>{content}</details>'
        if content
        else ""
    )


def lineage(view: LineageView) -> str:
    """Stage, counts, champion, candidates and metrics of a lineage."""
    s = view.summary
    tiles = [
        ("stage", s["stage"].replace("_", " ").lower()),
        ("generation", s["generation"]),
        ("accepted", s["accepted"]),
        ("rolled back", s["rolled_back"]),
        ("champion", s["champion"]),
        ("parameters", f"{s['parameters']:,}"),
        ("environment steps", f"{s['env_steps']:,}"),
        ("chance of error left", f"{s['alpha_left']:.4f} of {s['alpha']:g}"),
    ]
    head = "".join(f"<div><b>{escape(str(v))}</b><span>{escape(k)}</span></div>" for k, v in tiles)
    parts = [f'<div class="ssm-tiles">{head}</div>']
    if s["reason"]:
        parts.append(notice(f"{s['reason']}"))
    parts.append(table(list(map(_candidate, view.candidates)), "Candidates of this generation"))
    parts.append(
        table(
            [
                {"metric": name.replace("_", " "), "what it is": meaning,
                 "generation 0": value, "its test now": standing}
                for name, meaning, value, standing in view.metrics
            ],
            "The five metrics",
        )
    )  # fmt: skip
    parts.append(
        table(
            [
                {"generation": r.generation, "outcome": str(r.outcome), "why": r.reason,
                 "change": as_text(r)}
                for r in reversed(view.records)
            ],
            "Generations",
        )
    )  # fmt: skip
    if view.audit is not None:
        parts.append('<h4 class="ssm-h">Audit, on vault tasks</h4>')
        parts.append(facts(audit_rows(view.audit)))
    return "".join(parts)


def _candidate(candidate: Any) -> dict[str, Any]:
    points = 100 * candidate.mean if candidate.screened else None
    state = candidate.failure or ("dropped" if candidate.dropped else "")
    changes = ", ".join(f"{k} {cell(v)}" for k, v in candidate.changes.items())
    return {
        "role": str(candidate.role), "change": changes or "none",
        "parameters": candidate.parameters or None, "points in screening": points,
        "state": state[:60],
    }  # fmt: skip


def daemon(status: dict[str, Any]) -> str:
    """How the daemon is, in a line."""
    state = status["state"] + (", paused" if status["paused"] else "")
    age = status["heartbeat_age"]
    beat = f"; last heartbeat {age:.1f} s ago" if age is not None else ""
    kind = "good" if status["state"] == "running" else "info"
    return notice(f"The daemon is {state}{beat}.", kind)
