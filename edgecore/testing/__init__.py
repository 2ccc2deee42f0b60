"""Hold a driver to its contract: classes to subclass, a fake batch system, and the faults to survive.

Names are imported when they are first used: the commands of a fake batch system need no pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgecore.testing.batch_system import BatchSystem as BatchSystem
    from edgecore.testing.batch_system import Command as Command
    from edgecore.testing.batch_system import Ending as Ending
    from edgecore.testing.batch_system import Garbling as Garbling
    from edgecore.testing.batch_system import NativeJob as NativeJob
    from edgecore.testing.batch_system import SubmitFault as SubmitFault
    from edgecore.testing.batch_system import Word as Word
    from edgecore.testing.checks import TypeChecked as TypeChecked
    from edgecore.testing.checks import WrongAnswer as WrongAnswer
    from edgecore.testing.parsers import ParserContract as ParserContract
    from edgecore.testing.scheduling import SchedulingContract as SchedulingContract

__all__ = [
    "BatchSystem",
    "Command",
    "Ending",
    "Garbling",
    "NativeJob",
    "ParserContract",
    "SchedulingContract",
    "SubmitFault",
    "TypeChecked",
    "Word",
    "WrongAnswer",
]

_HOME: Final = {
    "BatchSystem": "batch_system",
    "Command": "batch_system",
    "Ending": "batch_system",
    "Garbling": "batch_system",
    "NativeJob": "batch_system",
    "ParserContract": "parsers",
    "SchedulingContract": "scheduling",
    "SubmitFault": "batch_system",
    "TypeChecked": "checks",
    "Word": "batch_system",
    "WrongAnswer": "checks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgecore.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgecore.testing.{_HOME[name]}"), name)
