"""Keep jobs durable: one writer with group commit, and readers that can never block it.

Every change of a job is one transaction: its row, its history and the status message that reports
it. One thread owns the one write connection; whoever has something to write hands it an operation
and gets a future, and whatever is waiting is committed together. Reading is done on
read-only connections of their own, see `edgecore.reader`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from attrs import field, frozen

from edgecore import migrations, serial, wakeup
from edgecore.clock import Clock, iso
from edgecore.errors import StoreError, StoreLocked, StoreUnusable
from edgecore.models import Application, Attempt, Intent, Job, StatusMessage
from edgecore.states import SETTLED

__all__ = [
    "REPEATED_WITHIN_US",
    "Change",
    "Desk",
    "Route",
    "Store",
    "TransferRecord",
    "connect",
    "file_system_of",
    "is_running",
    "status_of",
    "wake_directory",
]

T = TypeVar("T")
Operation: TypeAlias = Callable[[sqlite3.Connection], T]

_Item: TypeAlias = tuple[Operation[Any], Future[Any]]

REPEATED_WITHIN_US: Final = 86_400_000_000
"""How long, in microseconds, an equal content without any id can be a repetition: one day."""

_OLDEST_SQLITE: Final = (3, 34, 0)
_MOST_AT_ONCE: Final = 500
_BUSY_S: Final = 30.0
_LOOKS: Final = 5
_LOOK_S: Final = 0.02
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "afs",
        "fuse.sshfs",
        "panfs",
        "pvfs2",
        "9p",
    }
)


@frozen
class Route:
    """Where status messages go."""

    exchange: str
    key: str


@frozen(kw_only=True)
class TransferRecord:
    """What one finished transfer moved."""

    direction: str
    """``in`` or ``out``."""
    url: str
    started: int
    ended: int
    files: int
    size_bytes: int
    verified: str


@frozen
class Change:
    """Move one job along *path*, all in one transaction, or note something without a new status."""

    before: Job | None
    """The job as it was; None for a new one. If the store knows it otherwise, nothing is written."""
    path: tuple[Job, ...]
    transfer: TransferRecord | None = field(default=None, kw_only=True)

    @property
    def after(self) -> Job:
        """The job as it will be."""
        return self.path[-1]


def status_of(job: Job, site: str) -> StatusMessage:
    """Return the message that reports the job's present state."""
    attempt = job.attempt
    return StatusMessage(
        job_id=job.public_id,
        argo_job_id=job.definition.argo_job_id,
        site=site,
        name=job.name,
        owner=job.owner,
        state=job.state,
        previous_state=job.previous_state,
        sequence=job.sequence,
        time=iso(job.changed),
        message=job.message,
        batch_id=attempt.batch_id if attempt else None,
        exit_code=attempt.exit_code if attempt else None,
        attempt=attempt.number if attempt else 0,
    )


