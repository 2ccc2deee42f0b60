"""Declare and send over one connection to RabbitMQ, so that nothing is lost without a word.

Messages are persistent, mandatory and confirmed, and their confirms are pipelined: many are under way at a time, and
`Sender.send` returns when the broker has answered for every one. What the broker refuses closes a whole
channel; then those without an answer are sent again one by one, so that the one to blame is found and the others
go on. So a message may arrive twice, as it may after a lost connection, with the same id.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from attrs import define, field, frozen

from edgecore.builtin.rabbitmq_access import misconfigured
from edgecore.builtin.rabbitmq_link import Channel, Link, Refused, Session
from edgecore.builtin.rabbitmq_pika import properties
from edgecore.errors import BrokerUnavailable, ConfigurationError
from edgecore.models import OutgoingMessage, Queue, Topology

__all__ = ["REJECTED", "Post", "Sender"]

log = logging.getLogger(__name__)

REJECTED: Final = ".rejected"
"""Added to a queue's name, it names the queue of what was refused there."""
_MOST_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
_BATCHES_UNDER_WAY: Final = 4
_SLOWEST_BYTES_PER_S: Final = 100_000
"""A connection that is slower than this is none."""
_LONGEST_NAME: Final = 255
_NOT_FOUND: Final = 404
_ACCESS_REFUSED: Final = 403
_PRECONDITION_FAILED: Final = 406


@frozen(eq=False)
class Post:
    """A message with the headers that it gets."""

    message: OutgoingMessage
    headers: Mapping[str, str] = field(factory=dict)


@define(eq=False)
class _Batch:
    """Messages that were handed to the connection together, and what the broker said of each."""

    posts: Sequence[Post]
    future: Future[Any] | None = None
    left: int = field(init=False)
    why: dict[int, str] = field(init=False, factory=dict)
    """Place in the batch -> why no queue took it."""
    answered: set[int] = field(init=False, factory=set)
    refused: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.left = len(self.posts)

    @property
    def size_bytes(self) -> int:
        return sum(len(post.message.body) for post in self.posts)


class _Publisher:
    """Count publishes and confirms on one channel; all but the making runs on the connection's thread."""

    def __init__(self, channel: Channel, user: str) -> None:
        self.channel = channel
        self._user = user
        self._next = 1
        self._returned_to = 0
        self._unconfirmed: dict[int, tuple[_Batch, int]] = {}
        channel.raw.add_on_return_callback(self._on_return)
        channel.ask(lambda raw, done: raw.confirm_delivery(self._on_confirm, callback=done))

    def publish(self, batch: _Batch, future: Future[Any]) -> None:
        batch.future = future
        raw = self.channel.raw
        for place, post in enumerate(batch.posts):
            message = post.message
            self._unconfirmed[self._next] = (batch, place)
            self._next += 1
            raw.basic_publish(
                message.exchange,
                message.key,
                message.body,
                properties(
                    message_id=message.message_id,
                    reply_to=message.reply_to,
                    user_id=self._user,
                    headers=post.headers,
                ),
                mandatory=True,
            )

    def _on_return(self, _raw: Any, method: Any, found: Any, _body: bytes) -> None:
        """Note why a message came back: returns come in the order of sending, each before its confirm."""
        for tag in range(self._returned_to + 1, self._next):
            batch, place = self._unconfirmed.get(tag, (None, 0))
            if batch is None:
                continue
            message = batch.posts[place].message
            if (message.exchange, message.key, message.message_id or None) == (
                method.exchange,
                method.routing_key,
                found.message_id,
            ):
                self._returned_to = tag
                batch.why[place] = _no_queue(message)
                return

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        accepted = method.NAME == "Basic.Ack"
        if method.multiple:
            tags = []
            for tag in self._unconfirmed:
                if tag > method.delivery_tag:
                    break
                tags.append(tag)
        else:
            tags = [method.delivery_tag]
        for tag in tags:
            batch, place = self._unconfirmed.pop(tag, (None, 0))
            if batch is not None:
                self._answered(batch, place, accepted)

    def _answered(self, batch: _Batch, place: int, accepted: bool) -> None:
        batch.answered.add(place)
        batch.refused += not accepted
        batch.left -= 1
        if not batch.left and batch.future is not None and not batch.future.done():
            batch.future.set_result(None)


