"""Carry messages between the processes of one machine through one SQLite file.

For a laptop, for tests, and for a site whose sender and receiver share a machine: what RabbitMQ
promises elsewhere, without a server. A message is durable when `send` returns; it waits in every queue
whose binding matches its key, first in, first out; a consumer claims it, works, and settles it.

Who has claimed a message is a row; whether that consumer still lives is a lock. Every consumer
holds an ``flock`` on a file of its own in ``<database>.d/consumers``, which the kernel drops when
the process ends, however it ends. So a slow consumer keeps its messages as long as it lives, and
those of a dead one go back to their places at once: no time limit has to be guessed. Waiting
consumers have a `Bell` in ``<database>.d/bells/<queue>``; once a second they also look by themselves.

The format of the file is private: no plugin of sqlite-utils is run on it, and nobody else writes
it. Who may write the file may give orders, so its permissions are the access control, and a
delivery names no validated sender. It must lie on a local disk: WAL needs shared memory.
Process copies made by a bare ``fork`` must not use (or keep) an open driver; programs that are
executed inherit nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field

from edgecore.builtin.queue_file import (
    FIND_QUEUE,
    REJECTED,
    QueueFile,
    count_findings,
    in_words,
    misconfigured,
    path_of,
)
from edgecore.clock import Clock
from edgecore.directories import DirectoryCheck
from edgecore.errors import BrokerUnavailable
from edgecore.hookspecs import Messaging, hookimpl
from edgecore.models import (
    Closed,
    Declared,
    Delivery,
    Finding,
    MessagingProfile,
    OutgoingMessage,
    SendReport,
    Settled,
    SiteContext,
    Topology,
    Verdict,
)
from edgecore.wakeup import Bell, ring

__all__ = ["SqliteMessaging", "key_matches"]

_LOOK_S: Final = 1.0
"""How often a waiting consumer looks by itself: for lost wake-ups and dead consumers."""
_BATCH_BYTES: Final = 32 * 1024 * 1024
"""A batch ends with the message that makes it larger than this, to bound our memory."""

# Every statement that runs while messages flow; a test explains that none of them scans.
_FIND_EXCHANGE: Final = "SELECT 1 FROM exchanges WHERE name = ?"
_FIND_BINDINGS: Final = "SELECT key, queue FROM bindings WHERE exchange = ?"
_ADD_MESSAGE: Final = "INSERT INTO messages (queue, message_id, reply_to) VALUES (?, ?, ?)"
_ADD_BODY: Final = "INSERT INTO bodies (id, body) VALUES (?, ?)"
_PEEK: Final = "SELECT 1 FROM messages WHERE queue = ? AND holder IS NULL LIMIT 1"
_NEXT: Final = (
    "SELECT m.id, m.times, m.message_id, m.reply_to, m.reason, b.body FROM messages m JOIN bodies b ON b.id = m.id "
    "WHERE m.queue = ? AND m.holder IS NULL ORDER BY m.id LIMIT ?"
)
_CLAIM: Final = "UPDATE messages SET holder = ?, times = times + 1 WHERE id = ?"
_ADD_CONSUMER: Final = "INSERT INTO consumers (name) VALUES (?)"
_OTHERS: Final = "SELECT id, name FROM consumers WHERE id != ?"
_HELD_QUEUES: Final = "SELECT DISTINCT queue FROM messages WHERE holder = ?"
_RELEASE: Final = "UPDATE messages SET holder = NULL WHERE holder = ?"
_FORGET: Final = "DELETE FROM consumers WHERE id = ?"
_ACCEPT: Final = "DELETE FROM messages WHERE holder = ? AND id = ? AND times = ?"
_PUT_BACK: Final = "UPDATE messages SET holder = NULL WHERE holder = ? AND id = ? AND times = ?"
_REFUSE: Final = (
    "UPDATE messages SET holder = NULL, reason = ?, "
    "queue = (SELECT ifnull(rejected, id) FROM queues WHERE queues.id = messages.queue) "
    "WHERE holder = ? AND id = ? AND times = ?"
)


def key_matches(pattern: str, key: str) -> bool:
    """Tell whether a topic *pattern* takes a routing *key*: ``*`` is one word, ``#`` any number."""
    words = key.split(".") if key else []
    places = {0}  # how many words the pattern may have used up so far
    for part in pattern.split(".") if pattern else []:
        if not places:
            return False
        if part == "#":
            places = set(range(min(places), len(words) + 1))
        else:
            places = {at + 1 for at in places if at < len(words) and part in ("*", words[at])}
    return len(words) in places


