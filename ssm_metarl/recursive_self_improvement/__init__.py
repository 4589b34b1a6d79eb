"""Stage 8: proposals, training, a gate on fresh tasks, and a ledger.

`agent` is the loop one reads. It does what the state (`lineage`) asks for:

    generation_zero -> proposals -> candidates (growth) -> metrics -> gate -> store, ledger

`service` runs it for days, `audit` says whether it was worth it.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {"RecursiveSelfImprovementAgent": "agent", "RSIConfig": "config"}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