@define(eq=False)
class Sender:
    """Declare and send; each method may be called on any thread."""

    link: Link
    user: str
    """Put into every message for its receiver, who knows us by it: the broker lets nobody write another's."""
    answer_s: float
    quorum: bool
    may_declare: bool
    rejected_exchange: str
    _topology: dict[str, Queue] = field(init=False, factory=dict)
    _exchanges: dict[str, None] = field(init=False, factory=dict)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)
    _publisher: _Publisher | None = field(init=False, default=None)
    _known: set[str] = field(init=False, factory=set)
    """Exchanges that are there, as far as this connection knows."""

    # ------------------------------------------------------------------------------- topology

    def declare(self, topology: Topology) -> None:
        """Make what is missing, or only look for it where we may not; remember it for `declare_again`.

        Raises ConfigurationError, BrokerUnavailable.
        """
        self.link.use(lambda session: self._declare(session, topology))

    def _declare(self, session: Session, topology: Topology) -> None:
        self._exchanges.update(dict.fromkeys(topology.exchanges))
        for queue in topology.queues:
            if (
                queue.exchange
                and queue.exchange not in self._exchanges
                and not self._exists(session, queue.exchange)
            ):
                allowed = "an exchange of the topology"
                raise misconfigured(f"queue {queue.name}: exchange", repr(queue.exchange), allowed)
        channel = session.channel(self.answer_s)
        for what, begin in self._steps(topology) if self.may_declare else _looks(topology):
            try:
                channel.ask(begin)
            except Refused as refused:
                raise _cannot_declare(what, refused) from refused
        channel.close()
        for queue in topology.queues:
            known = self._topology.get(queue.name)
            keys = tuple(dict.fromkeys((*(known.keys if known else ()), *queue.keys)))
            self._topology[queue.name] = Queue(name=queue.name, exchange=queue.exchange, keys=keys)

    def declare_again(self, queue: str = "", exchange: str = "") -> bool:
        """Make what was declared and is missing now, such as a queue that somebody deleted; tell whether it was ours."""
        name = queue.removesuffix(REJECTED)
        if not self.may_declare or (
            name not in self._topology and exchange not in {*self._exchanges, self.rejected_exchange}
        ):
            return False
        log.warning(
            "%s is missing on the broker, and is declared again",
            f"queue {queue}" if queue else f"exchange {exchange}",
        )
        try:
            self.declare(Topology(exchanges=tuple(self._exchanges), queues=tuple(self._topology.values())))
        except ConfigurationError as error:
            log.warning("it cannot be declared: %s", error)
            return False
        return True

    def counts(self) -> Iterator[tuple[str, int]]:
        """Tell how many messages wait in each queue that was declared, and among its rejected ones."""
        session = self.link.session()
        for name in self._topology:
            for queue in (name, name + REJECTED):
                channel = session.channel(self.answer_s)
                try:
                    answer = channel.ask(partial(_ask_passive_queue, queue))
                    channel.close()
                except Refused:
                    continue  # we may not even look
                yield queue, answer.method.message_count

    def _steps(self, topology: Topology) -> Iterator[tuple[str, Any]]:
        """Yield what is declared, in order, each with how it is asked for."""
        for exchange in (self.rejected_exchange, *topology.exchanges):
            yield f"exchange {exchange}", partial(_ask_exchange, exchange)
        kind = {"x-queue-type": "quorum"} if self.quorum else {"x-queue-type": "classic"}
        for queue in topology.queues:
            letters = {
                "x-dead-letter-exchange": self.rejected_exchange,
                "x-dead-letter-routing-key": queue.name,
            }
            rejected = queue.name + REJECTED
            yield f"queue {rejected}", partial(_ask_queue, rejected, kind)
            yield (
                f"binding of {rejected}",
                partial(_ask_binding, rejected, self.rejected_exchange, queue.name),
            )
            yield f"queue {queue.name}", partial(_ask_queue, queue.name, {**kind, **letters})
            for key in queue.keys if queue.exchange else ():
                yield f"binding of {queue.name}", partial(_ask_binding, queue.name, queue.exchange, key)

    def _exists(self, session: Session, exchange: str) -> bool:
        channel = session.channel(self.answer_s)
        try:
            channel.ask(partial(_ask_passive_exchange, exchange))
        except Refused:
            return False
        channel.close()
        return True

    # ------------------------------------------------------------------------------- messages

    def send(self, posts: Sequence[Post]) -> Mapping[int, str]:
        """Return when the broker answered for every message; answers place -> why no queue took it.

        Raises BrokerUnavailable: some may have arrived.
        """
        return self.link.use(lambda session: self._send(session, posts))

    def _send(self, session: Session, posts: Sequence[Post]) -> Mapping[int, str]:
        why = {place: problem for place, post in enumerate(posts) if (problem := _too_long(post.message))}
        for exchange in dict.fromkeys(post.message.exchange for post in posts):
            if not self._is_there(session, exchange):
                for place, post in enumerate(posts):
                    if post.message.exchange == exchange:
                        why.setdefault(place, _no_exchange(exchange))
        todo = [place for place in range(len(posts)) if place not in why]
        under_way: deque[tuple[_Batch, list[int], Future[Any]]] = deque()
        slow: list[int] = []
        try:
            for places in _portions(posts, todo):
                batch = _Batch([posts[place] for place in places])
                publisher = self._open_publisher(session)
                under_way.append(
                    (batch, places, session.begin(partial(publisher.publish, batch), publisher.channel))
                )
                if len(under_way) >= _BATCHES_UNDER_WAY:
                    slow += self._finish(session, *under_way.popleft(), why)
            while under_way:
                slow += self._finish(session, *under_way.popleft(), why)
        finally:
            for _, _, future in under_way:
                session.forget(future)
        self._send_one_by_one(session, posts, slow, why)
        return why

    def _finish(
        self, session: Session, batch: _Batch, places: list[int], future: Future[Any], why: dict[int, str]
    ) -> list[int]:
        """Wait for a batch; answers the places that have no answer, since the broker closed the channel."""
        timeout_s = self.answer_s + batch.size_bytes / _SLOWEST_BYTES_PER_S
        try:
            future.result(timeout_s)
        except Refused:
            pass  # by now the channel says so itself
        except TimeoutError:
            words = f"{session.endpoint} did not confirm {batch.left} messages within {timeout_s:.0f} s"
            session.give_up(words)
            raise BrokerUnavailable(words) from None
        finally:
            session.forget(future)
        if batch.refused:
            raise BrokerUnavailable(
                f"{session.endpoint} refused {batch.refused} messages, most likely since a queue is full; see its limits"
            )
        why.update((places[place], words) for place, words in batch.why.items())
        return [places[place] for place in range(len(places)) if place not in batch.answered]

    def _send_one_by_one(
        self, session: Session, posts: Sequence[Post], places: Iterable[int], why: dict[int, str]
    ) -> None:
        """Send each by itself, and so find which one the broker refuses; alike ones are not tried.

        On a channel of its own, so that nobody else's message is to blame when it is closed.
        """
        barred: dict[tuple[str, str], str] = {}
        publisher: _Publisher | None = None
        for place in places:
            message = posts[place].message
            route = (message.exchange, message.key)
            if route in barred:
                why[place] = barred[route]
                continue
            if not self._is_there(session, message.exchange):
                why[place] = barred[route] = _no_exchange(message.exchange)
                continue
            if publisher is None or publisher.channel.ended:
                publisher = self._new_publisher(session)
            batch = _Batch([posts[place]])
            future = session.begin(partial(publisher.publish, batch), publisher.channel)
            self._finish(session, batch, [place], future, why)
            if not batch.left:
                continue
            words = publisher.channel.ended
            if "user_id" in words:
                raise BrokerUnavailable(
                    f"{words}: set user in [messaging] to the name that the broker has for us"
                )
            why[place] = f"the broker refuses it: {words}"
            if "PRECONDITION" not in words:  # such as a size, which is one message's alone
                barred[route] = why[place]
        if publisher is not None and not publisher.channel.ended:
            publisher.channel.close()

    def _open_publisher(self, session: Session) -> _Publisher:
        with self._lock:
            publisher = self._publisher
            if publisher is None or publisher.channel.session is not session or publisher.channel.ended:
                publisher = self._publisher = self._new_publisher(session)
                self._known.clear()  # for a channel that was closed since an exchange has gone
            return publisher

    def _new_publisher(self, session: Session) -> _Publisher:
        user = self.user if session.product == "RabbitMQ" else ""
        return _Publisher(session.channel(self.answer_s), user)

    def _is_there(self, session: Session, exchange: str) -> bool:
        """Tell whether an exchange exists: publishing to one that does not would close the channel."""
        self._open_publisher(session)
        if not exchange or exchange in self._known:
            return True
        if self._exists(session, exchange) or self.declare_again(exchange=exchange):
            self._known.add(exchange)
            return True
        return False


