"""No module of the package needs itself: every import counts, in functions and for types, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules(root: Path, package: str) -> dict[str, Path]:
    """Every module's file, by its dotted name."""
    found = {}
    for path in (root / package).rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """What a file imports, and what it imports from that."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names
            yield node.module


def order(root: Path, package: str) -> list[str]:
    """The modules, each behind what it imports; CycleError where there is no such order."""
    files = modules(root, package)
    graph = {}
    for name, path in files.items():
        wanted = set(imported(path)) & files.keys()
        # `from package import module` names the package as well, which need not be run for it
        parents = {other.rpartition(".")[0] for other in wanted} | {package}
        graph[name] = wanted - parents - {name}
    return list(TopologicalSorter(graph).static_order())


def test_no_import_goes_in_a_circle() -> None:
    found = order(ROOT, "ssm_metarl")
    assert len(found) > 200
    assert found.index("ssm_metarl.types") < found.index("ssm_metarl.core.policy")


@pytest.mark.parametrize(
    "late", ["def f():\n    import p.one\n", "if TYPE_CHECKING:\n    from p.one import X\n"]
)
def test_a_circle_is_found_wherever_the_import_stands(tmp_path: Path, late: str) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/__init__.py").write_text("")
    (tmp_path / "p/one.py").write_text("from p.two import Y\n")
    (tmp_path / "p/two.py").write_text("Y = 1\n")
    assert order(tmp_path, "p").index("p.two") < order(tmp_path, "p").index("p.one")
    (tmp_path / "p/two.py").write_text(late)
    with pytest.raises(CycleError):
        order(tmp_path, "p")
