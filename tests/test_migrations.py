"""A store of any earlier edgecore is brought up to date, and loses nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database, Migrations

from edgecore import migrations
from edgecore.models import JobState
from edgecore.reader import Reader
from edgecore.store import Store

STEPS = {
    "0001_first": migrations._first,
    "0002_seeing": migrations._seeing,
    "0003_waiting": migrations._waiting,
}


def earlier(path: Path, steps: int) -> None:
    """Make a store as an earlier edgecore left it, with a job that waits in the batch system."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        known = Migrations("edgecore")
        for name in list(STEPS)[:steps]:
            known(name=name)(STEPS[name])
        known.apply(Database(connection, execute_plugins=False))
        connection.execute(
            "INSERT INTO jobs (id, owner, name, application, definition, state, intent, sequence, changed, message,"
            " attempt) VALUES (7, 'ada', 'job', 'app', ?, 'QUEUED', 'run', 5, 100, 'Priority', 1)",
            ('{"name": "job", "application": "app", "site": "testsite"}',),
        )
        connection.execute(
            "INSERT INTO attempts (job_id, number, tag, group_tag, intended, batch_id, reason, held)"
            " VALUES (7, 1, 'e71', 'e71', 50, '4711', '', 0)"
        )
        connection.execute(
            "INSERT INTO requests (command, job_id, asked_by, time) VALUES ('retry', 7, 'ada', 60)"
        )
        connection.execute(f"PRAGMA user_version = {steps}")
        connection.commit()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_store_of_an_earlier_edgecore_is_brought_up_to_date_with_its_jobs(
    tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "store.sqlite"
    earlier(path, steps)
    for _ in range(2):  # once more changes nothing
        Store(path, site="testsite").close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert migrations.VERSION == migrations.version(connection)
    with Reader(path) as reader:
        (job,) = reader.active()
        (request,) = reader.requests(0)
    assert ("retry", 7, False) == (request.command, request.job_id, request.from_start)
    assert (7, JobState.QUEUED, "Priority") == (job.id, job.state, job.message)
    assert job.attempt is not None
    assert "4711" == job.attempt.batch_id
    assert (None, None, "") == (job.attempt.waiting, job.attempt.stuck, job.attempt.given_up)