def _portions(posts: Sequence[Post], places: Sequence[int]) -> Iterator[list[int]]:
    """Divide what is sent into batches of bounded size."""
    portion: list[int] = []
    size_bytes = 0
    for place in places:
        portion.append(place)
        size_bytes += len(posts[place].message.body)
        if len(portion) >= _MOST_AT_ONCE or size_bytes >= _BYTES_AT_ONCE:
            yield portion
            portion, size_bytes = [], 0
    if portion:
        yield portion


def _too_long(message: OutgoingMessage) -> str:
    """Say which name of a message the protocol cannot carry, if there is one."""
    names = {
        "exchange": message.exchange,
        "routing key": message.key,
        "message id": message.message_id,
        "reply_to": message.reply_to or "",
    }
    for what, name in names.items():
        if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME or not _is_text(name):
            return f"its {what} is longer than {_LONGEST_NAME} bytes, or no text"
    return ""


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_exchange(name: str) -> str:
    return f"there is no exchange {name!r}"


def _no_queue(message: OutgoingMessage) -> str:
    if not message.exchange:
        return f"there is no queue {message.key!r}"
    return f"no queue is bound to exchange {message.exchange!r} with a key that matches {message.key!r}"


def _looks(topology: Topology) -> Iterator[tuple[str, Any]]:
    """Yield what is looked for where we may not declare; bindings cannot be seen."""
    for exchange in topology.exchanges:
        yield f"exchange {exchange}", partial(_ask_passive_exchange, exchange)
    for queue in topology.queues:
        yield f"queue {queue.name}", partial(_ask_passive_queue, queue.name)


