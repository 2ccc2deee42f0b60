"""Keep a connection to one of several RabbitMQ brokers, with its I/O on a thread of its own.

Heartbeats must not depend on anybody's work, so pika's loop runs on a thread that does nothing else, and
whoever wants something of the broker hands a short function over and waits for its answer. A connection that is
lost fails everything that waits for it at once; the next one is made by itself, with back-off, in the order of
the configured brokers. Nothing survives a connection: channels, deliveries and confirms belong to one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

from attrs import define, field

from edgecore.backoff import Backoff
from edgecore.builtin.rabbitmq_pika import Connection, Endpoint, Loop, refusal
from edgecore.builtin.rabbitmq_words import words_of
from edgecore.clock import Clock
from edgecore.errors import BrokerUnavailable, EdgeError

__all__ = ["Channel", "Link", "Refused", "Session"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_END_S: Final = 5.0
"""How long a connection that is closed in good order may take for it."""
_SHORT_S: Final = 5.0
"""A session that lasted less counts as a failed attempt, or a broker that throws us out would be stormed."""


class Refused(Exception):
    """The broker closed a channel because of what was asked on it; the connection lives."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


# ----------------------------------------------------------------------------------- session


class Session:
    """Be one connection from its beginning to its end, for callers on any thread."""

    def __init__(self, connection: Connection, loop: Loop, endpoint: Endpoint) -> None:
        self.id: Final = uuid.uuid4().hex[:12]
        self.endpoint = endpoint
        self.ended = ""
        """Why it is over; empty while it lives."""
        self.renewed = False
        """Whether it ended because a new certificate is used, and nothing is wrong."""
        server = connection.server_properties or {}
        self.product, self.version = _text(server.get("product")), _text(server.get("version"))
        self._connection, self._loop = connection, loop
        self._lock = threading.Lock()
        self._waiting: dict[Future[Any], Channel | None] = {}

    def ask(
        self, begin: Callable[[Future[Any]], None], timeout_s: float, channel: Channel | None = None
    ) -> Any:
        """Run *begin* on the connection's thread and wait until it, or what it begins, sets the future.

        Raises BrokerUnavailable when the connection ends meanwhile or *timeout_s* seconds pass, which
        end it; Refused when *channel* is closed by the broker.
        """
        future = self.begin(begin, channel)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            words = f"{self.endpoint} did not answer within {timeout_s:.0f} s"
            self.give_up(words)
            raise BrokerUnavailable(words) from None
        finally:
            self.forget(future)

    def begin(self, begin: Callable[[Future[Any]], None], channel: Channel | None = None) -> Future[Any]:
        """Hand *begin* over; who does not `ask` must `forget` the future in the end."""
        future: Future[Any] = Future()
        with self._lock:
            if self.ended:
                raise BrokerUnavailable(self.ended)
            self._waiting[future] = channel
            self._loop.add_callback_threadsafe(partial(_begun, begin, future))
        return future

    def forget(self, future: Future[Any]) -> None:
        """Let go of a future that nobody waits for any more."""
        with self._lock:
            self._waiting.pop(future, None)

    def channel(self, timeout_s: float, closed: Callable[[str], None] = lambda words: None) -> Channel:
        """Open a channel; *closed* is told on the connection's thread when it is over, and why."""
        channel = Channel(self, timeout_s, closed)

        def begin(future: Future[Any]) -> None:
            raw = self._connection.channel(on_open_callback=future.set_result)
            raw.add_on_close_callback(channel.on_closed)

        channel.raw = self.ask(begin, timeout_s, channel)
        return channel

    def give_up(self, words: str) -> None:
        """End the connection without asking the broker, which may not listen."""
        with self._lock:
            if not self.ended:
                self._loop.add_callback_threadsafe(partial(self._connection.give_up, words))

    def close(self) -> None:
        """End the connection in good order; called on its own thread."""
        with self._lock:
            self.ended = self.ended or "the connection is being closed"
        if self._connection.is_open:
            self._connection.close()
            self._loop.call_later(_END_S, partial(self._connection.give_up, "it did not close in time"))

    def is_idle(self) -> bool:
        """Tell whether nobody waits for anything."""
        with self._lock:
            return not self._waiting

    def fail(self, channel: Channel | None, error: Exception) -> None:
        """Fail whoever waits for *channel*, or everybody."""
        with self._lock:
            if channel is None:
                self.ended = str(error) or repr(error)
            waiting = [future for future, whose in self._waiting.items() if channel in (None, whose)]
        for future in waiting:
            if not future.done():
                future.set_exception(error)


