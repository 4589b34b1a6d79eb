"""Planted faults: a module with one line of it wrong, to show that a test would notice."""

from __future__ import annotations

import inspect
import itertools
import sys
from types import ModuleType

import pytest

_COUNT = itertools.count()


def planted(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, right: str, wrong: str
) -> ModuleType:
    """A copy of a module in which ``right``, which stands there once, is ``wrong``."""
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{module.__name__} has {right!r} {source.count(right)} times"
    faulty = ModuleType(f"{module.__name__}_planted_{next(_COUNT)}")
    faulty.__file__ = module.__file__
    monkeypatch.setitem(sys.modules, faulty.__name__, faulty)  # dataclasses look there
    exec(compile(source.replace(right, wrong), faulty.__name__, "exec"), faulty.__dict__)
    return faulty
