"""Carry messages through RabbitMQ: the driver for ``amqps://`` and ``amqp://``.

There are two connections, each with its I/O on a thread of its own: one declares and sends, one receives. For
when its memory or disk runs full, RabbitMQ stops listening to whoever sends, and acknowledgements must not wait with
the messages. The second one is made when something is received for the first time.

What is refused is first sent, confirmed, to the exchange for dead letters with the reason as a header, and then
acknowledged. In between it is in two places, never in none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

from attrs import define, field

from edgecore.backoff import Backoff
from edgecore.builtin.rabbitmq_access import Access, Reminder
from edgecore.builtin.rabbitmq_link import Link
from edgecore.builtin.rabbitmq_pika import Endpoint
from edgecore.builtin.rabbitmq_receiving import REASON, Receiver
from edgecore.builtin.rabbitmq_sending import REJECTED, Post, Sender
from edgecore.errors import BrokerUnavailable
from edgecore.hookspecs import Messaging, hookimpl
from edgecore.models import (
    Between,
    Closed,
    Declared,
    Delivery,
    Finding,
    Level,
    MessagingProfile,
    Name,
    OutgoingMessage,
    SendReport,
    Settled,
    SiteContext,
    Topology,
    Verdict,
)

__all__ = ["RabbitMessaging"]

_LONGEST_REASON: Final = 8_000
"""In characters; a header must fit into one frame, with all others."""


@define(eq=False, kw_only=True)
class RabbitMessaging(Messaging):
    """Be the message driver for ``amqps://host:port/virtual-host``, or ``amqp://`` without encryption."""

    url: str
    """``amqps://host:port/virtual-host``; without a password."""
    hosts: tuple[str, ...] = ()
    """Further brokers of the same cluster, as ``host`` or ``host:port``; tried in this order when one is away."""
    certificate: str | None = None
    """Absolute path of our certificate (PEM). Read at every connection: a renewed one is used without a restart."""
    key: str | None = None
    """Absolute path of its key, without a passphrase; where not given, it stands in the same file."""
    authority: str | None = None
    """Absolute path of the authority's certificate that the broker's must be signed by; default: those of this host."""
    verify_host_name: bool = True
    """Whether the broker's certificate must be for its host name."""
    user: str | None = None
    """The broker's name for us, which every message carries. Default: that of the URL, or the certificate's common name."""
    password_file: str | None = None
    """Absolute path of a file with the user's password; or it is in the environment as ``EDGECORE_RABBITMQ_PASSWORD``."""
    may_declare: bool = True
    """Whether exchanges, queues and bindings are made when they are missing; else the broker's operator has made them."""
    quorum: bool = True
    """Whether queues that we make are quorum queues, which RabbitMQ keeps on several nodes; else classic ones."""
    rejected_exchange: Name = "rejected"
    """The exchange through which refused messages go to ``<queue>.rejected``; their key is the queue's name."""
    prefetch: Annotated[int, Between(1, 65_535)] = 500
    """How many messages of a queue the broker sends ahead of what is asked for."""
    heartbeat_s: Annotated[int, Between(2, 3_600)] = 20
    """After how many silent seconds a connection counts as lost, twice over at most."""
    connect_timeout_s: Annotated[float, Between(0.1, 600)] = 15.0
    """How long one broker may take for a new connection, in seconds."""
    answer_timeout_s: Annotated[float, Between(0.1, 3_600)] = 60.0
    """How long the broker may take for an answer or a confirm, in seconds, beside the time for large messages."""
    blocked_timeout_s: Annotated[float, Between(0.1, 3_600)] = 30.0
    """How long the broker may refuse to take messages since its memory or disk is full, in seconds."""
    reconnect_s: Annotated[float, Between(0.1, 3_600)] = 10.0
    """The longest pause between two attempts to connect, in seconds; the first ones are shorter."""
    warn_days: Annotated[float, Between(0, 3_650)] = 14.0
    """How many days before our certificate expires the log begins to say so, and `edgecore doctor` warns."""
    certificate_look_s: Annotated[float, Between(0.1, 86_400)] = 60.0
    """How often the certificate's files are looked at, in seconds; new ones are used as soon as nothing is under way."""
    _open: _Open | None = field(init=False, default=None)
    _opening: threading.Lock = field(init=False, factory=threading.Lock)

    @hookimpl
    def open(self, site: SiteContext) -> MessagingProfile:
        """Connect. Raises ConfigurationError, BrokerUnavailable."""
        self.close()
        opened = _Open(self, site.site)
        try:
            session = opened.sending.session()
        except BaseException as error:
            opened.close()
            if site.examining and isinstance(error, BrokerUnavailable):
                error.findings = tuple(opened.access.findings())
            raise
        self._open = opened
        return MessagingProfile(
            broker=f"{session.product or 'AMQP broker'} at {session.endpoint}",
            validates_sender=session.product == "RabbitMQ",
            version=session.version,
        )

    @hookimpl
    def declare(self, topology: Topology) -> Declared:
        """Make what is missing. Raises ConfigurationError when it is there and otherwise, or may not be made."""
        self._opened().sender.declare(topology)
        return Declared(queues=tuple(queue.name for queue in topology.queues))

    @hookimpl
    def send(self, messages: Sequence[OutgoingMessage]) -> SendReport:
        """Return when the broker has confirmed, or sent back, each of the messages.

        One that the broker refuses, for its key or its size, is unroutable, too.
        """
        posts = [Post(message) for message in messages]
        why = self._opened().sender.send(posts)
        unroutable = {messages[place].message_id: words for place, words in why.items()}
        return SendReport(
            sent=sum(message.message_id not in unroutable for message in messages), unroutable=unroutable
        )

    @hookimpl
    def receive(self, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        """Return what is here, or comes in time. A queue that is not there is a ConfigurationError."""
        if limit < 1:
            raise ValueError(f"limit must be at least 1, found {limit}")
        return self._opened().receiver().receive(queue, limit, timeout_s)

    @hookimpl
    def settle(self, deliveries: Sequence[Delivery], verdict: Verdict, reason: str) -> Settled:
        """Acknowledge, return to the queue, or move to ``<queue>.rejected``; ask the broker whether it heard."""
        opened = self._opened()
        receiver = opened.receiver()
        if verdict is not Verdict.REFUSE:
            return Settled(count=receiver.settle(deliveries, verdict))
        held = receiver.held(deliveries)
        try:
            opened.bury(held, reason)
        except BrokerUnavailable:
            receiver.settle(held, Verdict.PUT_BACK)
            raise
        return Settled(count=receiver.settle(held, Verdict.ACCEPT))

    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        """Look at certificate, key and password, and count what waits and what was refused."""
        opened = self._opened()
        return (*opened.access.findings(), *_counted(opened.sender))

    @hookimpl
    def close(self) -> Closed:
        """Close both connections; what is not settled goes back to its queue."""
        with self._opening:
            opened, self._open = self._open, None
        if opened is not None:
            opened.close()
        return Closed()

    def _opened(self) -> _Open:
        opened = self._open
        if opened is None:
            raise BrokerUnavailable("the driver is not open: open it first, or again after it was closed")
        return opened


class _Open:
    """What there is between `open` and `close`."""

    def __init__(self, driver: RabbitMessaging, site: str) -> None:
        self._driver, self._site = driver, site
        self.access = Access(
            url=driver.url,
            hosts=driver.hosts,
            certificate=driver.certificate,
            key=driver.key,
            authority=driver.authority,
            verify_host_name=driver.verify_host_name,
            user=driver.user,
            password_file=driver.password_file,
            warn_days=driver.warn_days,
        )
        self.access.check()
        self._reminder = Reminder(self.access)
        self._receiver: Receiver | None = None
        self._making = threading.Lock()
        self._closed = False
        self.sending = self._link("sends")
        self.sender = Sender(
            link=self.sending,
            user=self.access.identity(),
            answer_s=driver.answer_timeout_s,
            quorum=driver.quorum,
            may_declare=driver.may_declare,
            rejected_exchange=driver.rejected_exchange,
        )
        self.sending.start()

    def receiver(self) -> Receiver:
        """Return what receives, connecting when it is first asked for."""
        with self._making:
            if self._closed:
                raise BrokerUnavailable("the driver was closed meanwhile")
            if self._receiver is None:
                link = self._link("receives")
                driver = self._driver
                self._receiver = Receiver(link, self.sender, driver.prefetch, driver.answer_timeout_s)
                link.start()
            return self._receiver

    def bury(self, deliveries: Sequence[Delivery], reason: str) -> None:
        """Send to the dead letters with the reason. Raises BrokerUnavailable; then none counts as sent."""
        posts = [self._letter(delivery, reason) for delivery in deliveries]
        why = self.sender.send(posts)
        if why and self.sender.declare_again(queue=deliveries[next(iter(why))].queue):
            posts = [posts[place] for place in why]
            why = self.sender.send(posts)
        if why:
            words = next(iter(why.values()))
            raise BrokerUnavailable(f"a refused message cannot be put among the dead letters: {words}")

    def _letter(self, delivery: Delivery, reason: str) -> Post:
        headers = {REASON: reason[:_LONGEST_REASON]}
        if delivery.sender is not None:
            headers["edgecore-sender"] = delivery.sender
        message = OutgoingMessage(
            exchange=self._driver.rejected_exchange,
            key=delivery.queue.removesuffix(REJECTED),
            body=delivery.body,
            message_id=_short(delivery.message_id or ""),
            reply_to=None if delivery.reply_to is None else _short(delivery.reply_to),
        )
        return Post(message, headers)

    def close(self) -> None:
        """Close both connections."""
        with self._making:
            self._closed = True
        if self._receiver is not None:
            self._receiver.close()
            self._receiver.link.close()
        self.sending.close()

    def _link(self, does: str) -> Link:
        driver, access = self._driver, self.access
        used: list[tuple[int, ...]] = [()]

        def brokers() -> Sequence[Endpoint]:
            used[0] = access.stamp()
            self._reminder.look()
            return self._endpoints(does)

        def renewed() -> bool:
            self._reminder.look()
            return access.stamp() != used[0] and access.is_usable()

        def is_idle() -> bool:
            return does != "receives" or self._receiver is None or self._receiver.is_idle()

        backoff = Backoff(first_s=min(0.5, driver.reconnect_s), longest_s=driver.reconnect_s)
        return Link(brokers, backoff, renewed=renewed, look_s=driver.certificate_look_s, is_idle=is_idle)

    def _endpoints(self, does: str) -> Sequence[Endpoint]:
        driver, access = self._driver, self.access
        user = access.user_name
        return [
            Endpoint(
                host=host,
                port=port,
                virtual_host=access.virtual_host,
                heartbeat_s=driver.heartbeat_s,
                connect_s=driver.connect_timeout_s,
                blocked_s=driver.blocked_timeout_s,
                name=f"edgecore {self._site} {does}",
                user=user,
                password=access.password() if user else "",
                tls=access.tls(),
            )
            for host, port in access.addresses()
        ]


def _short(text: str) -> str:
    """Cut what became longer than the protocol carries when it was made legible."""
    return text.encode("utf-8", "backslashreplace")[:255].decode("utf-8", "ignore")


def _counted(sender: Sender) -> Iterator[Finding]:
    """Tell what is in the queues; refused messages wait there for a person."""
    counted = dict(sender.counts())
    words = ", ".join(
        f"{count:,} in {name}" for name, count in counted.items() if not name.endswith(REJECTED)
    )
    yield Finding("messages", Level.OK, words or "none of the queues can be looked at")
    for name, count in counted.items():
        if count and name.endswith(REJECTED):
            remedy = f"find out who sends them; they stay in the queue {name} until somebody takes them"
            yield Finding("dead letters", Level.WARNING, f"{count:,} refused messages wait in {name}", remedy)
