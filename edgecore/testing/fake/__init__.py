"""Be any batch system for a test: real commands over a scriptable queue, in the words of a dialect.

A driver's author writes a `Dialect` and gets a `FakeBatchSystem` whose commands run jobs, count executions, and
show every fault of the contract. Names are imported when they are first used: the commands need few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgecore.testing.fake.dialect import Dialect as Dialect
    from edgecore.testing.fake.plain import PlainDialect as PlainDialect
    from edgecore.testing.fake.system import FakeBatchSystem as FakeBatchSystem

__all__ = ["Dialect", "FakeBatchSystem", "PlainDialect"]

_HOMES: Final = {"Dialect": "dialect", "PlainDialect": "plain", "FakeBatchSystem": "system"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
