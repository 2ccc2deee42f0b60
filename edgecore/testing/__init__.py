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
    from edgecore.testing.messaging import MessageBroker as MessageBroker
    from edgecore.testing.messaging import MessagingContract as MessagingContract
    from edgecore.testing.parsers import ParserContract as ParserContract
    from edgecore.testing.scheduling import SchedulingContract as SchedulingContract
    from edgecore.testing.transfer import Peer as Peer
    from edgecore.testing.transfer import TransferContract as TransferContract

__all__ = [
    "BatchSystem",
    "Command",
    "Ending",
    "Garbling",
    "MessageBroker",
    "MessagingContract",
    "NativeJob",
    "ParserContract",
    "Peer",
    "SchedulingContract",
    "SubmitFault",
    "TransferContract",
    "TypeChecked",
    "Word",
    "WrongAnswer",
]

_HOME: Final = {
    "BatchSystem": "batch_system",
    "Command": "batch_system",
    "Ending": "batch_system",
    "Garbling": "batch_system",
    "MessageBroker": "messaging",
    "MessagingContract": "messaging",
    "NativeJob": "batch_system",
    "ParserContract": "parsers",
    "Peer": "transfer",
    "SchedulingContract": "scheduling",
    "SubmitFault": "batch_system",
    "TransferContract": "transfer",
    "TypeChecked": "checks",
    "Word": "batch_system",
    "WrongAnswer": "checks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgecore.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgecore.testing.{_HOME[name]}"), name)