def _begun(begin: Callable[[Future[Any]], None], future: Future[Any]) -> None:
    try:
        begin(future)
    except EdgeError as error:
        future.set_exception(error)
    except Exception as error:  # for example a channel that was closed between the call and now
        if not future.done():
            future.set_exception(BrokerUnavailable(f"the connection is over: {error!r}"))


@define(eq=False)
class Channel:
    """One channel of a session: calls wait for the broker's answer."""

    session: Session
    timeout_s: float
    _closed: Callable[[str], None]
    raw: Any = field(init=False, default=None)
    id: str = field(init=False, factory=lambda: uuid.uuid4().hex[:12])
    ended: str = field(init=False, default="")

    def ask(self, begin: Callable[[Any, Callable[..., None]], None]) -> Any:
        """Call *begin* with pika's channel and what to give to it as ``callback``; return the broker's answer."""

        def answering(future: Future[Any]) -> None:
            begin(self.raw, lambda *answer: future.set_result(answer[0] if answer else None))

        return self.session.ask(answering, self.timeout_s, self)

    def close(self) -> None:
        """Close it, and wait for that; what went wrong with it does not matter any more."""

        def begin(future: Future[Any]) -> None:
            if self.raw.is_open:
                self.raw.close()
            future.set_result(None)

        try:
            self.session.ask(begin, self.timeout_s)
        except BrokerUnavailable:
            return

    def on_closed(self, raw: Any, error: Exception) -> None:
        """Hear from pika that it is over."""
        code, text = refusal(error)
        refused = Refused(code, text) if code else BrokerUnavailable(words_of(error))
        self.ended = str(refused)
        self.session.fail(self, refused)
        self._closed(self.ended)


# -------------------------------------------------------------------------------------- link


class Link:
    """Keep a session with one of the brokers, from `start` to `close`."""

    def __init__(
        self,
        brokers: Callable[[], Sequence[Endpoint]],
        backoff: Backoff,
        *,
        renewed: Callable[[], bool] = lambda: False,
        look_s: float = 60.0,
        is_idle: Callable[[], bool] = lambda: True,
    ) -> None:
        self._brokers, self._backoff = brokers, backoff
        self._renewed, self._look_s, self._is_idle = renewed, look_s, is_idle
        self._changed = threading.Condition()
        self._session: Session | None = None
        self._error = ""
        self._trying = True
        self._again_at = 0.0
        self._closed = False
        self._clock = Clock()
        self._thread = threading.Thread(target=self._run, name="edgecore-rabbitmq", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def session(self) -> Session:
        """Return the session, waiting for an attempt that is under way. Raises BrokerUnavailable."""
        with self._changed:
            self._changed.wait_for(lambda: self._session or self._closed or not self._trying)
            if self._closed:
                raise BrokerUnavailable("the connection is closed: open it again")
            if self._session is None:
                wait_s = max(0.0, self._again_at - self._clock.monotonic())
                raise BrokerUnavailable(f"{self._error}; the next attempt comes in {wait_s:.0f} s")
            return self._session

    def use(self, work: Callable[[Session], T]) -> T:
        """Return what *work* makes of the session; it is called anew when that was ended to use a new certificate."""
        while True:
            session = self.session()
            try:
                return work(session)
            except BrokerUnavailable:
                if not session.renewed:
                    raise

    def close(self) -> None:
        """End the session in good order and wait for that, but not for a broker that does not answer."""
        with self._changed:
            self._closed = True
            session = self._session
            self._changed.notify_all()
        if session is not None:
            with contextlib.suppress(BrokerUnavailable):  # it ended by itself
                session.forget(session.begin(lambda future: session.close()))
        if self._thread.ident is not None:
            self._thread.join(2 * _END_S)

    def _run(self) -> None:
        failures = 0
        while not self._closed:
            begun = self._clock.monotonic()
            session, error = self._round()
            if session is not None and (session.renewed or self._clock.monotonic() - begun > _SHORT_S):
                failures = 0
            elif not self._closed:
                failures += 1
                self._wait(error, self._backoff.after(failures))

    def _round(self) -> tuple[Session | None, str]:
        """Try one broker after the other and stay with the first that answers, to the end of the session."""
        error = "no broker is configured"
        try:
            for endpoint in self._brokers():
                session, error = self._connected(endpoint)
                if session is not None or self._closed:
                    return session, error
        except EdgeError as unreadable:  # a certificate that is just being replaced
            error = str(unreadable)
        return None, error

    def _wait(self, error: str, wait_s: float) -> None:
        with self._changed:
            self._error, self._trying = error, False
            self._again_at = self._clock.monotonic() + wait_s
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed, wait_s)
            self._trying = True

    def _connected(self, endpoint: Endpoint) -> tuple[Session | None, str]:
        """Connect and stay until the connection ends; answers the session that there was, and how it ended."""
        life = _Life(endpoint, self._opened, self._look if endpoint.tls else None, self._look_s)
        words = life.run(lambda: self._closed)
        with self._changed:
            self._session, self._trying = None, True
        if life.session is not None:
            life.session.fail(None, BrokerUnavailable(words))
            if not self._closed and not life.session.renewed:
                log.warning("the connection to %s is lost: %s", endpoint, words)
        return life.session, words

    def _opened(self, session: Session) -> None:
        with self._changed:
            self._session = session
            self._changed.notify_all()

    def _look(self, session: Session) -> None:
        if self._renewed() and session.is_idle() and self._is_idle():
            log.info("the certificate on disk is new: connecting to %s with it", session.endpoint)
            session.renewed = True
            with self._changed:
                self._session, self._trying = None, True
            session.close()


