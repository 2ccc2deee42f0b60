"""Say what contract tests need of a message broker: where it is, and how to take it away.

The tests of `MessagingContract` know no broker. Everything that they look at goes through the driver, in
connections of this process and in processes of their own. What the author leaves out cannot be
done, and `MessagingContract.cannot` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["MessageBroker"]


class MessageBroker:
    """One broker, or a name space of its own on one, for one test."""

    settings: Mapping[str, Any]
    """The driver's keys in ``[messaging]``, with the ``url``; for a user that may declare, write and read all."""
    environment: Mapping[str, str] = {}
    """``[environment] set``."""

    def stop(self) -> None:
        """Shut it down in good order, so that nobody reaches it until `start`."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it without a word, as a power failure does; nobody reaches it until `start`."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it again, with what it had made durable; return when it accepts connections."""
        raise NotImplementedError