def _ask_exchange(name: str, raw: Any, done: Any) -> None:
    raw.exchange_declare(name, "topic", durable=True, callback=done)


def _ask_passive_exchange(name: str, raw: Any, done: Any) -> None:
    raw.exchange_declare(name, passive=True, callback=done)


def _ask_queue(name: str, arguments: Mapping[str, str], raw: Any, done: Any) -> None:
    raw.queue_declare(name, durable=True, arguments=dict(arguments), callback=done)


def _ask_passive_queue(name: str, raw: Any, done: Any) -> None:
    raw.queue_declare(name, passive=True, callback=done)


def _ask_binding(queue: str, exchange: str, key: str, raw: Any, done: Any) -> None:
    raw.queue_bind(queue, exchange, key, callback=done)


def _cannot_declare(what: str, refused: Refused) -> ConfigurationError:
    if refused.code == _PRECONDITION_FAILED:
        allowed = (
            "is there already, and made otherwise: set quorum as it was made, or delete it when it is empty "
            "and let it be made anew, or set may_declare = false to use it as it is"
        )
    elif refused.code == _NOT_FOUND:
        allowed = "must be made by the broker's operator, or by us: set may_declare = true"
    else:
        allowed = "let the broker's operator give us the permission, or make it and set may_declare = false"
    return misconfigured(what, refused.text, allowed)
