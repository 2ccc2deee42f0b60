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
    from edgecore.testing.fake.records import Act as Act
    from edgecore.testing.fake.records import Call as Call
    from edgecore.testing.fake.records import Condition as Condition
    from edgecore.testing.fake.records import Job as Job
    from edgecore.testing.fake.records import Listing as Listing
    from edgecore.testing.fake.records import Look as Look
    from edgecore.testing.fake.records import Other as Other
    from edgecore.testing.fake.records import Outcome as Outcome
    from edgecore.testing.fake.records import Printed as Printed
    from edgecore.testing.fake.records import Request as Request
    from edgecore.testing.fake.records import Submit as Submit
    from edgecore.testing.fake.records import Usage as Usage
    from edgecore.testing.fake.records import Why as Why
    from edgecore.testing.fake.system import FakeBatchSystem as FakeBatchSystem
    from edgecore.testing.words import Command as Command

__all__ = [
    "Act",
    "Call",
    "Command",
    "Condition",
    "Dialect",
    "FakeBatchSystem",
    "Job",
    "Listing",
    "Look",
    "Other",
    "Outcome",
    "PlainDialect",
    "Printed",
    "Request",
    "Submit",
    "Usage",
    "Why",
]

_HOMES: Final = {
    "Command": "edgecore.testing.words",
    "Dialect": "edgecore.testing.fake.dialect",
    "FakeBatchSystem": "edgecore.testing.fake.system",
    "PlainDialect": "edgecore.testing.fake.plain",
}
_RECORDS: Final = "edgecore.testing.fake.records"
"""Where all other names are."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, _RECORDS)), name)
