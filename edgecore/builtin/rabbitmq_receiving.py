"""Receive and settle over a connection to RabbitMQ: a bounded pull out of what the broker pushes.

A consumer per queue fills a buffer up to its prefetch, on the connection's thread, and wakes who waits in
`Receiver.receive`. RabbitMQ counts what a caller holds against the prefetch as well. So when everything that
came was handed out and more is asked for, the consumer is replaced: what is held stays held, and the next one has a
window of its own. The same happens when the buffer holds too many bytes.

A settlement ends with a question to the broker, whose answer shows that what was said before it has arrived.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from attrs import define, field

from edgecore.builtin.rabbitmq_access import misconfigured
from edgecore.builtin.rabbitmq_link import Channel, Link, Refused, Session
from edgecore.builtin.rabbitmq_sending import REJECTED, Sender
from edgecore.clock import Clock
from edgecore.errors import BrokerUnavailable
from edgecore.models import Delivery, Verdict

__all__ = ["REASON", "Receiver"]

REASON: Final = "edgecore-reason"
"""The header of a dead letter that says why it was refused."""
_BUFFER_BYTES: Final = 32 * 1024 * 1024
_NOT_FOUND: Final = 404


@define(eq=False)
class _Consumer:
    """Consume one queue on a channel of its own."""

    queue: str
    prefetch: int
    session: Session
    answer_s: float
    channel: Channel = field(init=False)
    ended: str = field(init=False, default="")
    _news: threading.Condition = field(init=False, factory=threading.Condition)
    _buffer: deque[Delivery] = field(init=False, factory=deque)
    _buffer_bytes: int = field(init=False, default=0)
    _held: dict[int, None] = field(init=False, factory=dict)
    """Tags that were handed out, in order."""
    _window: set[int] = field(init=False, factory=set)
    """Tags that the present consumer was given and that are not settled."""
    _tag: str = field(init=False, default="")
    """Of the present consumer; empty while there is none."""
    _wanted: bool = field(init=False, default=True)

    def __attrs_post_init__(self) -> None:
        self.channel = self.session.channel(self.answer_s, self._on_end)
        self.channel.raw.add_on_cancel_callback(self._on_cancelled)
        self._consume()

    # ------------------------------------------------------- on the caller's thread

    def take(self, limit: int, timeout_s: float) -> Sequence[Delivery]:
        """Return up to *limit* deliveries that are here, or come within *timeout_s* seconds."""
        clock = Clock()
        deadline = clock.monotonic() + timeout_s
        while True:
            with self._news:
                self._news.wait_for(
                    lambda: self._buffer or self.ended or not self._wanted or self._is_used_up(),
                    max(0.0, deadline - clock.monotonic()),
                )
                if self.ended or not self._wanted:
                    return ()
                if self._buffer:
                    return self._hand_out(limit)
                if not self._is_used_up():
                    return ()
            self._renew()

    def _hand_out(self, limit: int) -> Sequence[Delivery]:
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        for delivery in taken:
            self._held[_tag_of(delivery)] = None
            self._buffer_bytes -= len(delivery.body)
        return taken

    def _is_used_up(self) -> bool:
        """Tell whether no more can come: all that may be under way has been handed out, and none of it settled."""
        return not self._buffer and (not self._tag or len(self._window) >= self.prefetch)

    def _renew(self) -> None:
        with self._news:
            tag, self._tag = self._tag, ""
        if tag:
            self.channel.ask(lambda raw, done: raw.basic_cancel(tag, callback=done))
        self._consume()

    def _consume(self) -> None:
        def begin(raw: Any, done: Callable[..., None]) -> None:
            raw.basic_qos(prefetch_count=self.prefetch)
            with self._news:
                self._window = set()
                self._tag = raw.basic_consume(self.queue, self._on_message, callback=done)

        self.channel.ask(begin)

    def holds(self, delivery: Delivery) -> bool:
        """Tell whether a delivery was handed out here and not settled since."""
        return not self.ended and _tag_of(delivery) in self._held

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds anything."""
        return not self._held

    def settle(self, deliveries: Iterable[Delivery], verdict: Verdict) -> int:
        """Accept or put back what is held of *deliveries*. Raises BrokerUnavailable."""
        with self._news:
            tags = sorted({_tag_of(each) for each in deliveries if self.holds(each)})
            if not tags:
                return 0
            upto = self._upto(tags)
            self._held = {tag: None for tag in self._held if tag not in set(tags)}

        def begin(raw: Any, done: Callable[..., None]) -> None:
            say = raw.basic_ack if verdict is Verdict.ACCEPT else partial(raw.basic_nack, requeue=True)
            with self._news:
                self._window.difference_update(tags)
            if upto:
                say(delivery_tag=upto, multiple=True)
            for tag in tags:
                if tag > upto:
                    say(delivery_tag=tag)
            raw.basic_qos(
                prefetch_count=self.prefetch, callback=done
            )  # answered after all that was said before

        try:
            self.channel.ask(begin)
        except Refused as refused:
            raise BrokerUnavailable(f"queue {self.queue}: {refused.text}") from refused
        return len(tags)

    def _upto(self, tags: Sequence[int]) -> int:
        """Return up to which tag all that is not settled is in *tags*, so that one word settles them; 0 for none."""
        waiting = _tag_of(self._buffer[0]) if self._buffer else None
        upto = 0
        for held, tag in zip(sorted(self._held), tags, strict=False):
            if held != tag or (waiting is not None and waiting < tag):
                break
            upto = tag
        return upto

    def close(self) -> None:
        """Let a waiting `take` come back empty."""
        with self._news:
            self._wanted = False
            self._news.notify_all()

    # ------------------------------------------------------- on the connection's thread

    def _on_message(self, raw: Any, method: Any, found: Any, body: bytes) -> None:
        delivery = _delivery(
            f"{self.channel.id}.{method.delivery_tag}", self.queue, self.session, method, found, body
        )
        with self._news:
            self._buffer.append(delivery)
            self._buffer_bytes += len(body)
            self._window.add(method.delivery_tag)
            if self._buffer_bytes > _BUFFER_BYTES and self._tag:
                raw.basic_cancel(
                    self._tag
                )  # what still comes is put back; who empties the buffer consumes anew
                self._tag = ""
            self._news.notify_all()

    def _on_cancelled(self, _frame: Any) -> None:
        self._on_end(
            f"the broker ended the consumer of queue {self.queue}: it was deleted, or moves to another node"
        )
        self.channel.raw.close()

    def _on_end(self, words: str) -> None:
        with self._news:
            self.ended = self.ended or words
            self._news.notify_all()


