"""Make and upgrade the tables of the job store.

Each migration is applied once, in order, inside a transaction; a released one is never edited.
`PRAGMA user_version` counts them, so that an up-to-date store opens without
importing sqlite-utils, and a store of a newer edgecore is recognised.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sqlite_utils import Database

__all__ = ["VERSION", "migrate", "version"]

VERSION: Final = 4
"""How many migrations there are."""


def version(connection: sqlite3.Connection) -> int:
    """Return how many migrations the store has had."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the store up to date; does nothing where it is."""
    if version(connection) == VERSION:
        return
    from sqlite_utils import Database, Migrations

    migrations = Migrations("edgecore")
    migrations(name="0001_first")(_first)
    migrations(name="0002_seeing")(_seeing)
    migrations(name="0003_waiting")(_waiting)
    migrations(name="0004_from_start")(_from_start)
    # A broken plugin of sqlite-utils, installed by somebody for something else, must not stop us.
    migrations.apply(Database(connection, execute_plugins=False))
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _first(database: Database) -> None:
    """Create the tables. Times are microseconds UTC; documents are JSON.

    Plain SQL where sqlite-utils cannot say it: CHECK, WITHOUT ROWID, partial indexes.
    """
    database.table("applications").create(
        {"name": str, "entry": str, "changed": int}, pk="name", not_null={"entry", "changed"}
    )
    _execute(database, _FIRST)


def _seeing(database: Database) -> None:
    """Let people choose jobs by owner and application, and see alarms and what was rejected."""
    _execute(database, _SEEING)


def _waiting(database: Database) -> None:
    """Remember since when an attempt waits, and why it was given up."""
    _execute(database, _WAITING)


def _from_start(database: Database) -> None:
    """Let people ask for a retry from the input on."""
    database.execute(
        "ALTER TABLE requests ADD COLUMN from_start INTEGER NOT NULL DEFAULT 0 CHECK (from_start IN (0, 1))"
    )


def _execute(database: Database, statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            database.execute(statement)


_FIRST: Final = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 9007199254740991),
    owner TEXT NOT NULL,
    sender_id TEXT,
    name TEXT NOT NULL,
    application TEXT NOT NULL,
    definition TEXT NOT NULL,
    state TEXT NOT NULL,
    previous_state TEXT,
    intent TEXT NOT NULL CHECK (intent IN ('run', 'held', 'cancelled')),
    sequence INTEGER NOT NULL CHECK (sequence > 0),
    changed INTEGER NOT NULL,
    message TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    retries_used INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    due INTEGER NOT NULL DEFAULT 0,
    failed_state TEXT,
    plan TEXT,
    settled INTEGER NOT NULL DEFAULT 0 CHECK (settled IN (0, 1)),
    kept INTEGER NOT NULL DEFAULT 1 CHECK (kept IN (0, 1))
);
CREATE INDEX jobs_active ON jobs (id) WHERE settled = 0;
CREATE INDEX jobs_state ON jobs (state, id);
CREATE INDEX jobs_sender_id ON jobs (sender_id) WHERE sender_id IS NOT NULL;
CREATE INDEX jobs_to_clean ON jobs (changed) WHERE settled = 1 AND kept = 1;
CREATE TABLE attempts (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    number INTEGER NOT NULL CHECK (number > 0),
    tag TEXT NOT NULL,
    group_tag TEXT NOT NULL,
    group_index INTEGER,
    intended INTEGER NOT NULL,
    batch_id TEXT,
    submitted INTEGER,
    started INTEGER,
    ended INTEGER,
    exit_code INTEGER,
    reason TEXT NOT NULL,
    missed INTEGER,
    held INTEGER NOT NULL CHECK (held IN (0, 1)),
    PRIMARY KEY (job_id, number)
) WITHOUT ROWID;
CREATE INDEX attempts_batch_id ON attempts (batch_id) WHERE batch_id IS NOT NULL;
CREATE TABLE history (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    sequence INTEGER NOT NULL,
    time INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (job_id, sequence)
) WITHOUT ROWID;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER,
    exchange TEXT NOT NULL,
    key TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE inbox (
    identity TEXT PRIMARY KEY,
    job_id INTEGER,
    taken INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX inbox_taken ON inbox (taken);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    command TEXT NOT NULL CHECK (command IN ('cancel', 'hold', 'release', 'retry', 'report')),
    job_id INTEGER NOT NULL,
    asked_by TEXT NOT NULL,
    time INTEGER NOT NULL
);
CREATE TABLE transfers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    direction TEXT NOT NULL CHECK (direction IN ('in', 'out')),
    url TEXT NOT NULL,
    started INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    files INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    verified TEXT NOT NULL
);
CREATE INDEX transfers_job ON transfers (job_id);
"""

_SEEING: Final = """
CREATE INDEX jobs_owner ON jobs (owner, id, application);
CREATE INDEX jobs_application ON jobs (application, id, owner);
CREATE TABLE alarms (
    subject TEXT PRIMARY KEY,
    message TEXT NOT NULL,
    raised INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE rejections (
    job_id INTEGER PRIMARY KEY REFERENCES jobs (id),
    message_id TEXT,
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    reasons TEXT NOT NULL,
    excerpt TEXT NOT NULL
);
"""

_WAITING: Final = """
ALTER TABLE attempts ADD COLUMN waiting INTEGER;
ALTER TABLE attempts ADD COLUMN stuck INTEGER;
ALTER TABLE attempts ADD COLUMN given_up TEXT NOT NULL DEFAULT '';
"""
