"""Open a store's file: look at its place, lock it for one service, connect, migrate, and explain refusals.

Beside ``store.sqlite`` stand ``store.sqlite.lock``, which its service holds, and ``store.sqlite.wake``, where it
hears of requests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from edgecore import locks, migrations, wakeup
from edgecore.directories import NETWORK_FILE_SYSTEMS, file_system_of
from edgecore.errors import StoreError, StoreLocked, StoreUnusable

__all__ = [
    "OLDEST_SQLITE",
    "advice",
    "check_place",
    "check_sound",
    "connect",
    "explained",
    "holder",
    "is_damage",
    "is_running",
    "is_there",
    "last_beat",
    "lock",
    "open_for_writing",
    "quick_check",
    "settle",
    "stands_still",
    "transaction",
    "usable",
    "wake_directory",
    "whole",
]

T = TypeVar("T")

log = logging.getLogger(__name__)

OLDEST_SQLITE: Final = (3, 34, 0)
_BUSY_S: Final = 30.0
_CHECK_S: Final = 10.0
_AGAIN_S: Final = 0.01
_WHOLE_S: Final = 5.0
_LOOK_S: Final = 0.05
_STILL_S: Final = 300.0
"""Longer than a start waits for one answer of a batch system; the engine moves far more often."""


def wake_directory(store: Path) -> Path:
    """Return where a service waits for requests that other processes put into its store."""
    return store.with_name(f"{store.name}.wake")


# -------------------------------------------------------------------------------- place


def check_place(path: Path, mode: str) -> None:
    """Raise StoreUnusable where a store cannot be, or is not safe in that *mode*."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old; at least 3.34 is needed")
    if not (is_there(path.parent) and path.parent.is_dir()):
        raise StoreUnusable(f"{path}: the directory {path.parent} does not exist; make it first")
    kind = file_system_of(path.parent)
    if mode == "wal" and kind in NETWORK_FILE_SYSTEMS:
        raise StoreUnusable(
            f"{path} is on a network file system ({kind}), where the default mode of the store is not safe; "
            'put the store on a local disk, or set store_mode = "rollback"'
        )


def is_there(path: Path) -> bool:
    """Tell whether anything has that name. Raises StoreUnusable where that cannot be seen."""
    try:
        return path.exists()
    except OSError as error:
        words = "its disk must be mounted, and this account must be allowed to look there: use that of the service"
        raise StoreUnusable(f"{path}: {error.strerror}; {words}") from error


# --------------------------------------------------------------------------------- lock


def lock(path: Path) -> int:
    """Take a store for this process until the answered descriptor is closed. Raises StoreLocked, StoreUnusable."""
    file = _lock_file(path)
    try:
        return locks.hold(file, locks.this_process())
    except locks.Taken as taken:
        raise StoreLocked(f"{path} belongs to a running service ({taken.note}); stop it first") from None
    except OSError as error:
        raise StoreUnusable(_cannot_lock(file, error, "the service must be able to write there")) from error


def is_running(store: Path) -> bool:
    """Tell whether a service of this machine owns the store at this moment. Raises StoreUnusable where nobody can tell."""
    file = _lock_file(store)
    try:
        return locks.is_held(file)
    except OSError as error:
        said = _cannot_lock(file, error, "whether a service runs cannot be seen: see the system's log")
        raise StoreUnusable(said) from error


def _cannot_lock(file: Path, error: OSError, otherwise: str) -> str:
    """Say why a lock cannot be had or seen, and what to do."""
    advice = otherwise
    if error.errno in locks.NO_LOCKS:
        advice = "its file system has no locks, and without them two services could use one store: put the store on another"
    return f"{file}: {error.strerror}; {advice}"


def holder(store: Path) -> str:
    """Return what the last service that locked a store wrote about itself; empty where nothing can be read."""
    return locks.note_in(_lock_file(store))


def last_beat(store: Path) -> float | None:
    """Return when the service of a store last moved, seconds since the epoch; None where that cannot be seen."""
    return locks.last_beat(_lock_file(store))


