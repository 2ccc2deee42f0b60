"""Keep what the fake batch system knows, in one SQLite file that all its commands share.

Nothing else is remembered anywhere: each command opens the file, does one thing in one transaction and goes away.
SQLite undoes what a command that was killed left half done.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from edgecore.testing.fake.records import Condition, Job, Why

__all__ = ["COLUMNS", "State", "job_of", "make_state"]

_WAIT_S: Final = 60.0
_CHUNK: Final = 900
"""Values per query; SQLite before 3.32 takes 999."""

_JOB_COLUMNS: Final = """
    row INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    member INTEGER,                       -- its index in an array
    batch_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    condition TEXT NOT NULL,
    why TEXT NOT NULL,
    script TEXT NOT NULL,
    directory TEXT NOT NULL,
    nodes INTEGER NOT NULL,
    processes INTEGER NOT NULL,
    walltime_s REAL,
    queue TEXT NOT NULL,
    account TEXT NOT NULL,
    comment TEXT NOT NULL,
    options TEXT NOT NULL,                -- JSON
    requeue INTEGER NOT NULL,
    queued REAL NOT NULL,                 -- this and the next two: seconds since the epoch
    started REAL,
    ended REAL,
    exit_code INTEGER,
    signal INTEGER,
    ended_by TEXT NOT NULL DEFAULT '',
    executions INTEGER NOT NULL DEFAULT 0,
    foreigner INTEGER NOT NULL DEFAULT 0, -- another user's: no process stands behind it
    listed INTEGER NOT NULL DEFAULT 1,    -- 0: no command shows it any more
    environment TEXT NOT NULL DEFAULT '{}',
    output TEXT NOT NULL DEFAULT '/dev/null',
    pid INTEGER,                          -- of the script, which leads a session of its own
    pid_start INTEGER,                    -- clock ticks since boot
    runner INTEGER,                       -- process id of who waits for it; NULL once nobody does
    stopping TEXT NOT NULL DEFAULT '',    -- the condition that it will have ended with
    kill_at REAL                          -- seconds since boot
"""

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE jobs ({_JOB_COLUMNS});
CREATE INDEX jobs_by_condition ON jobs (condition);
CREATE INDEX jobs_by_id ON jobs (batch_id);
CREATE INDEX jobs_by_number ON jobs (number);
CREATE INDEX jobs_by_name ON jobs (name);
CREATE TABLE frozen ({_JOB_COLUMNS});     -- what accounting knows while it is behind
CREATE TABLE runners (
    pid INTEGER PRIMARY KEY,
    pid_start INTEGER NOT NULL,
    busy INTEGER NOT NULL DEFAULT 0       -- 0: about to take a job, 1: with a job, -1: about to go away
);
CREATE TABLE hanging (pid INTEGER PRIMARY KEY, pid_start INTEGER NOT NULL);
CREATE TABLE asked (command TEXT PRIMARY KEY, times INTEGER NOT NULL);
CREATE TABLE spoilers (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL DEFAULT '',     -- a command or a batch id
    detail TEXT NOT NULL DEFAULT '',
    times INTEGER                         -- how often it still works; NULL: all the while
);
COMMIT;
"""

COLUMNS: Final = ", ".join(Job._fields[:-2])
"""The columns that make a `Job`, in order."""


def make_state(place: Path, settings: dict[str, object]) -> None:
    """Make the file of a new batch system in *place*."""
    connection = sqlite3.connect(place / "state.sqlite", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)
        values = [(name, json.dumps(value)) for name, value in settings.items()]
        connection.executemany("INSERT INTO settings VALUES (?, ?)", values)
    finally:
        connection.close()


class State:
    """One connection to the file. Not for several threads at once."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.connection = sqlite3.connect(
            f"{(place / 'state.sqlite').as_uri()}?mode=rw",
            uri=True,
            timeout=_WAIT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        # Losing power is not among the faults; losing the process is, and costs nothing either way.
        self.connection.execute("PRAGMA synchronous = OFF")

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all or nothing, one process at a time."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self.connection.execute("ROLLBACK")
            raise

    # ------------------------------------------------------------------------- settings

    @property
    def owner(self) -> tuple[int, int]:
        """Process id and start time of the test that all this is for."""
        pid, start = self.setting("owner")
        return int(pid), int(start)

    def setting(self, name: str) -> Any:
        """Return a value that was set. Raises KeyError."""
        row = self.connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        return json.loads(row[0])

    def set(self, name: str, value: object) -> None:
        """Set a value."""
        self.connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    # ----------------------------------------------------------------------------- jobs

    def jobs(self, where: str, *values: object, table: str = "jobs") -> list[Job]:
        """Return jobs in the order of their submission; *where* is SQL of ours with a ``?`` per value."""
        query = f"SELECT {COLUMNS} FROM {table} WHERE {where} ORDER BY row"  # noqa: S608 - only our own words
        return [job_of(row) for row in self.connection.execute(query, values)]

    def jobs_among(self, where: str, column: str, values: Sequence[object], table: str = "jobs") -> list[Job]:
        """Return jobs whose *column* has one of *values*, however many these are."""
        found: list[Job] = []
        for first in range(0, len(values), _CHUNK):
            chunk = values[first : first + _CHUNK]
            marks = ",".join("?" * len(chunk))
            found += self.jobs(f"{where} AND {column} IN ({marks})", *chunk, table=table)
        return found

    def update(self, row: int, **values: object) -> None:
        """Change the columns of one job."""
        columns = ", ".join(f"{name} = ?" for name in values)
        query = f"UPDATE jobs SET {columns} WHERE row = ?"  # noqa: S608 - only our own words
        self.connection.execute(query, (*values.values(), row))

    # ------------------------------------------------------------------------- spoilers

    def spoil(self, kind: str, subject: str = "", detail: str = "", times: int | None = None) -> int:
        """Put a spoiler in force; returns its number."""
        with self.transaction():
            row = self.connection.execute(
                "INSERT INTO spoilers (kind, subject, detail, times) VALUES (?, ?, ?, ?)",
                (kind, subject, detail, times),
            ).lastrowid
        assert row is not None  # a row was inserted
        return row

    def mend(self, *spoilers: int) -> None:
        """Put spoilers out of force."""
        with self.transaction():
            self.connection.executemany("DELETE FROM spoilers WHERE id = ?", [(each,) for each in spoilers])

    def spoilers(self, kind: str) -> dict[str, str]:
        """Return the spoilers of a kind that are in force: subject -> detail."""
        rows = self.connection.execute(
            "SELECT subject, detail FROM spoilers WHERE kind = ? AND (times IS NULL OR times > 0) ORDER BY id",
            (kind,),
        )
        return dict(rows.fetchall())

    def use_up(self, kind: str, subject: str) -> bool:
        """Tell whether a spoiler is in force, and count this use of it."""
        if subject not in self.spoilers(kind):
            return False
        self.connection.execute(
            "UPDATE spoilers SET times = times - 1 WHERE id = (SELECT id FROM spoilers "
            "WHERE kind = ? AND subject = ? AND times > 0 ORDER BY id LIMIT 1)",
            (kind, subject),
        )
        return True


def job_of(row: Sequence[Any]) -> Job:
    """Return the job of a row of `COLUMNS`."""
    values = list(row)
    values[6], values[7] = Condition(values[6]), Why(values[7])
    values[16] = () if values[16] == "[]" else tuple((key, value) for key, value in json.loads(values[16]))
    values[17] = bool(values[17])
    return Job(*values)