@define(eq=False)
class SqliteMessaging(Messaging):
    """Be the message driver for ``sqlite:///absolute/path``.

    One connection under one lock serves all threads: writers of a SQLite file queue up anyway, and a
    thread waits better at a lock than in SQLite's back-off. A waiting `receive` holds no lock.
    """

    url: str
    """``sqlite:///absolute/path/of/the/file``; the file is made when it is missing, its directory is not."""
    busy_timeout_s: float = 10.0
    """How long to wait, in seconds, for another process that is writing."""
    _session: _Session | None = field(init=False, default=None)
    _wanted: bool = field(init=False, default=False)
    _opening: threading.Lock = field(init=False, factory=threading.Lock)

    @hookimpl
    def open(self, site: SiteContext) -> MessagingProfile:
        """Open the file, making it when there is none.

        Raises ConfigurationError for a URL or a file that is none of ours, BrokerUnavailable else.
        """
        self.close()
        path = path_of(self.url)
        self._wanted = True
        self._opened()
        return MessagingProfile(
            broker=f"SQLite file {path}", validates_sender=False, version=sqlite3.sqlite_version
        )

    @hookimpl
    def declare(self, topology: Topology) -> Declared:
        """Make exchanges, queues, their ``.rejected`` queues and bindings that are missing.

        Raises ConfigurationError when a queue is bound to an exchange that nobody declared.
        """
        with self._opened().file.transaction() as connection:
            for exchange in topology.exchanges:
                connection.execute("INSERT OR IGNORE INTO exchanges VALUES (?)", (exchange,))
            for queue in topology.queues:
                number = _make_queue(connection, queue.name)
                if not queue.exchange:
                    continue  # reached by its name
                if not connection.execute(_FIND_EXCHANGE, (queue.exchange,)).fetchone():
                    raise misconfigured(
                        repr(queue.exchange), "an exchange of the topology", f"queue {queue.name}: exchange"
                    )
                connection.executemany(
                    "INSERT OR IGNORE INTO bindings VALUES (?, ?, ?)",
                    [(queue.exchange, key, number) for key in queue.keys],
                )
        return Declared(queues=tuple(queue.name for queue in topology.queues))

    @hookimpl
    def send(self, messages: Sequence[OutgoingMessage]) -> SendReport:
        """Store all messages in one transaction: all that have a queue, or none, are durable."""
        session = self._opened()
        unroutable: dict[str, str] = {}
        sent = 0
        with session.file.transaction() as connection:
            routes = _Routes(connection)
            for message in messages:
                queues = routes.find(message.exchange, message.key)
                if not queues:
                    unroutable[message.message_id] = routes.why_none(message.exchange, message.key)
                    continue
                sent += 1
                for queue in queues:
                    row = (queue, message.message_id, message.reply_to)
                    number = connection.execute(_ADD_MESSAGE, row).lastrowid
                    connection.execute(_ADD_BODY, (number, message.body))
        session.ring(routes.used)
        return SendReport(sent=sent, unroutable=unroutable)

    @hookimpl
    def receive(self, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        """Claim up to *limit* messages, fewer when they are large; nothing when closed meanwhile.

        A queue that nobody declared is a ConfigurationError: waiting for it would hide a misspelt name.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, found {limit}")
        with self._claiming() as session:
            return session.receive(queue, limit, timeout_s)

    @hookimpl
    def settle(self, deliveries: Sequence[Delivery], verdict: Verdict, reason: str) -> Settled:
        """Delete, put back to its place, or move to ``<queue>.rejected``, in one transaction.

        A delivery of another connection, or settled before, is not counted. What is refused in a
        ``.rejected`` queue stays there with the new reason: nothing is thrown away.
        """
        with self._claiming() as session:
            return self._settle(session, deliveries, verdict, reason)

    def _settle(
        self, session: _Session, deliveries: Sequence[Delivery], verdict: Verdict, reason: str
    ) -> Settled:
        claims = list(session.claims_of(deliveries))
        if not claims:
            return Settled(count=0)
        with session.file.transaction() as connection:
            if verdict is Verdict.REFUSE:
                settled = connection.executemany(_REFUSE, [(reason, *claim) for claim in claims])
            else:
                settled = connection.executemany(_ACCEPT if verdict is Verdict.ACCEPT else _PUT_BACK, claims)
            count = settled.rowcount
            names = {_goes_to(delivery.queue, verdict) for delivery in deliveries}
            changed = [row[0] for name in names for row in connection.execute(FIND_QUEUE, (name,))]
        if verdict is not Verdict.ACCEPT:
            session.ring(changed)
        return Settled(count=count)

    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        """Look at the file and its directory, and count what waits and what was refused."""
        file = self._opened().file
        place = DirectoryCheck(subject="queue directory", path=file.path.parent, local=True)
        return (*place.findings(), *count_findings(file))

    @hookimpl
    def close(self) -> Closed:
        """Put back what is not settled, wake a waiting `receive`, and close the file.

        Never raises: what could not be put back goes back when others find this consumer gone.
        """
        self._wanted = False
        session, self._session = self._session, None
        return Closed(message="" if session is None else session.close())

    def _opened(self) -> _Session:
        with self._opening:
            if not self._wanted:
                raise BrokerUnavailable(
                    f"{self.url} is not open: open it first, or again after it was closed"
                )
            if self._session is None:
                self._session = _Session(QueueFile(path_of(self.url), self.busy_timeout_s))
            return self._session

    @contextlib.contextmanager
    def _claiming(self) -> Iterator[_Session]:
        """Give up a session whose claims became uncertain, so that what it holds goes to the next."""
        session = self._opened()
        try:
            yield session
        except BrokerUnavailable:
            if self._session is session:
                self._session = None
            session.close()
            raise


class _Session:
    """Be one open connection: its name in the tokens, its life, its bells."""

    def __init__(self, file: QueueFile) -> None:
        self.file = file
        self._name = uuid.uuid4().hex
        self._directory = Path(f"{file.path}.d")
        self._life: _Life | None = None
        self._bells: dict[int, Bell] = {}
        self._clock = Clock()
        self._receiving = threading.Lock()  # held by a receive to its end, so that close can wait for it
        self._closing = False

    def receive(self, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        deadline = self._clock.monotonic() + timeout_s
        with self._receiving, in_words(self.file.path):
            number = self.file.queue_number(queue)
            bell = self._bell(number)  # before the first look, or a message in between is missed
            life = self._alive()
            while not self._closing:
                life.check()
                self._free_the_dead(life.number)
                deliveries = self._claim(number, queue, limit, life.number)
                left_s = deadline - self._clock.monotonic()
                if deliveries or left_s <= 0:
                    return deliveries
                bell.wait(min(left_s, _LOOK_S))
        return ()

    def claims_of(self, deliveries: Iterable[Delivery]) -> Iterator[tuple[int, int, int]]:
        """Read (holder, message, times) from the tokens of this connection; pass over others."""
        for delivery in deliveries:
            name, _, rest = delivery.token.partition(".")
            if name == self._name and self._life is not None and re.fullmatch(r"\d+\.\d+", rest, re.ASCII):
                number, _, times = rest.partition(".")
                yield self._life.number, int(number), int(times)

    def ring(self, queues: Iterable[int]) -> None:
        """Wake who waits for these queues; only a hint, so a failure is none of the sender's."""
        for queue in queues:
            with contextlib.suppress(OSError):
                ring(self._directory / "bells" / str(queue))

    def close(self) -> str:
        self._closing = True
        for bell in list(self._bells.values()):
            bell.ring()
        problem = ""
        with self._receiving:
            if self._life is not None:
                try:
                    self._release(self._life.number)
                except BrokerUnavailable as error:
                    problem = str(error)
                self._life.end()
                self._life = None
            for bell in self._bells.values():
                bell.close()
            self._bells.clear()
            self.file.close()
        return problem

    def _claim(self, number: int, queue: str, limit: int, holder: int) -> Sequence[Delivery]:
        if not self.file.read(_PEEK, (number,)):
            return ()  # without a write lock, so that idle looks disturb nobody
        deliveries = []
        size_bytes = 0
        claims = []
        with self.file.transaction() as connection:
            rows = connection.execute(_NEXT, (number, limit))
            for id_, times, message_id, reply_to, reason, body in rows:
                claims.append((holder, id_))
                deliveries.append(
                    Delivery(
                        token=f"{self._name}.{id_}.{times + 1}",
                        queue=queue,
                        body=body if isinstance(body, bytes) else str(body).encode(),
                        message_id=message_id,
                        reply_to=reply_to,
                        redelivered=times > 0,
                        reason=reason,
                    )
                )
                size_bytes += len(body)
                if size_bytes > _BATCH_BYTES:
                    break
            rows.close()
            connection.executemany(_CLAIM, claims)
        return deliveries

    def _free_the_dead(self, own: int) -> None:
        for number, name in self.file.read(_OTHERS, (own,)):
            path = self._directory / "consumers" / name
            with _evidence_of_death(path) as dead:
                if dead:
                    self._release(number)
                    with contextlib.suppress(OSError):
                        path.unlink()

    def _release(self, consumer: int) -> None:
        with self.file.transaction() as connection:
            queues = [queue for (queue,) in connection.execute(_HELD_QUEUES, (consumer,))]
            connection.execute(_RELEASE, (consumer,))
            connection.execute(_FORGET, (consumer,))
        self.ring(queues)

    def _bell(self, queue: int) -> Bell:
        if queue not in self._bells:
            self._bells[queue] = Bell(self._directory / "bells" / str(queue))
        return self._bells[queue]

    def _alive(self) -> _Life:
        """Become a consumer, on the first `receive`: the lock first, then the row that points to it."""
        if self._life is None:
            life = _Life(self._directory / "consumers" / self._name)
            try:
                with self.file.transaction() as connection:
                    added = connection.execute(_ADD_CONSUMER, (self._name,))
                    life.number = added.lastrowid or 0
            except BaseException:
                life.end()
                raise
            self._life = life
        return self._life


class _Life:
    """Prove by a lock that this consumer lives; the kernel drops it when the process ends."""

    def __init__(self, path: Path) -> None:
        self.number = 0
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.end()
            raise

    def check(self) -> None:
        """Raise BrokerUnavailable when somebody removed the file: to others we are dead."""
        if os.fstat(self._fd).st_nlink == 0:
            raise BrokerUnavailable(
                f"the lock file {self._path} was removed, so others take this consumer for dead and its "
                "unsettled messages will be delivered again; close and open the connection, and exclude "
                f"{self._path.parent} from what cleans up there"
            )

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._fd)