def wake_directory(store: Path) -> Path:
    """Return where a service waits for requests that other processes put into its store."""
    return store.with_name(f"{store.name}.wake")


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection for any one thread at a time; raises StoreUnusable."""
    mode = "ro" if read_only else "rwc"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        raise StoreUnusable(
            f"{path}: cannot open the store: {error}; does its directory exist, may we use it?"
        ) from error
    return connection


class Store:
    """Own a site's jobs for as long as the service runs.

    Raises StoreLocked when another service has it, StoreUnusable when it cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        site: str,
        route: Route | None = None,
        mode: str = "wal",
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self.site = site
        self._route = route
        self._clock = clock or Clock()
        _check_place(path, mode)
        self._lock = _lock(path)
        try:
            self._connection = _open_for_writing(path, mode)
            with _usable(self._connection, path):
                row = self._connection.execute("SELECT max(id) FROM jobs").fetchone()
        except BaseException:
            os.close(self._lock)
            raise
        self._last_id: int = row[0] or 0
        self._id_lock = threading.Lock()
        self._waiting: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._gathering = threading.local()
        self._writer = threading.Thread(target=self._write_all, name="edgecore-store", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what is waiting, then give the store up."""
        self._waiting.put(None)
        self._writer.join()
        self._connection.close()
        os.close(self._lock)

    def now(self) -> int:
        """Return the time by the clock of this store, microseconds UTC."""
        return self._clock.now()

    def new_id(self) -> int:
        """Return an id for a new job: the time in microseconds, or the last one plus 1."""
        with self._id_lock:
            self._last_id = max(self._last_id + 1, self._clock.now())
            return self._last_id

    # ------------------------------------------------------------------------- writing

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Hand over what this thread writes in the block at its end, all at once, or nothing if it fails.

        Inside the block, wait for none of it.
        """
        items: list[_Item] = []
        self._gathering.items = items
        try:
            yield
        finally:
            self._gathering.items = None
        if items:
            self._waiting.put(items)

    def apply(self, changes: Sequence[Change]) -> Future[list[bool]]:
        """Write changes together; answers for each whether it was written or was stale."""
        return self._hand(lambda connection: [self._change(connection, change) for change in changes])

    def take(self, identity: str, change: Change, *, since: int = 0) -> Future[int]:
        """Write a new job unless *identity* was taken; answers the job's id, old or new.

        An identity that was taken before *since* (microseconds UTC) makes a new job all the same.
        """
        now = self._clock.now()

        def write(connection: sqlite3.Connection) -> int:
            known = connection.execute(
                "SELECT job_id FROM inbox WHERE identity = ? AND taken >= ?", (identity, since)
            ).fetchone()
            if known is not None:
                return int(known[0])
            connection.execute(
                "INSERT OR REPLACE INTO inbox VALUES (?, ?, ?)", (identity, change.after.id, now)
            )
            self._change(connection, change)
            return change.after.id

        return self._hand(write)

    def set_intent(self, job_id: int, intent: Intent, *, revive: bool = False) -> Future[None]:
        """Write what the user wants of a job; a cancel is never taken back, but to *revive* it."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE jobs SET intent = ? WHERE id = ? AND (intent <> ? OR ?)",
                (intent, job_id, Intent.CANCELLED, revive),
            )

        return self._hand(write)

    def note(self, job: Job, message: str) -> Future[None]:
        """Note for people what a job is doing, if it is still where it was."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE jobs SET message = ? WHERE id = ? AND sequence = ?", (message, job.id, job.sequence)
            )

        return self._hand(write)

    def report(self, job: Job) -> Future[None]:
        """Send the job's present status again, under its present sequence number."""
        return self._hand(lambda connection: self._report(connection, job))

    def reply(self, body: str, key: str | None) -> Future[None]:
        """Send a message that belongs to no job, to *key* or else where status goes."""

        def write(connection: sqlite3.Connection) -> None:
            if self._route is not None:
                row = (None, self._route.exchange, key or self._route.key, body)
                connection.execute(
                    "INSERT INTO outbox (job_id, exchange, key, body) VALUES (?, ?, ?, ?)", row
                )

        return self._hand(write)

    def confirm(self, outbox_ids: Sequence[int]) -> Future[None]:
        """Forget status messages that the broker has."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM outbox WHERE id = ?", [(number,) for number in outbox_ids])

        return self._hand(write)

    def request_done(self, request_id: int) -> Future[None]:
        """Forget a request that was carried out or refused."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM requests WHERE id = ?", (request_id,))

        return self._hand(write)

    def forget_identities(self, before: int) -> Future[None]:
        """Forget contents of messages that were taken before that time; ids are never forgotten."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM inbox WHERE taken < ? AND (identity LIKE 'body\t%' OR identity LIKE 'rejected\t%')",
                (before,),
            )

        return self._hand(write)

    def forget_directories(self, job_ids: Sequence[int]) -> Future[None]:
        """Note that these jobs' directories were removed."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("UPDATE jobs SET kept = 0 WHERE id = ?", [(number,) for number in job_ids])

        return self._hand(write)

    # ------------------------------------------------------------------------ the rows

    def _change(self, connection: sqlite3.Connection, change: Change) -> bool:
        before, after = change.before, change.after
        if before is None:
            _insert_job(connection, after)
        elif not _update_job(connection, before, after):
            return False
        if after.attempt is not None and (before is None or after.attempt != before.attempt):
            _write_attempt(connection, after.id, after.attempt)
        sequence = before.sequence if before else 0
        for job in change.path:
            if job.sequence > sequence:
                sequence = job.sequence
                _write_history(connection, job)
                self._report(connection, job)
        if change.transfer is not None:
            _write_transfer(connection, after.id, change.transfer)
        return True

    def _report(self, connection: sqlite3.Connection, job: Job) -> None:
        if self._route is None:
            return
        body = serial.to_json(status_of(job, self.site))
        connection.execute(
            "INSERT INTO outbox (job_id, exchange, key, body) VALUES (?, ?, ?, ?)",
            (job.id, self._route.exchange, self._route.key, body),
        )

    # ---------------------------------------------------------------------- the writer

    def _hand(self, operation: Operation[T]) -> Future[T]:
        future: Future[T] = Future()
        gathered: list[_Item] | None = getattr(self._gathering, "items", None)
        if gathered is None:
            self._waiting.put([(operation, future)])
        else:
            gathered.append((operation, future))
        return future

    def _write_all(self) -> None:
        handed = self._waiting.get()
        while handed is not None:
            items = handed
            with contextlib.suppress(queue.Empty):
                while len(items) < _MOST_AT_ONCE and (handed := self._waiting.get_nowait()) is not None:
                    items += handed
            self._write_together(items)
            if handed is not None:
                handed = self._waiting.get()

    def _write_together(self, items: list[_Item]) -> None:
        """Commit all in one transaction; where that fails, each in one of its own."""
        if not items:
            return
        try:
            with _transaction(self._connection):
                results = [operation(self._connection) for operation, _ in items]
        except Exception as error:
            if len(items) > 1:
                for item in items:
                    self._write_together([item])
                return
            items[0][1].set_exception(_explained(error, self.path))
            return
        for (_, future), result in zip(items, results, strict=True):
            future.set_result(result)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _explained(error: Exception, path: Path) -> Exception:
    if not isinstance(error, sqlite3.Error):
        return error
    explained = StoreError(f"{path}: could not write to the store: {error}; is the disk full or read-only?")
    explained.__cause__ = error
    return explained