def stands_still(store: Path) -> str:
    """Say for how long the service that owns a store has not moved; empty while that is no reason to worry."""
    moved = last_beat(store)
    still_s = 0.0 if moved is None or not is_running(store) else time.time() - moved
    return f"has not moved for {still_s / 60:,.0f} minutes" if still_s > _STILL_S else ""


def _lock_file(store: Path) -> Path:
    return store.with_name(f"{store.name}.lock")


# --------------------------------------------------------------------------- connection


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection to a file that is there, for any one thread at a time; raises StoreUnusable."""
    mode = "ro" if read_only else "rw"
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


def open_for_writing(path: Path, mode: str) -> sqlite3.Connection:
    """Open a connection to a store of the present version, durable at each commit; raises StoreUnusable."""
    try:
        if not path.exists():
            _make(path)
        if path.is_file() and path.stat().st_size == 0:
            raise StoreUnusable(
                f"{path} is empty, which a store never is: something has cut it off; restore it from a backup, "
                "or remove it to begin with an empty store"
            )
    except OSError as error:
        raise StoreUnusable(
            f"{path}: cannot make the store: {error.strerror}; does its directory exist, may we write there?"
        ) from error
    connection = connect(path)
    with usable(connection, path):
        found = migrations.version(connection)
        if found > migrations.VERSION:
            raise StoreUnusable(
                f"{path} was written by a newer edgecore (schema {found}, this one knows {migrations.VERSION}); upgrade edgecore"
            )
        connection.execute(f"PRAGMA journal_mode = {'WAL' if mode == 'wal' else 'DELETE'}")
        connection.execute("PRAGMA synchronous = FULL")
        migrations.migrate(connection)
    return connection


def _make(path: Path) -> None:
    """Make a store complete under another name, so that half of one is never taken for one; raises OSError.

    Nobody else may read it: definitions are their senders' business, and who writes it gives orders.
    """
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        connection = connect(fresh)
        with usable(connection, path):
            connection.execute("PRAGMA synchronous = FULL")
            migrations.migrate(connection)
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


def check_sound(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreUnusable where SQLite finds damage; what takes too long to look at is only logged."""
    with usable(connection, path):
        try:
            said = quick_check(connection, _CHECK_S)
        except TimeoutError:
            words = "%s was not checked to its end within %.0f s; `edgecore doctor` takes its time"
            log.warning(words, path, _CHECK_S)
            return
    if said != "ok":
        connection.close()
        raise StoreUnusable(f"{path} is damaged: {said}; {_repair(path)}")


def quick_check(connection: sqlite3.Connection, limit_s: float) -> str:
    """Return what SQLite finds in the file, ``ok`` or what is wrong. Raises TimeoutError and sqlite3.Error."""
    done = threading.Event()
    end = threading.Thread(target=_interrupt, args=(connection, limit_s, done), daemon=True)
    end.start()
    try:
        return "; ".join(" ".join(str(row[0]).split()) for row in connection.execute("PRAGMA quick_check(5)"))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise TimeoutError from error
        raise
    finally:
        done.set()
        end.join()


def _interrupt(connection: sqlite3.Connection, limit_s: float, done: threading.Event) -> None:
    """End what the connection does when the time is up; again, since SQLite forgets one that came early."""
    wait_s = limit_s
    while not done.wait(wait_s):
        connection.interrupt()
        wait_s = _AGAIN_S


