"""Read a job store without ever standing in the way of its service.

A reader is a read-only connection of its own; it sees the last committed state. Use one per
thread.
"""

from __future__ import annotations

import functools
import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from attrs import frozen

from edgecore import migrations, serial
from edgecore.errors import EdgeError, StoreUnusable
from edgecore.models import Application, Attempt, Intent, Job, JobDefinition, JobState, Plan
from edgecore.rows import Rejection, TransferRecord
from edgecore.store_file import advice, connect, is_there, usable, whole

__all__ = ["Alarm", "HistoryEntry", "OutboxEntry", "Reader", "Request"]


@frozen(kw_only=True)
class HistoryEntry:
    """One status that a job has had."""

    sequence: int
    time: int
    state: JobState
    attempt: int
    message: str


@frozen(kw_only=True)
class OutboxEntry:
    """One message that the broker has not confirmed yet."""

    id: int
    job_id: int | None
    exchange: str
    key: str
    body: str


@frozen(kw_only=True)
class Request:
    """Something that an operator asked the service to do with a job."""

    id: int
    command: str
    job_id: int
    asked_by: str
    from_start: bool
    """Whether a retry is to begin with staging in."""


@frozen(kw_only=True)
class Alarm:
    """Something that needs a person, as the service of this store knows it."""

    subject: str
    """What it is about: ``job`` and our id, or a partner of the service."""
    message: str
    raised: int


log = logging.getLogger(__name__)

_MOST_VALUES: Final = 500
_ATTEMPT: Final = (
    "number, tag, group_tag, group_index, intended, batch_id, submitted, started, ended, exit_code, reason,"
    " missed, held, waiting, stuck, given_up"
)
_JOB: Final = (
    "SELECT jobs.id AS id, owner, definition, state, previous_state, intent, sequence, changed, message,"
    f" retries_used, failures, due, failed_state, plan, {_ATTEMPT}"
    " FROM jobs LEFT JOIN attempts ON attempts.job_id = jobs.id AND attempts.number = jobs.attempt"
)