# ------------------------------------------------------------------------------- opening


def _check_place(path: Path, mode: str) -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old; at least 3.34 is needed")
    if not path.parent.is_dir():
        raise StoreUnusable(f"{path}: the directory {path.parent} does not exist; make it first")
    kind = file_system_of(path.parent)
    if mode == "wal" and kind in _NETWORK_FILE_SYSTEMS:
        raise StoreUnusable(
            f"{path} is on a network file system ({kind}), where the default mode of the store is not safe; "
            'put the store on a local disk, or set store_mode = "rollback"'
        )


def file_system_of(directory: Path) -> str:
    """Return the type of the file system that a directory is on; empty where it is unknown."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    place = os.path.realpath(directory)
    for line in lines:
        _, mount, found, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _lock(path: Path) -> int:
    lock = _lock_file(path)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(f"{lock}: {error.strerror}; the service must be able to write there") from error
    try:
        _take_lock(descriptor)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreLocked(
            f"{path} belongs to a running service ({holder or 'unknown'}); stop it first"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def _take_lock(descriptor: int) -> None:
    """Take the lock, or raise BlockingIOError when it stays taken: `is_running` holds it for a moment."""
    for _ in range(_LOOKS - 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_running(store: Path) -> bool:
    """Tell whether a service of this machine owns the store at this moment."""
    try:
        descriptor = os.open(_lock_file(store), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no service was ever here, or it is not ours to see
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_file(store: Path) -> Path:
    return store.with_name(f"{store.name}.lock")


def _open_for_writing(path: Path, mode: str) -> sqlite3.Connection:
    connection = connect(path)
    with _usable(connection, path):
        found = migrations.version(connection)
        if found > migrations.VERSION:
            raise StoreUnusable(
                f"{path} was written by a newer edgecore (schema {found}, this one knows {migrations.VERSION}); upgrade edgecore"
            )
        connection.execute(f"PRAGMA journal_mode = {'WAL' if mode == 'wal' else 'DELETE'}")
        connection.execute("PRAGMA synchronous = FULL")
        migrations.migrate(connection)
    return connection


@contextlib.contextmanager
def _usable(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Close a connection that cannot be used, and say why."""
    try:
        yield
    except sqlite3.Error as error:
        connection.close()
        raise StoreUnusable(
            f"{path}: {error}; restore it from a backup, or start with an empty store"
        ) from error
    except BaseException:
        connection.close()
        raise


