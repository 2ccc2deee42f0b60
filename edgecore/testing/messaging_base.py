"""Hold what all tests of `MessagingContract` share: the broker, connections, and short names for what they do."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from attrs import Factory, define

from edgecore.errors import BrokerUnavailable
from edgecore.models import Delivery, OutgoingMessage, Queue, SendReport, SiteContext, Topology, Verdict
from edgecore.relays import MessagingRelay
from edgecore.testing.broker import MessageBroker
from edgecore.testing.checks import TypeChecked
from edgecore.testing.worker import Worker, make_driver, working

__all__ = ["DEADLINE_S", "MessagingBase", "Post", "flags", "ids"]

DEADLINE_S: Final = 30.0


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    """Return the message ids of *deliveries*, in order."""
    return [delivery.message_id or "" for delivery in deliveries]


def flags(deliveries: Sequence[Delivery]) -> list[tuple[str | None, bool]]:
    """Return the message ids with whether they came again."""
    return [(delivery.message_id, delivery.redelivered) for delivery in deliveries]


@define(eq=False)
class Post:
    """Names that no other test has, and connections that are closed in the end."""

    scheme: str
    settings: Mapping[str, Any]
    site: SiteContext
    start: Callable[..., Worker]
    """Start a process with the driver: ``start(task, *arguments)``."""
    quiet_s: float
    exchange: str = Factory(lambda: f"hpc-{uuid.uuid4().hex[:8]}")
    relays: list[MessagingRelay] = Factory(list)

    @property
    def queue(self) -> str:
        """The queue that most tests use; its own name is its key."""
        return f"theta-{self.exchange}"

    @property
    def other(self) -> str:
        """A second queue."""
        return f"cori-{self.exchange}"

    @property
    def topology(self) -> Topology:
        """One exchange and two queues; ``all.#`` leads to both."""
        names = (self.queue, self.other)
        queues = tuple(Queue(name=name, exchange=self.exchange, keys=(name, "all.#")) for name in names)
        return Topology(exchanges=(self.exchange,), queues=queues)

    def make(self) -> object:
        """Make a driver that is not open."""
        return make_driver("messaging", self.scheme, self.settings)

    def open(self, driver: object) -> MessagingRelay:
        """Open a driver, for the first time or again, under the check of every answer."""
        relay = MessagingRelay(
            driver, self.site, layers=[TypeChecked()], source=f"the contract's {self.scheme}"
        )
        self.relays.append(relay)
        return relay

    def connect(self) -> MessagingRelay:
        """Open one more connection, and declare."""
        relay = self.open(self.make())
        relay.declare(topology=self.topology)
        return relay

    def message(self, name: str, key: str | None = None, **fields: Any) -> OutgoingMessage:
        """Make a message for the queue."""
        given = {"exchange": self.exchange, "body": b"{}", **fields}
        return OutgoingMessage(key=self.queue if key is None else key, message_id=name, **given)

    def send(self, relay: MessagingRelay, *names: str) -> SendReport:
        """Send small messages to the queue, in one call."""
        return relay.send(messages=[self.message(name) for name in names])

    def take(self, relay: MessagingRelay, count: int, queue: str = "", limit: int = 1000) -> list[Delivery]:
        """Receive until *count* messages are here; fail when they do not come."""
        deadline = time.monotonic() + DEADLINE_S
        got: list[Delivery] = []
        while len(got) < count:
            assert time.monotonic() < deadline, f"of {count} messages came {ids(got)[-20:]}"
            at_most = min(limit, count - len(got))
            got += relay.receive(queue=queue or self.queue, limit=at_most, timeout_s=1.0)
        return got

    def rest(self, relay: MessagingRelay, queue: str = "") -> list[Delivery]:
        """Receive whatever there is until the queue is quiet."""
        deadline = time.monotonic() + DEADLINE_S
        got: list[Delivery] = []
        while came := relay.receive(queue=queue or self.queue, limit=1000, timeout_s=self.quiet_s):
            got += came
            assert time.monotonic() < deadline, (
                f"{self.queue} never becomes quiet; last came {ids(came)[-5:]}"
            )
        return got

    def settle(
        self,
        relay: MessagingRelay,
        deliveries: Sequence[Delivery],
        verdict: Verdict = Verdict.ACCEPT,
        reason: str = "",
    ) -> int:
        """Settle, and return the count."""
        return relay.settle(deliveries=deliveries, verdict=verdict, reason=reason).count

    def close(self) -> None:
        """Give back every connection."""
        for relay in self.relays:
            relay.close()


class MessagingBase:
    """What a subclass declares, and the fixtures of the tests; see `edgecore.testing.MessagingContract`."""

    driver: ClassVar[str]
    """The URL scheme under which the driver is installed."""
    live: ClassVar[bool] = False
    """Whether `broker` is the real server, not something that plays it."""
    cannot: ClassVar[Mapping[str, str]] = {}
    """A method of `MessageBroker` that cannot be had there -> why."""
    by_hand: ClassVar[frozenset[str]] = frozenset()
    """Tests to mark as ``long``, where another class has shown the same or they take minutes."""
    prefetch: ClassVar[int] = 0
    """How many messages a connection may hold beyond those that it was asked for."""
    forgets: ClassVar[str] = ""
    """Why a broker that is killed may forget what was settled just before, which then comes again; empty: it does not."""
    quiet_s: ClassVar[float] = 0.3
    """How long a queue is listened to before it counts as empty; a confirmed message must come sooner."""
    wakes_within_s: ClassVar[float] = 0.5
    """How soon, in the middle of many cases, a waiting `receive` has what another process sent."""

    @pytest.fixture
    def post(self, broker: MessageBroker, tmp_path: Path) -> Iterator[Post]:
        """Give names and connections of one test."""
        with self._posting(broker, tmp_path) as post:
            yield post

    @contextmanager
    def _posting(self, broker: MessageBroker, tmp_path: Path) -> Iterator[Post]:
        site = SiteContext(site="theta", work_directory=tmp_path, environment=broker.environment)
        with working("messaging", self.driver, broker.settings, site) as start:
            post = Post(self.driver, broker.settings, site, start, self.quiet_s)
            try:
                yield post
            finally:
                post.close()

    def need(self, *abilities: str) -> None:
        """Skip the test when the subclass says that one of these cannot be done."""
        for ability in abilities:
            if ability in self.cannot:
                pytest.skip(f"{self.driver} cannot {ability}: {self.cannot[ability]}")

    def again(self, ask: Callable[[], Any]) -> Any:
        """Ask until the broker is available again; nothing else may be raised."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return ask()
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
