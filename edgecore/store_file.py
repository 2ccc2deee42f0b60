"""Open a store's file: look at its place, lock it for one service, connect, migrate, and explain refusals.

Beside ``store.sqlite`` stand ``store.sqlite.lock``, which its service holds, and ``store.sqlite.wake``, where it
hears of requests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgecore import migrations
from edgecore.directories import NETWORK_FILE_SYSTEMS, file_system_of
from edgecore.errors import StoreError, StoreLocked, StoreUnusable

__all__ = [
    "OLDEST_SQLITE",
    "check_place",
    "connect",
    "explained",
    "holder",
    "is_running",
    "lock",
    "open_for_writing",
    "transaction",
    "usable",
    "wake_directory",
]

OLDEST_SQLITE: Final = (3, 34, 0)
_BUSY_S: Final = 30.0
_LOOKS: Final = 5
_LOOK_S: Final = 0.02


def wake_directory(store: Path) -> Path:
    """Return where a service waits for requests that other processes put into its store."""
    return store.with_name(f"{store.name}.wake")


# -------------------------------------------------------------------------------- place


def check_place(path: Path, mode: str) -> None:
    """Raise StoreUnusable where a store cannot be, or is not safe in that *mode*."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old; at least 3.34 is needed")
    if not path.parent.is_dir():
        raise StoreUnusable(f"{path}: the directory {path.parent} does not exist; make it first")
    kind = file_system_of(path.parent)
    if mode == "wal" and kind in NETWORK_FILE_SYSTEMS:
        raise StoreUnusable(
            f"{path} is on a network file system ({kind}), where the default mode of the store is not safe; "
            'put the store on a local disk, or set store_mode = "rollback"'
        )


# --------------------------------------------------------------------------------- lock


def lock(path: Path) -> int:
    """Take a store for this process until the answered descriptor is closed. Raises StoreLocked, StoreUnusable."""
    file = _lock_file(path)
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(f"{file}: {error.strerror}; the service must be able to write there") from error
    try:
        _take_lock(descriptor)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreLocked(
            f"{path} belongs to a running service ({holder or 'unknown'}); stop it first"
        ) from None
    with contextlib.suppress(OSError):  # on a full disk the lock counts, only its holder's name is missing
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


def holder(store: Path) -> str:
    """Return what the last service that locked a store wrote about itself; empty where nothing can be read."""
    try:
        return _lock_file(store).read_bytes()[:200].decode(errors="replace").strip()
    except OSError:
        return ""


def _lock_file(store: Path) -> Path:
    return store.with_name(f"{store.name}.lock")


# --------------------------------------------------------------------------- connection


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


def open_for_writing(path: Path, mode: str) -> sqlite3.Connection:
    """Open a connection to a store of the present version, durable at each commit; raises StoreUnusable."""
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


@contextlib.contextmanager
def usable(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
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


def explained(error: Exception, path: Path) -> Exception:
    """Return what to raise in place of *error*, which came up in a transaction: StoreError where SQLite failed."""
    if not isinstance(error, sqlite3.Error):
        return error
    said = StoreError(f"{path}: could not write to the store: {error}; is the disk full or read-only?")
    said.__cause__ = error
    return said
