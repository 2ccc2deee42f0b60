"""Keep the jobs of the `fork` batch system: its database and its lock.

The driver and the supervisor share nothing but a *spool* directory:

==================  =======================================================================
``jobs.sqlite``     all jobs (WAL; every commit is on the disk)
``lock``            held with flock by the one supervisor; says its process id and start time
``bells/``          where the supervisor is woken, see `edgecore.wakeup`
``supervisor.log``  what went wrong
==================  =======================================================================

Only the standard library is imported here, because the supervisor must stay light.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = [
    "VERSION",
    "bells",
    "connect",
    "has_work",
    "lock_file",
    "log",
    "supervised",
    "transaction",
]

VERSION: Final = 1
"""The version of the schema, kept in the database's `user_version`."""

_SCHEMA: Final = f"""
CREATE TABLE settings (name TEXT PRIMARY KEY, value REAL NOT NULL);
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- the batch id; never given again
    tag TEXT NOT NULL,
    group_tag TEXT NOT NULL,
    place INTEGER,                         -- in the group, from 0; NULL when it went alone
    state TEXT NOT NULL CHECK (state IN ('QUEUED', 'HELD', 'RUNNING', 'ENDED')),
    slots INTEGER NOT NULL,
    limit_s REAL NOT NULL,                 -- walltime
    request TEXT NOT NULL,                 -- JSON: script, directory, environment, ...
    queued INTEGER NOT NULL,               -- this and the next two: microseconds UTC
    started INTEGER,
    ended INTEGER,
    pid INTEGER,
    pid_start INTEGER,                     -- clock ticks since boot, as in /proc/<pid>/stat
    boot TEXT,                             -- pid and pid_start mean nothing in another boot
    stop TEXT NOT NULL DEFAULT '',         -- why it is being ended, once somebody asked
    kill_at REAL,                          -- seconds since boot; NULL until TERM was sent
    exit_code INTEGER,
    signal INTEGER,
    reason TEXT NOT NULL DEFAULT ''
);
CREATE INDEX jobs_by_state ON jobs (state, id, slots);
CREATE INDEX jobs_by_tag ON jobs (tag);
CREATE INDEX jobs_by_group ON jobs (group_tag);
PRAGMA user_version = {VERSION};
"""


def connect(spool: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Open the spool's database, made when it is not there; every commit is on the disk.

    Raises sqlite3.Error and OSError. The caller compares `user_version` with `VERSION`.
    """
    path = spool / "jobs.sqlite"
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    try:
        with _locked(spool / "making", fcntl.LOCK_EX):  # switching to WAL does not wait for others
            if connection.execute("PRAGMA user_version").fetchone() == (0,):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            connection.execute("ROLLBACK")
        raise


def has_work(connection: sqlite3.Connection) -> bool:
    """Tell whether a job runs, or waits that can be started."""
    (found,) = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'RUNNING') OR EXISTS (SELECT 1 FROM jobs WHERE "
        "state = 'QUEUED' AND slots <= (SELECT value FROM settings WHERE name = 'slots'))"
    ).fetchone()
    return bool(found)


def bells(spool: Path) -> Path:
    """Return the directory in which the supervisor is woken."""
    return spool / "bells"


def log(spool: Path) -> Path:
    """Return the file into which the supervisor writes what goes wrong."""
    return spool / "supervisor.log"


def lock_file(spool: Path) -> Path:
    """Return the file that the one supervisor holds locked."""
    return spool / "lock"


def supervised(spool: Path) -> bool:
    """Tell whether a supervisor lives. Raises OSError when the spool is gone."""
    try:
        with _locked(lock_file(spool), fcntl.LOCK_SH | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)