def _tag_of(delivery: Delivery) -> int:
    """Return the delivery tag in a token of ours; -1 for what is none."""
    tag = delivery.token.rpartition(".")[2]
    return int(tag) if tag.isascii() and tag.isdecimal() and len(tag) < 20 else -1


def _delivery(token: str, queue: str, session: Session, method: Any, found: Any, body: bytes) -> Delivery:
    headers: Mapping[str, object] = found.headers or {}
    return Delivery(
        token=token,
        queue=queue,
        body=body,
        message_id=_words(found.message_id),
        sender=_words(found.user_id) if session.product == "RabbitMQ" else None,
        reply_to=_words(found.reply_to),
        redelivered=bool(method.redelivered),
        reason=_reason(headers) if queue.endswith(REJECTED) else "",
    )


def _words(value: object) -> str | None:
    """Return text; bytes that are none keep their values, visibly."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else None


def _reason(headers: Mapping[str, object]) -> str:
    """Say why it is a dead letter: what we noted, or what the broker did by itself."""
    noted = headers.get(REASON)
    if noted is not None:
        return _words(noted) or ""
    by_itself = headers.get("x-first-death-reason")
    return f"put here by the broker: {_words(by_itself)}" if by_itself else ""


@define(eq=False)
class Receiver:
    """Receive from any queue, and settle; for one thread, but for `close`."""

    link: Link
    sender: Sender
    prefetch: int
    answer_s: float
    _consumers: dict[str, _Consumer] = field(init=False, factory=dict)
    _wanted: bool = field(init=False, default=True)

    def receive(self, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        """Return up to *limit* deliveries. Raises BrokerUnavailable, ConfigurationError."""
        clock = Clock()
        deadline = clock.monotonic() + timeout_s
        while True:
            try:
                consumer = self.link.use(lambda session: self._consumer(session, queue))
                deliveries = consumer.take(limit, max(0.0, deadline - clock.monotonic()))
            except Refused as refused:
                raise BrokerUnavailable(f"queue {queue}: {refused.text}") from refused
            if deliveries or not self._wanted:
                return deliveries
            if consumer.ended and not consumer.session.renewed:
                raise BrokerUnavailable(consumer.ended)
            if clock.monotonic() >= deadline:
                return ()

    def _consumer(self, session: Session, queue: str) -> _Consumer:
        """Return the queue's consumer on this connection, made if need be."""
        known = self._consumers.get(queue)
        if known is not None and known.session is session and not known.ended:
            return known
        self._consumers.pop(queue, None)
        for last in (False, True):
            try:
                self._consumers[queue] = _Consumer(queue, self.prefetch, session, self.answer_s)
                break
            except Refused as refused:
                if refused.code != _NOT_FOUND:
                    allowed = "a queue that we may read: ask the broker's operator for the permission"
                    raise misconfigured("queue", f"{queue}: {refused.text}", allowed) from refused
                if last or not self.sender.declare_again(queue=queue):
                    allowed = "a queue that was declared: declare it, or correct its name"
                    raise misconfigured("queue", f"{queue}: {refused.text}", allowed) from refused
        if not self._wanted:
            self._consumers[queue].close()
        return self._consumers[queue]

    def held(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Return those that were handed out on the present connection and are not settled."""
        return [each for each in deliveries if (owner := self._owner(each)) is not None and owner.holds(each)]

    def settle(self, deliveries: Iterable[Delivery], verdict: Verdict) -> int:
        """Accept or put back. Raises BrokerUnavailable."""
        parted: dict[str, list[Delivery]] = {}
        for delivery in self.held(deliveries):
            parted.setdefault(delivery.queue, []).append(delivery)
        return sum(self._consumers[queue].settle(part, verdict) for queue, part in parted.items())

    def _owner(self, delivery: Delivery) -> _Consumer | None:
        consumer = self._consumers.get(delivery.queue)
        ours = consumer is not None and delivery.token.partition(".")[0] == consumer.channel.id
        return consumer if ours else None

    def is_idle(self) -> bool:
        """Tell whether nobody holds a delivery."""
        return all(consumer.is_idle for consumer in list(self._consumers.values()))

    def close(self) -> None:
        """Let a waiting `receive` come back empty; from any thread."""
        self._wanted = False
        for consumer in list(self._consumers.values()):
            consumer.close()
