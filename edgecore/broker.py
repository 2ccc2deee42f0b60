"""Let a service work while its message broker is away: open it as soon as it answers.

A broker that is away when a service starts is like one that goes away later: whoever wants to send or
receive is told so, waits by its own back-off and asks again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from attrs import define, field

from edgecore.drivers import MessagingRelay
from edgecore.errors import BrokerUnavailable
from edgecore.models import Delivery, OutgoingMessage, SendReport, Settled, Verdict

__all__ = ["Broker"]


@define(eq=False)
class Broker:
    """Ask a message driver that is opened, with all that the site needs there, when it is first asked."""

    _open: Callable[[], MessagingRelay]
    """Raises BrokerUnavailable while there is none, ConfigurationError when there never will be."""
    _relay: MessagingRelay | None = field(init=False, default=None)
    _closed: bool = field(init=False, default=False)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def open(self) -> MessagingRelay:
        """Return the driver, opened. Raises BrokerUnavailable, ConfigurationError."""
        with self._lock:
            if self._closed:
                raise BrokerUnavailable("the broker's connection is closed, since the service stops")
            if self._relay is None:
                self._relay = self._open()
            return self._relay

    def send(self, *, messages: Sequence[OutgoingMessage]) -> SendReport:
        """Return when the broker has taken responsibility for all *messages*."""
        return self.open().send(messages=messages)

    def receive(self, *, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        """Return up to *limit* deliveries; nothing after *timeout_s* seconds."""
        return self.open().receive(queue=queue, limit=limit, timeout_s=timeout_s)

    def settle(self, *, deliveries: Sequence[Delivery], verdict: Verdict, reason: str) -> Settled:
        """Accept, put back, or refuse."""
        return self.open().settle(deliveries=deliveries, verdict=verdict, reason=reason)

    def close(self) -> None:
        """Give back the connection, if there is one, and open none any more."""
        with self._lock:
            self._closed = True
            if self._relay is not None:
                self._relay.close()