class _Life:
    """Run one connection's loop on the present thread."""

    def __init__(
        self,
        endpoint: Endpoint,
        opened: Callable[[Session], None],
        look: Callable[[Session], None] | None,
        look_s: float,
    ) -> None:
        self.session: Session | None = None
        self._endpoint, self._opened, self._look, self._look_s = endpoint, opened, look, look_s
        self._loop = Loop()
        self._words = ""

    def run(self, unwanted: Callable[[], bool]) -> str:
        """Connect and return how it ended."""
        connection = None
        try:
            connection = Connection(
                self._endpoint.parameters(),
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_end,
                on_close_callback=self._on_end,
                custom_ioloop=self._loop,
            )
            self._watch(connection, unwanted)
            self._loop.start()
        except Exception as error:
            log.exception(
                "the connection to %s failed in a way that is a fault of edgecore or pika", self._endpoint
            )
            self._words = repr(error)
            if connection is not None:
                self._abandon(connection)
        finally:
            if self.session is not None:
                self.session.fail(None, BrokerUnavailable(self._words))  # nothing is handed to a closed loop
            self._loop.close()
        return self._words

    def _watch(self, connection: Connection, unwanted: Callable[[], bool]) -> None:
        """Give up an attempt that nobody wants any more."""
        if unwanted() and not connection.is_open:
            connection.give_up("closed meanwhile")
        elif self.session is None:
            self._loop.call_later(0.2, partial(self._watch, connection, unwanted))

    def _abandon(self, connection: Connection) -> None:
        try:
            connection.give_up(self._words)
            self._loop.start()  # to its end, which comes at once: sockets are closed there
        except Exception as error:
            log.debug("its end failed as well: %r", error)

    def _on_open(self, connection: Connection) -> None:
        self.session = Session(connection, self._loop, self._endpoint)
        self._opened(self.session)
        if self._look is not None:
            self._loop.call_later(self._look_s, self._look_again)

    def _look_again(self) -> None:
        if self._look is not None and self.session is not None:
            self._look(self.session)
            self._loop.call_later(self._look_s, self._look_again)

    def _on_end(self, connection: Connection, error: BaseException) -> None:
        self._words = f"{self._endpoint}: {words_of(error)}"
        self._loop.stop()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
