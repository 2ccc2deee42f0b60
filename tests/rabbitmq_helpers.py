"""Connect to the private RabbitMQ as one of its users, and speak to it past the driver where that is the test."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pika
import pytest
from testbed.rabbitmq import RabbitMQ

from edgecore.builtin.rabbitmq import RabbitMessaging
from edgecore.errors import BrokerUnavailable
from edgecore.models import Delivery, OutgoingMessage, Queue, SiteContext, Topology, Verdict
from edgecore.relays import MessagingRelay
from edgecore.testing.checks import TypeChecked

__all__ = [
    "DEADLINE_S",
    "SITE",
    "accept",
    "again",
    "connected",
    "message",
    "operator",
    "rest",
    "server",
    "service_settings",
    "site",
    "stranger",
    "taken",
]

T = TypeVar("T")

DEADLINE_S: Final = 60.0
SITE: Final = Topology(
    exchanges=("hpc",),
    queues=tuple(Queue(name=name, exchange="hpc", keys=(name,)) for name in ("theta", "balsam_job_status")),
)
"""What the site theta uses."""
_SOON: Final[Mapping[str, Any]] = {"reconnect_s": 1.0, "prefetch": 50}


@contextmanager
def connected(settings: Mapping[str, Any], place: Path = Path("/nonexistent")) -> Iterator[MessagingRelay]:
    """Open the driver, under the check of every answer."""
    site = SiteContext(site="theta", work_directory=place)
    relay = MessagingRelay(RabbitMessaging(**{**_SOON, **settings}), site, layers=[TypeChecked()])
    try:
        yield relay
    finally:
        relay.close()


def service_settings(server: RabbitMQ) -> dict[str, Any]:
    """Return the ``[messaging]`` of a site that has no more permissions at the server than it needs."""
    return {"queue": "theta", **server.settings("theta"), "may_declare": False, "reconnect_s": 1.0}


@contextmanager
def stranger(server: RabbitMQ, user: str) -> Iterator[Any]:
    """Give pika's own channel, for what the driver never does."""
    context = ssl.create_default_context(cafile=str(server.authority.file))
    credential = server.credentials[user]
    context.load_cert_chain(credential.certificate, credential.key)
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(
            "localhost",
            server.tls,
            credentials=pika.credentials.ExternalCredentials(),
            ssl_options=pika.SSLOptions(context, "localhost"),
        )
    )
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        if connection.is_open:
            connection.close()


def message(name: str, key: str = "theta", body: bytes = b"{}", **more: Any) -> OutgoingMessage:
    """Make a message for the site."""
    return OutgoingMessage(**{"exchange": "hpc", **more}, key=key, body=body, message_id=name)


def taken(relay: MessagingRelay, count: int, queue: str = "theta") -> Sequence[Delivery]:
    """Receive until *count* messages are here."""
    deadline = time.monotonic() + DEADLINE_S
    got: list[Delivery] = []
    while len(got) < count:
        assert time.monotonic() < deadline, f"of {count} came {[each.message_id for each in got][-10:]}"
        got += relay.receive(queue=queue, limit=count - len(got), timeout_s=1.0)
    return got


def rest(relay: MessagingRelay, queue: str = "theta") -> Sequence[Delivery]:
    """Receive whatever there is until the queue is quiet."""
    got: list[Delivery] = []
    while came := relay.receive(queue=queue, limit=1000, timeout_s=0.5):
        got += came
    return got


def again(ask: Callable[[], T], timeout_s: float = DEADLINE_S) -> T:
    """Ask until the broker is available; nothing else may be raised."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask()
        except BrokerUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def accept(relay: MessagingRelay, deliveries: Any) -> int:
    """Accept deliveries; return how many were."""
    return relay.settle(deliveries=deliveries, verdict=Verdict.ACCEPT, reason="").count


@pytest.fixture
def server(rabbitmq: RabbitMQ) -> RabbitMQ:
    """The server with empty queues, which are there."""
    with connected(rabbitmq.settings()) as operator:
        operator.declare(topology=SITE)
        for queue in ("theta", "theta.rejected", "balsam_job_status"):
            if left := rest(operator, queue):
                operator.settle(deliveries=left, verdict=Verdict.ACCEPT, reason="")
    return rabbitmq


@pytest.fixture
def operator(server: RabbitMQ) -> Iterator[MessagingRelay]:
    """Who may do everything."""
    with connected(server.settings()) as relay:
        relay.declare(topology=SITE)
        yield relay


@pytest.fixture
def site(server: RabbitMQ) -> Iterator[MessagingRelay]:
    """A site with no more permissions than it needs; it declares nothing."""
    with connected(server.settings("theta", may_declare=False)) as relay:
        relay.declare(topology=SITE)
        yield relay