# ---------------------------------------------------------------------------------- rows


def _insert_job(connection: sqlite3.Connection, job: Job) -> None:
    definition = job.definition
    connection.execute(
        "INSERT INTO jobs (id, owner, sender_id, name, application, definition, intent, state, previous_state,"
        " sequence, changed, message, attempt, retries_used, failures, due, failed_state, plan, settled)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job.id,
            job.owner,
            None if definition.job_id is None else str(definition.job_id),
            definition.name,
            definition.application,
            serial.to_json(definition),
            job.intent,
            *_changing(job),
        ),
    )


def _update_job(connection: sqlite3.Connection, before: Job, after: Job) -> bool:
    cursor = connection.execute(
        "UPDATE jobs SET state = ?, previous_state = ?, sequence = ?, changed = ?, message = ?, attempt = ?,"
        " retries_used = ?, failures = ?, due = ?, failed_state = ?, plan = ?, settled = ?, kept = 1"
        " WHERE id = ? AND sequence = ?",
        (*_changing(after), after.id, before.sequence),
    )
    return cursor.rowcount == 1


def _changing(job: Job) -> tuple[object, ...]:
    return (
        job.state,
        job.previous_state,
        job.sequence,
        job.changed,
        job.message,
        job.attempt.number if job.attempt else 0,
        job.retries_used,
        job.failures,
        job.due,
        job.failed_state,
        None if job.plan is None else serial.to_json(job.plan),
        job.state in SETTLED,
    )


def _write_attempt(connection: sqlite3.Connection, job_id: int, attempt: Attempt) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job_id,
            attempt.number,
            attempt.tag,
            attempt.group_tag,
            attempt.index,
            attempt.intended,
            attempt.batch_id,
            attempt.submitted,
            attempt.started,
            attempt.ended,
            attempt.exit_code,
            attempt.reason,
            attempt.missed,
            attempt.held,
        ),
    )


def _write_history(connection: sqlite3.Connection, job: Job) -> None:
    number = job.attempt.number if job.attempt else 0
    connection.execute(
        "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?)",
        (job.id, job.sequence, job.changed, job.state, number, job.message),
    )


def _write_transfer(connection: sqlite3.Connection, job_id: int, record: TransferRecord) -> None:
    connection.execute(
        "INSERT INTO transfers (job_id, direction, url, started, ended, files, size_bytes, verified)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job_id,
            record.direction,
            record.url,
            record.started,
            record.ended,
            record.files,
            record.size_bytes,
            record.verified,
        ),
    )


# ------------------------------------------------------------- what the command line writes


@frozen
class Desk:
    """Write the little that other processes may write, while a service runs or not.

    Each call is one short transaction. Raises StoreUnusable, StoreError.
    """

    path: Path
    mode: str = "wal"

    def request(self, command: str, job_id: int, *, asked_by: str, now: int) -> None:
        """Ask the service of this store to do something with a job, and wake it."""
        self._run(
            "INSERT INTO requests (command, job_id, asked_by, time) VALUES (?, ?, ?, ?)",
            (command, job_id, asked_by, now),
        )
        wakeup.ring(wake_directory(self.path))

    def add_application(self, application: Application, *, now: int) -> None:
        """Put an application into the catalogue, in place of one of the same name."""
        self._run(
            "INSERT OR REPLACE INTO applications (name, entry, changed) VALUES (?, ?, ?)",
            (application.name, serial.to_json(application), now),
        )

    def remove_application(self, name: str) -> bool:
        """Take an application out of the catalogue; tell whether it was there."""
        return self._run("DELETE FROM applications WHERE name = ?", (name,)) > 0

    def _run(self, statement: str, values: tuple[object, ...]) -> int:
        _check_place(self.path, self.mode)
        try:
            connection = _open_for_writing(self.path, self.mode)
            with contextlib.closing(connection), _transaction(connection):
                return connection.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error