@contextlib.contextmanager
def usable(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Close a connection that cannot be used, and say why."""
    try:
        yield
    except sqlite3.Error as error:
        connection.close()
        raise StoreUnusable(f"{path}: {error}; {advice(error, path)}") from error
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit the block as a whole, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def whole(path: Path, ask: Callable[[], T]) -> T:
    """Return what *ask* answers from a store, once half a change is taken back that a killed writer left there.

    SQLite takes a journal for left over when nobody holds its locks, and on a network file system those of other
    hosts may not be seen. So it is taken back only where no service can be in the middle of it: see `_may_be_at_work`.
    Raises StoreUnusable where it is left alone, and what *ask* raises.
    """
    deadline = time.monotonic() + _WHOLE_S
    rung = False
    while True:
        try:
            return ask()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            if time.monotonic() > deadline:
                raise StoreUnusable(
                    f"{path}: its service ({holder(path) or 'unknown'}) is in the middle of a change, or has yet to "
                    "take back what a killed command began; try again, or look at its log"
                ) from error
        if not _may_be_at_work(path):
            _take_back_half_change(path)
            continue
        if not rung:  # where another writer was killed, the service takes its half back at its next look
            with contextlib.suppress(OSError):
                wakeup.ring(wake_directory(path))
            rung = True
        time.sleep(_LOOK_S)


def settle(path: Path) -> None:
    """Have half a change that a killed writer left taken back before we write ourselves; raises as `whole` does."""
    if is_there(path.with_name(f"{path.name}-journal")):
        with contextlib.closing(connect(path, read_only=True)) as connection:
            whole(path, lambda: migrations.version(connection))


def _may_be_at_work(path: Path) -> bool:
    """Tell whether a service of this host, in another process, has the store; the note in its lock says of which host.

    Raises StoreUnusable where the last one was another host's, or where nobody left a note on a network file system:
    it cannot be seen from here whether it lives. On a local disk whoever lives is on this host, whose locks count.
    """
    note, here = holder(path), os.uname().nodename
    host = locks.host_in(note)
    if host not in ("", here):
        raise StoreUnusable(
            f"{path}: half a change is in it, and its service was {note}; from {here} it cannot be seen whether that "
            f"still writes, so it is left alone: run this on {host}, or, if no service runs there any more, start "
            "one here, which takes it back"
        )
    if is_running(path):
        return not locks.is_ours(note)
    if not host and (kind := file_system_of(path.parent)) in NETWORK_FILE_SYSTEMS:
        raise StoreUnusable(
            f"{path}: half a change is in it, no service has noted its host, and on a network file system ({kind}) "
            f"it cannot be seen from {here} whether somebody still writes, so it is left alone: start the service, "
            "which takes it back"
        )
    return False


def _take_back_half_change(path: Path) -> None:
    """Let SQLite undo what somebody had begun to write when he was killed, as the next service would; raises StoreUnusable."""
    try:
        with contextlib.closing(connect(path)) as connection:
            migrations.version(connection)
    except sqlite3.Error as error:
        raise StoreUnusable(
            f"{path}: its service was killed in the middle of a change, which must be taken back before anybody can "
            f"read it, and this account cannot: {error}; start the service, or use its account"
        ) from error


def explained(error: Exception, path: Path) -> Exception:
    """Return what to raise in place of *error*, which came up in a transaction: StoreError where SQLite failed."""
    if not isinstance(error, sqlite3.Error):
        return error
    said = StoreError(f"{path}: could not write to the store: {error}; {advice(error, path)}")
    said.__cause__ = error
    return said


def is_damage(error: BaseException | None) -> bool:
    """Tell whether SQLite says that the content of the file cannot be trusted."""
    return isinstance(error, sqlite3.Error) and _code(error) in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


def advice(error: sqlite3.Error, path: Path) -> str:
    """Say what a person can do about what SQLite says."""
    if is_damage(error):
        return _repair(path)
    return _ADVICE.get(_code(error), "see the documentation of SQLite").format(path=path, place=path.parent)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _repair(path: Path) -> str:
    return (
        f"restore it from a backup, or save a copy and rebuild it: sqlite3 {path} .recover | sqlite3 NEW; nothing "
        "is started before"
    )


_ADVICE: Final = {
    sqlite3.SQLITE_FULL: "the disk of {place} is full: make room there, and it goes on by itself",
    sqlite3.SQLITE_IOERR: "the disk of {place} does not work, is full or over quota: see the system's log",
    sqlite3.SQLITE_READONLY: "this account must be able to write the file and {place}: look at their permissions "
    "and whether the disk is mounted read-only",
    sqlite3.SQLITE_CANTOPEN: "see that {place} is there and not mounted read-only, and that this account may write "
    "it and may open more files (ulimit -n)",
    sqlite3.SQLITE_BUSY: "another process keeps it locked: fuser {path} names it",
    sqlite3.SQLITE_CONSTRAINT: "this is a mistake in edgecore, please report it",
}
"""What SQLite says -> what to do; see https://www.sqlite.org/rescode.html."""
