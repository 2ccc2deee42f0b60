"""Keep one SQLite file for messages: its format, its transactions, its errors in words.

The file is made complete under another name and then linked into place, so that nobody ever
opens half of one, and it is never made again by accident while it is in use. The narrow table
``messages`` says where a message stands; its body lies in a table of its own, so that claiming
a message, putting it back and refusing it never copy the body.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from edgecore.directories import size_words
from edgecore.errors import BrokerUnavailable, ConfigurationError, Problem
from edgecore.models import Finding, Level

__all__ = ["FIND_QUEUE", "REJECTED", "QueueFile", "count_findings", "in_words", "misconfigured", "path_of"]

_WAL_BYTES: Final = 16 * 1024 * 1024
_APPLICATION_ID: Final = 0x65644751
_FORMAT: Final = 1
_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
CREATE TABLE exchanges (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE queues (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    rejected INTEGER  -- the queue that takes what is refused here; NULL: this one
);
CREATE TABLE bindings (
    exchange TEXT NOT NULL, key TEXT NOT NULL, queue INTEGER NOT NULL,
    PRIMARY KEY (exchange, key, queue)
) WITHOUT ROWID;
CREATE TABLE consumers (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of arrival; never used twice
    queue INTEGER NOT NULL,
    holder INTEGER,  -- the consumer that has it; NULL while it waits
    times INTEGER NOT NULL DEFAULT 0,  -- how often it was handed out
    message_id TEXT NOT NULL,
    reply_to TEXT,
    reason TEXT NOT NULL DEFAULT ''
);
CREATE INDEX waiting ON messages (queue, id) WHERE holder IS NULL;
CREATE INDEX held ON messages (holder) WHERE holder IS NOT NULL;
CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TRIGGER body_goes_too AFTER DELETE ON messages BEGIN
    DELETE FROM bodies WHERE id = old.id;
END;
"""

FIND_QUEUE: Final = "SELECT id FROM queues WHERE name = ?"
REJECTED: Final = ".rejected"
"""Added to a queue's name, it names the queue of what was refused there."""
_COUNT: Final = (
    "SELECT q.name, count(*) FROM messages m JOIN queues q ON q.id = m.queue GROUP BY q.id ORDER BY q.name"
)
_LAST_REASON: Final = "SELECT m.reason FROM messages m JOIN queues q ON q.id = m.queue WHERE q.name = ? ORDER BY m.id DESC LIMIT 1"
_QUEUE_NAMES: Final = "SELECT name FROM queues ORDER BY name"


class QueueFile:
    """Hold the one connection to the file, and turn its errors into words."""

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open = True
        with in_words(path):
            if not path.exists():
                _create(path)
            self._connection = sqlite3.connect(
                f"file:{quote(os.fsencode(path))}?mode=rw",
                uri=True,
                timeout=busy_timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
                self._identity = _identity(path)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION_ID:
            raise misconfigured(f"{self.path}, which is no message queue", "name a new file, or a queue's")
        if version != _FORMAT:
            found = f"{self.path}, a queue of format {version}"
            raise misconfigured(found, f"this release reads format {_FORMAT}")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write all or nothing; durable on return. Raises BrokerUnavailable."""
        with self._lock, in_words(self.path):
            self._check()
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    def read(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Return all rows of a short question. Raises BrokerUnavailable."""
        with self._lock, in_words(self.path):
            self._check()
            return self._connection.execute(statement, values).fetchall()

    def queue_number(self, queue: str) -> int:
        """Return the number of a queue. Raises ConfigurationError when there is none of that name."""
        for (number,) in self.read(FIND_QUEUE, (queue,)):
            return int(number)
        names = ", ".join(name for (name,) in self.read(_QUEUE_NAMES, ())) or "none"
        raise misconfigured(repr(queue), f"a queue that was declared in {self.path}: {names}", "queue")

    def close(self) -> None:
        """Close the connection, after what is going on in other threads."""
        with self._lock:
            self._open = False
            self._connection.close()

    def _check(self) -> None:
        if not self._open:
            raise BrokerUnavailable(f"the queue file {self.path} was closed meanwhile; open it again")
        # SQLite goes on writing to a file that was deleted: what we send would be lost without a word.
        if _identity(self.path) != self._identity:
            raise BrokerUnavailable(
                f"the queue file {self.path} was replaced while it was open; close and open the connection"
            )


def _create(path: Path) -> None:
    """Make the file complete under another name, so that nobody ever opens half of it."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    # Who writes it gives orders: an operator opens it to others on purpose, not a umask by accident.
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        finally:
            connection.close()
        with contextlib.suppress(FileExistsError):  # another process was first: then its file counts
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def path_of(url: str) -> Path:
    """Return the path in a ``sqlite://`` URL. Raises ConfigurationError."""
    match = re.fullmatch(r"sqlite://(/[^?#]*[^?#/])", url)
    path = os.fsdecode(unquote_to_bytes(match[1])) if match else ""
    if not match or "\0" in path:
        raise misconfigured(
            url, "an absolute path after sqlite://, such as sqlite:///var/lib/edge/queue.sqlite"
        )
    return Path(path)


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def misconfigured(found: str, allowed: str, path: str = "url") -> ConfigurationError:
    """Make the error for one thing that the operator must correct."""
    return ConfigurationError("messaging", [Problem(path, found, allowed)])


def count_findings(file: QueueFile) -> Iterator[Finding]:
    """Tell what is in the queues; refused messages wait there for a person."""
    counted = {str(name): int(count) for name, count in file.read(_COUNT, ())}
    with in_words(file.path):
        size = sum(each.stat().st_size for each in _parts(file.path) if each.exists())
    words = ", ".join(
        f"{count:,} in {name}" for name, count in counted.items() if not name.endswith(REJECTED)
    )
    yield Finding("queue file", Level.OK, f"{file.path}: {size_words(size)}; messages: {words or 'none'}")
    for name, count in counted.items():
        if name.endswith(REJECTED):
            remedy = f"find out who sends them; they stay in the queue {name} until somebody takes them"
            words = f"{count:,} refused messages wait in {name}; the last one: {_last_reason(file, name)}"
            yield Finding("dead letters", Level.WARNING, words, remedy)


def _last_reason(file: QueueFile, queue: str) -> str:
    for (reason,) in file.read(_LAST_REASON, (queue,)):
        return str(reason)[:200] or "no reason is noted"
    return "taken meanwhile"


def _parts(path: Path) -> tuple[Path, ...]:
    return (path, path.with_name(f"{path.name}-wal"))


_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "another process has kept it locked; look for one that is stopped (fuser lists them)",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; stop what uses it, save a copy, and rebuild it with "
    "'sqlite3 FILE .recover'",
    sqlite3.SQLITE_NOTADB: "the file is damaged or no SQLite file; see that the URL names the right one",
    sqlite3.SQLITE_CANTOPEN: "see that its directory exists and that this user may write there",
    sqlite3.SQLITE_READONLY: "see that this user may write the file and its directory",
    sqlite3.SQLITE_IOERR: "the disk does not work, is full, or over quota; see the system's log",
}


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say about the file into BrokerUnavailable and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            raise  # a misuse of the module: our mistake, which waiting does not mend
        advice = _ADVICE.get(code & 0xFF, "see the documentation of SQLite")
        raise BrokerUnavailable(f"cannot use the queue file {path}: {error}; {advice}") from error
    except OSError as error:
        raise BrokerUnavailable(
            f"cannot use the queue file {path}: {error.strerror} ({error.filename}); "
            "see that its directory exists, has room, and that this user may write there"
        ) from error
