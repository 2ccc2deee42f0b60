"""Write jobs, their attempts, history and transfers into the tables of a store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Final, TypeAlias, TypeVar

from attrs import frozen

from edgecore import serial
from edgecore.models import Attempt, Job
from edgecore.states import SETTLED

__all__ = [
    "Message",
    "Rejection",
    "TransferRecord",
    "identities",
    "insert_jobs",
    "update_job",
    "write_attempt",
    "write_history",
    "write_identities",
    "write_messages",
    "write_rejection",
    "write_transfer",
]

T = TypeVar("T")

_AT_ONCE: Final = (64, 8, 1)
"""How many rows one statement is for: few numbers, so that each statement is compiled once and kept."""

Message: TypeAlias = tuple[int | None, str, str, str]
"""What waits for the broker: the job that it is about, exchange, key, body."""


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


@frozen(kw_only=True)
class Rejection:
    """What is kept of a message that was refused, so that people can find it and its writer."""

    message_id: str | None
    sha256: str
    """Of the whole body."""
    size_bytes: int
    reasons: tuple[str, ...]
    """Everything that was wrong with it."""
    excerpt: str
    """The beginning of the body."""


def identities(connection: sqlite3.Connection, wanted: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return which of these identities are taken: by which job, and when."""
    found: dict[str, tuple[int, int]] = {}
    query = "SELECT identity, job_id, taken FROM inbox WHERE identity IN (%s)"
    for part in _parts(wanted):
        answer = connection.execute(query % ", ".join(repeat("?", len(part))), part)
        found |= {identity: (job_id, taken) for identity, job_id, taken in answer}
    return found


def write_identities(connection: sqlite3.Connection, taken: Sequence[tuple[str, int, int]]) -> None:
    """Note which identity is taken by which job, and when, in place of what was known of it."""
    _insert(connection, "INSERT OR REPLACE INTO inbox (identity, job_id, taken) VALUES (?, ?, ?)", taken)


def insert_jobs(connection: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    """Write new jobs."""
    _insert(
        connection,
        "INSERT INTO jobs (id, owner, sender_id, name, application, definition, intent, state, previous_state,"
        " sequence, changed, message, attempt, retries_used, failures, due, failed_state, settled, plan)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_new(job) for job in jobs],
    )


def _new(job: Job) -> tuple[object, ...]:
    definition = job.definition
    return (
        job.id,
        job.owner,
        None if definition.job_id is None else str(definition.job_id),
        definition.name,
        definition.application,
        serial.to_json(definition),
        job.intent,
        *_changing(job),
        _plan(job),
    )


def update_job(connection: sqlite3.Connection, before: Job, after: Job) -> bool:
    """Write a job as it is now; False, and nothing, where it is not as it was *before* any more."""
    cursor = connection.execute(
        "UPDATE jobs SET state = ?, previous_state = ?, sequence = ?, changed = ?, message = ?, attempt = ?,"
        " retries_used = ?, failures = ?, due = ?, failed_state = ?, settled = ?, kept = 1"
        " WHERE id = ? AND sequence = ?",
        (*_changing(after), after.id, before.sequence),
    )
    if cursor.rowcount != 1:
        return False
    if after.plan is not before.plan:
        connection.execute("UPDATE jobs SET plan = ? WHERE id = ?", (_plan(after), after.id))
    return True


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
        job.state in SETTLED,
    )


def _plan(job: Job) -> str | None:
    return None if job.plan is None else serial.to_json(job.plan)


def write_attempt(connection: sqlite3.Connection, job_id: int, attempt: Attempt) -> None:
    """Write an attempt, in place of what was known of it."""
    connection.execute(
        "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            attempt.waiting,
            attempt.stuck,
            attempt.given_up,
        ),
    )


def write_history(connection: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    """Write each job's status beside those that it has had."""
    written = [
        (job.id, job.sequence, job.changed, job.state, job.attempt.number if job.attempt else 0, job.message)
        for job in jobs
    ]
    statement = (
        "INSERT INTO history (job_id, sequence, time, state, attempt, message) VALUES (?, ?, ?, ?, ?, ?)"
    )
    _insert(connection, statement, written)


def write_messages(connection: sqlite3.Connection, messages: Sequence[Message]) -> None:
    """Put messages into the outbox, in this order."""
    _insert(connection, "INSERT INTO outbox (job_id, exchange, key, body) VALUES (?, ?, ?, ?)", messages)


def write_transfer(connection: sqlite3.Connection, job_id: int, record: TransferRecord) -> None:
    """Write what a finished transfer moved."""
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


def write_rejection(connection: sqlite3.Connection, job_id: int, rejection: Rejection) -> None:
    """Write what is kept of a message that was refused."""
    connection.execute(
        "INSERT INTO rejections (job_id, message_id, sha256, size_bytes, reasons, excerpt)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            job_id,
            rejection.message_id,
            rejection.sha256,
            rejection.size_bytes,
            json.dumps(rejection.reasons),
            rejection.excerpt,
        ),
    )


# ------------------------------------------------------------------------- many at once


def _insert(connection: sqlite3.Connection, statement: str, written: Sequence[tuple[object, ...]]) -> None:
    """Write rows in their order, each as *statement* writes one, but many at once.

    That costs half, and other threads run meanwhile instead of taking turns with each row.
    """
    row = statement.rpartition("VALUES ")[2]
    for part in _parts(written):
        connection.execute(statement + f", {row}" * (len(part) - 1), tuple(chain.from_iterable(part)))


def _parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    first = 0
    for most in _AT_ONCE:
        while len(values) - first >= most:
            yield values[first : first + most]
            first += most