@contextlib.contextmanager
def _evidence_of_death(path: Path) -> Iterator[bool]:
    """Tell whether no living consumer holds *path*; while the context lasts nobody else finds so."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        yield error.errno == errno.ENOENT  # what may not be read is no evidence
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


class _Routes:
    """Find the queues that take a key; asks the file once for each key of a batch."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._found: dict[tuple[str, str], tuple[int, ...]] = {}

    @property
    def used(self) -> set[int]:
        """All queues that were found so far."""
        return {queue for queues in self._found.values() for queue in queues}

    def find(self, exchange: str, key: str) -> tuple[int, ...]:
        """Return the numbers of the queues, each once however many of its bindings match."""
        found = self._found.get((exchange, key))
        if found is None:
            found = self._found[exchange, key] = tuple(sorted(self._look(exchange, key)))
        return found

    def why_none(self, exchange: str, key: str) -> str:
        """Say why no queue was found."""
        if not exchange:
            return f"there is no queue {key!r}"
        if not self._connection.execute(_FIND_EXCHANGE, (exchange,)).fetchone():
            return f"there is no exchange {exchange!r}"
        return f"no queue is bound to exchange {exchange!r} with a key that matches {key!r}"

    def _look(self, exchange: str, key: str) -> set[int]:
        if not exchange:
            return {queue for (queue,) in self._connection.execute(FIND_QUEUE, (key,))}
        bindings = self._connection.execute(_FIND_BINDINGS, (exchange,))
        return {queue for pattern, queue in bindings if key_matches(pattern, key)}


def _make_queue(connection: sqlite3.Connection, name: str) -> int:
    """Return the number of a queue, made with the queue for what is refused there if it is new."""
    for (number,) in connection.execute(FIND_QUEUE, (name,)):
        return int(number)
    rejected = None if name.endswith(REJECTED) else _make_queue(connection, name + REJECTED)
    connection.execute("INSERT INTO queues (name, rejected) VALUES (?, ?)", (name, rejected))
    return _make_queue(connection, name)


def _goes_to(queue: str, verdict: Verdict) -> str:
    return queue + REJECTED if verdict is Verdict.REFUSE and not queue.endswith(REJECTED) else queue