class Reader:
    """Answer questions about the jobs of one store. Raises StoreUnusable."""

    def __init__(self, path: Path) -> None:
        if not is_there(path):
            raise StoreUnusable(f"{path}: there is no store yet; `edgecore run SITE.toml` makes it")
        self._path = path
        self._connection = connect(path, read_only=True)
        self._connection.row_factory = sqlite3.Row
        with usable(self._connection, path):
            found = whole(path, lambda: migrations.version(self._connection))
            if found != migrations.VERSION:
                raise StoreUnusable(
                    f"{path} has schema {found} and this edgecore knows {migrations.VERSION}; "
                    "use the edgecore that the service uses, or run the service once to upgrade the store"
                )

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, query: str, values: Sequence[object] = ()) -> Iterator[sqlite3.Row]:
        try:
            yield from whole(self._path, lambda: self._connection.execute(query, tuple(values)))
        except sqlite3.Error as error:
            raise StoreUnusable(
                f"{self._path}: cannot be read: {error}; {advice(error, self._path)}"
            ) from error

    def _one(self, query: str, values: Sequence[object] = ()) -> sqlite3.Row | None:
        return next(self._ask(query, values), None)

    # ------------------------------------------------------------------------------ jobs

    def job(self, job_id: int) -> Job | None:
        """Return a job by our own id."""
        row = self._one(f"{_JOB} WHERE jobs.id = ?", (job_id,))
        return None if row is None else _job(row)

    def find(self, public_id: str | int, *, owner: str | None = None) -> tuple[Job, ...]:
        """Return the jobs that somebody may mean by *public_id*: the sender's id, else ours."""
        sql = f"{_JOB} WHERE sender_id = ? AND (? IS NULL OR owner = ?) ORDER BY jobs.id"
        rows = list(self._ask(sql, (str(public_id), owner, owner)))
        if not rows and str(public_id).isdecimal() and len(str(public_id)) < 20 and int(public_id) < 2**63:
            sql = f"{_JOB} WHERE jobs.id = ? AND (? IS NULL OR owner = ?)"
            rows = list(self._ask(sql, (int(public_id), owner, owner)))
        return tuple(_job(row) for row in rows)

    def active(self) -> Iterator[Job]:
        """Yield every job in which the service has something left to do, oldest first.

        A row that cannot be understood is logged and passed over: it must not keep the others waiting.
        """
        for row in self._ask(f"{_JOB} WHERE settled = 0 ORDER BY jobs.id"):
            try:
                job = _job(row)
            except (EdgeError, ValueError) as error:
                words = "job %s in the store cannot be understood and is left alone: %s"
                log.error(words, row["id"], error, extra={"job": row["id"]})
                continue
            yield job

    def latest(
        self,
        limit: int,
        *,
        states: Sequence[JobState] = (),
        owner: str | None = None,
        application: str | None = None,
        since: int = 0,
    ) -> tuple[Job, ...]:
        """Return up to *limit* jobs, newest first: in any of *states*, or in any state at all.

        Only those of that *owner* and *application*, where given, that came at *since* (microseconds UTC) or later.
        """
        wanted: dict[str, object] = {"jobs.id >= ?": since}
        wanted |= {} if owner is None else {"owner = ?": owner}
        wanted |= {} if application is None else {"application = ?": application}
        rows: list[sqlite3.Row] = []
        for chosen in [{"state = ?": state} for state in states] or [{}]:
            conditions = {**wanted, **chosen}
            query = f"{_JOB} WHERE {' AND '.join(conditions)} ORDER BY jobs.id DESC LIMIT ?"
            rows += self._ask(query, (*conditions.values(), limit))
        rows.sort(key=lambda row: int(row["id"]), reverse=True)
        return tuple(_job(row) for row in rows[:limit])

    def changes(self) -> int:
        """Return a number that is another one as soon as anybody has committed a change; costs microseconds."""
        row = self._one("PRAGMA data_version")
        assert row is not None
        return int(row[0])

    def newest(self) -> int:
        """Return the id of the job that came last; 0 where there is none."""
        row = self._one("SELECT max(id) FROM jobs")
        return 0 if row is None or row[0] is None else int(row[0])

    def moving(self, after: int) -> Mapping[int, int]:
        """Return id -> sequence of every job that is not settled, and of every job with an id above *after*."""
        rows = list(self._ask("SELECT id, sequence FROM jobs WHERE settled = 0"))
        rows += self._ask("SELECT id, sequence FROM jobs WHERE id > ?", (after,))
        return {int(row[0]): int(row[1]) for row in rows}

    def counts(self) -> Mapping[JobState, int]:
        """Return how many jobs there are in each state."""
        rows = self._ask("SELECT state, count(*) FROM jobs GROUP BY state")
        return {JobState(state): number for state, number in rows}

    def to_clean(self, before: int, limit: int, *, failed: bool) -> tuple[int, ...]:
        """Return settled jobs last changed *before* that time whose directories are still kept.

        With *failed* only those that an operator may still want to retry, else only the others.
        """
        rows = self._ask(
            "SELECT id FROM jobs WHERE settled = 1 AND kept = 1 AND changed < ? AND (state = ?) = ?"
            " ORDER BY changed LIMIT ?",
            (before, JobState.JOB_FAILED, failed, limit),
        )
        return tuple(int(row[0]) for row in rows)

    def marks(self, job_ids: Sequence[int]) -> Mapping[int, tuple[object, ...]]:
        """Return for each of these jobs what is another value as soon as people see it differently."""
        found: dict[int, tuple[object, ...]] = {}
        for first in range(0, len(job_ids), _MOST_VALUES):
            asked = job_ids[first : first + _MOST_VALUES]
            places = ", ".join("?" * len(asked))
            query = f"SELECT id, sequence, message, intent FROM jobs WHERE id IN ({places})"
            found |= {int(row[0]): tuple(row[1:]) for row in self._ask(query, asked)}
        return found

    # --------------------------------------------------------------------- about one job

    def history(self, job_id: int) -> tuple[HistoryEntry, ...]:
        """Return every status that a job has had, in order."""
        rows = self._ask(
            "SELECT sequence, time, state, attempt, message FROM history WHERE job_id = ? ORDER BY sequence",
            (job_id,),
        )
        return tuple(HistoryEntry(**{**dict(row), "state": JobState(row["state"])}) for row in rows)

    def attempts(self, job_id: int) -> tuple[Attempt, ...]:
        """Return every attempt of a job, in order."""
        rows = self._ask(f"SELECT {_ATTEMPT} FROM attempts WHERE job_id = ? ORDER BY number", (job_id,))
        return tuple(_attempt(row) for row in rows)

    def rejection(self, job_id: int) -> Rejection | None:
        """Return what is kept of the message that became a rejected job."""
        row = self._one(
            "SELECT message_id, sha256, size_bytes, reasons, excerpt FROM rejections WHERE job_id = ?",
            (job_id,),
        )
        return (
            None if row is None else Rejection(**{**dict(row), "reasons": tuple(json.loads(row["reasons"]))})
        )

    def transfers(self, job_id: int) -> tuple[TransferRecord, ...]:
        """Return the finished transfers of a job, in order."""
        rows = self._ask(
            "SELECT direction, url, started, ended, files, size_bytes, verified FROM transfers"
            " WHERE job_id = ? ORDER BY id",
            (job_id,),
        )
        return tuple(TransferRecord(**dict(row)) for row in rows)

    # ------------------------------------------------------------------------- the rest

    def outbox(self, after: int, limit: int) -> tuple[OutboxEntry, ...]:
        """Return messages that the broker has not confirmed, in the order they were written."""
        rows = self._ask(
            "SELECT id, job_id, exchange, key, body FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        return tuple(OutboxEntry(**dict(row)) for row in rows)

    def backlog(self, limit: int) -> int:
        """Return how many messages the broker has not confirmed; counts no further than *limit*."""
        row = self._one("SELECT count(*) FROM (SELECT 1 FROM outbox ORDER BY id LIMIT ?)", (limit,))
        assert row is not None
        return int(row[0])

    def alarms(self) -> tuple[Alarm, ...]:
        """Return what needs a person now, longest first."""
        found = [Alarm(**dict(row)) for row in self._ask("SELECT subject, message, raised FROM alarms")]
        return tuple(sorted(found, key=lambda alarm: alarm.raised))

    def alarm(self, subject: str) -> Alarm | None:
        """Return the alarm about *subject*, if there is one."""
        row = self._one("SELECT subject, message, raised FROM alarms WHERE subject = ?", (subject,))
        return None if row is None else Alarm(**dict(row))

    def requests(self, after: int) -> tuple[Request, ...]:
        """Return what operators asked for after the request with that id, in order."""
        rows = self._ask(
            "SELECT id, command, job_id, asked_by, from_start FROM requests WHERE id > ? ORDER BY id",
            (after,),
        )
        return tuple(Request(**{**dict(row), "from_start": bool(row["from_start"])}) for row in rows)

    def application(self, name: str) -> Application | None:
        """Return an entry of the catalogue."""
        row = self._one("SELECT entry FROM applications WHERE name = ?", (name,))
        return None if row is None else _application(name, row[0])

    def application_names(self) -> tuple[str, ...]:
        """Return the names in the catalogue."""
        return tuple(row[0] for row in self._ask("SELECT name FROM applications"))

    def applications(self) -> tuple[Application, ...]:
        """Return the catalogue, by name."""
        rows = self._ask("SELECT name, entry FROM applications ORDER BY name")
        return tuple(_application(name, entry) for name, entry in rows)


@functools.lru_cache(maxsize=256)
def _application(name: str, entry: str) -> Application:
    return serial.structure(Application, json.loads(entry), source=f"application {name} in the store")


def _job(row: sqlite3.Row) -> Job:
    source = f"job {row['id']} in the store"
    plan = row["plan"]
    return Job(
        id=row["id"],
        owner=row["owner"],
        definition=serial.structure(JobDefinition, json.loads(row["definition"]), source=source),
        state=JobState(row["state"]),
        previous_state=None if row["previous_state"] is None else JobState(row["previous_state"]),
        intent=Intent(row["intent"]),
        sequence=row["sequence"],
        changed=row["changed"],
        message=row["message"],
        attempt=None if row["number"] is None else _attempt(row),
        retries_used=row["retries_used"],
        failures=row["failures"],
        due=row["due"],
        failed_state=None if row["failed_state"] is None else JobState(row["failed_state"]),
        plan=None if plan is None else serial.structure(Plan, json.loads(plan), source=source),
    )


def _attempt(row: sqlite3.Row) -> Attempt:
    values: dict[str, Any] = {name: row[name] for name in _ATTEMPT.split(", ")}
    values["index"] = values.pop("group_index")
    values["held"] = bool(values["held"])
    return Attempt(**values)
