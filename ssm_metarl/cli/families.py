"""``ssm-metarl families``: what task families there are, and whether one keeps what it promises.

Place in the flow: a command; `tasks.registry` knows families, `evaluation.contract` checks them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ssm_metarl.cli.console import announce_compilation, print_json

if TYPE_CHECKING:
    from ssm_metarl.evaluation.contract import Finding
    from ssm_metarl.tasks.task_family import TaskFamily
    from ssm_metarl.tasks.task_parameter import Choice, Uniform

EXIT_BROKEN = 1


@dataclass(frozen=True, kw_only=True)
class Families:
    """List the task families that are known by name (families check FAMILY: test one)."""

    json: bool = False
    """Print the list as one JSON object."""

    def run(self) -> int:
        """Describe every family, and those of installed packages."""
        from ssm_metarl.tasks.registry import registered_families

        rows: list[dict[str, Any]] = []
        for name, give in registered_families().items():
            try:
                rows.append(described(give()))
            except ValueError as error:  # of somebody else's package: the others are listed
                rows.append({"name": name, "error": str(error)})
        if self.json:
            print_json({"families": rows})
        else:
            for row in rows:
                print(row["error"] if "error" in row else in_words(row))
        return 0


@dataclass(frozen=True, kw_only=True)
class FamiliesCheck:
    """Check that a task family keeps what it promises."""

    family: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FAMILY")]
    """A name, a Gymnasium id that names it, or my_plant.py:FAMILY."""
    json: bool = False
    """Print the findings as one JSON object."""

    def run(self) -> int:
        """Run the contract; exit code 1 where something is wrong."""
        from ssm_metarl.evaluation.contract import check_contract
        from ssm_metarl.tasks.registry import named_family

        announce_compilation()
        family = named_family(self.family)
        findings = check_contract(family)
        broken = [finding for finding in findings if finding.verdict == "wrong"]
        if self.json:
            print_json({
                "family": family.name,
                "passed": not broken,
                "checks": [asdict(finding) for finding in findings],
            })  # fmt: skip
        else:
            for finding in findings:
                print(line(finding))
            failed = f"{len(broken)} of {len(findings)} checks failed"
            print(f"{family.name}: {failed if broken else f'{len(findings)} checks passed'}")
        return EXIT_BROKEN if broken else 0


def line(finding: Finding) -> str:
    """A finding as one line."""
    return f"{finding.check:22} {finding.verdict:9} {finding.message}".rstrip()


def described(family: TaskFamily) -> dict[str, Any]:
    """What a family declares, JSON-ready."""
    obs_dim, space = family.spaces
    names = family.obs_names or tuple(f"obs_{i}" for i in range(obs_dim))
    units = family.obs_units or ("",) * obs_dim
    return {
        "name": family.name,
        "gymnasium_id": family.gymnasium_id,
        "observations": [
            {"name": name, "unit": unit} for name, unit in zip(names, units, strict=True)
        ],
        "actions": asdict(space) | {"kind": type(space).__name__.lower()},
        "parameters": [
            {
                "name": p.name,
                "unit": p.unit,
                "default": p.default,
                "category": p.is_category,
                "id": spelled(p.id),
                "ood": spelled(p.ood),
                "meaning": p.meaning,
            }
            for p in family.parameters
        ],
        "time_step": family.time_step,
        "horizon": family.horizon,
        "dead_time": family.dead_time,
        "reflection": list(family.reflection),
        "return_bounds": family.return_bounds and list(family.return_bounds),
        "experts": list(family.experts),
        "disturbances": list(family.disturbances),
    }


def spelled(values: Uniform | Choice) -> list[Any]:
    """The values of a category, or the intervals of a range."""
    if hasattr(values, "values"):
        return list(values.values)
    return [list(interval) for interval in values.intervals]


def in_words(row: dict[str, Any]) -> str:
    """A family in a few lines."""
    actions = row["actions"]
    if actions["kind"] == "discrete":
        acts = f"{actions['n']} choices"
    else:
        acts = f"{actions['dim']} in [{actions['low']}, {actions['high']}]"
    seconds = "" if row["time_step"] is None else f" of {row['time_step']:g} s"
    seen = ", ".join(f"{o['name']} {o['unit']}".rstrip() for o in row["observations"])
    head = f"{row['name']}: " + (row["gymnasium_id"] or "no Gymnasium id")
    lines = [f"observations  {seen}", f"actions       {acts}",
             f"episodes      at most {row['horizon']} steps{seconds}"]  # fmt: skip
    for p in row["parameters"]:
        parts = [f"{x[0]:g} to {x[1]:g}" if isinstance(x, list) else f"{x:g}" for x in p["id"]]
        span = " or ".join(parts if len(parts) <= 6 else [f"{len(parts)} values"])
        lines.append(f"parameter     {p['name']}: {span} {p['unit']}".rstrip())
    return "\n  ".join([head, *lines])
