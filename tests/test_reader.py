"""Readers answer from the last committed state, with indexes, and tell jobs of two owners apart."""

from __future__ import annotations

import contextlib
import inspect
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecore.desk import Desk
from edgecore.errors import ConfigurationError, StoreUnusable
from edgecore.models import Application, Attempt, Intent, Job, JobDefinition, JobState, Parameter, Plan
from edgecore.reader import Reader
from edgecore.rows import Rejection, TransferRecord
from edgecore.states import SETTLED
from edgecore.store import Arrival, Change, Route, Store

S = JobState


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path, site="testsite", route=Route("hpc", "status"))
    yield store
    store.close()


@pytest.fixture
def reader(store: Store, path: Path) -> Iterator[Reader]:
    with Reader(path) as reader:
        yield reader


def keep(store: Store, state: JobState = S.CREATED, *, owner: str = "ada", **more: Any) -> Job:
    names = ("message", "intent", "changed", "attempt", "plan", "failed_state", "due", "failures")
    fields = {name: more.pop(name) for name in names if name in more}
    definition = JobDefinition(**{"name": "job", "application": "app", "site": "testsite", **more})
    fields = {"changed": store.now(), **fields}
    job = Job(id=store.new_id(), owner=owner, definition=definition, state=state, sequence=1, **fields)
    store.take([Arrival(f"test\t{job.id}", Change(None, (job,)))]).result(10)
    return job


# ----------------------------------------------------------------------------- round trips


def test_a_job_is_read_as_it_was_written_down_to_its_last_field(store: Store, reader: Reader) -> None:
    attempt = Attempt(
        number=3,
        tag="eabc3",
        group_tag="eabc1",
        index=7,
        intended=1,
        batch_id="77[7]",
        submitted=2,
        started=3,
        ended=4,
        exit_code=-9,
        reason="out of memory",
        missed=5,
        held=True,
        waiting=6,
        stuck=7,
        given_up="given up: it never starts",
    )
    job = keep(
        store,
        S.EXECUTION_FAILED,
        description="über\n\tzwei Zeilen",
        job_id="mine",
        argo_job_id=2**53 - 1,
        queue="batch",
        needs=("a", "b"),
        attempt=attempt,
        plan=Plan(("-n", "1", "a b"), {"constraint": ("x", "y"), "nice": 3}),
        message="exit code -9",
        due=17,
        failures=2,
        failed_state=S.EXECUTION_FAILED,
        intent=Intent.HELD,
    )
    assert job == reader.job(job.id)
    assert (job,) == tuple(reader.active())


_words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=50)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(message=_words, reason=_words, argument=_words, exit_code=st.integers(-(2**31), 2**31))
def test_texts_of_any_kind_survive(
    store: Store, reader: Reader, message: str, reason: str, argument: str, exit_code: int
) -> None:
    attempt = Attempt(number=1, tag="e1", group_tag="e1", intended=1, reason=reason, exit_code=exit_code)
    job = keep(store, S.QUEUED, message=message, attempt=attempt, plan=Plan((argument,)))
    assert job == reader.job(job.id)


def test_an_application_is_read_as_it_was_registered_and_removed(path: Path, reader: Reader) -> None:
    application = Application(
        name="zmumu",
        executable="/bin/generate",
        arguments=("--events", "{events}"),
        parameters={"events": Parameter(type="integer", minimum=1, maximum=10, default=5)},
    )
    Desk(path).add_application(evolve(application, executable="/bin/old"), now=1)
    Desk(path).add_application(application, now=2)
    Desk(path).add_application(Application(name="another", executable="/bin/a"), now=3)

    assert application == reader.application("zmumu")
    assert ["another", "zmumu"] == [each.name for each in reader.applications()]
    assert {"another", "zmumu"} == set(reader.application_names())
    assert Desk(path).remove_application("zmumu")
    assert not Desk(path).remove_application("zmumu")
    assert reader.application("zmumu") is None


def test_an_application_that_another_edgecore_wrote_is_refused_naming_it_and_the_key(
    path: Path, reader: Reader
) -> None:
    Desk(path).add_application(Application(name="a", executable="/bin/a"), now=1)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE applications SET entry = json_set(entry, '$.restartabel', 1)")
    with pytest.raises(ConfigurationError, match=r"application a in the store: restartabel: .*restartable"):
        reader.application("a")


# --------------------------------------------------------------------------------- questions


def test_a_job_is_found_by_its_senders_id_and_else_by_ours(store: Store, reader: Reader) -> None:
    named = keep(store, job_id="mine")
    numbered = keep(store, job_id=12345)
    nameless = keep(store)

    assert (named,) == reader.find("mine")
    assert (numbered,) == reader.find(12345) == reader.find("12345")
    assert (nameless,) == reader.find(nameless.id) == reader.find(str(nameless.id))
    assert () == reader.find("other") == reader.find("9" * 30) == reader.find("")


def test_two_owners_may_use_one_id_and_each_finds_their_own(store: Store, reader: Reader) -> None:
    of_ada, of_bob = keep(store, owner="ada", job_id="x"), keep(store, owner="bob", job_id="x")

    assert (of_ada, of_bob) == reader.find("x")
    assert (of_ada,) == reader.find("x", owner="ada")
    assert () == reader.find("x", owner="eve") == reader.find(of_ada.id, owner="eve")


def test_an_id_chosen_to_equal_ours_hides_no_job_from_its_owner(store: Store, reader: Reader) -> None:
    victim = keep(store, owner="ada")
    keep(store, owner="eve", job_id=victim.id)
    assert (victim,) == reader.find(victim.id, owner="ada")


def test_active_is_every_job_with_something_left_to_do_oldest_first(store: Store, reader: Reader) -> None:
    jobs = [keep(store, state) for state in S]
    expected = [job.id for job in jobs if job.state not in SETTLED]
    assert expected == [job.id for job in reader.active()]


@pytest.mark.parametrize(
    "damage",
    [
        "definition = json_set(definition, '$.of_a_newer_edgecore', 1)",
        "definition = '{'",
        "plan = '[]'",
    ],
)
def test_active_passes_over_a_job_that_cannot_be_understood_and_names_it(
    store: Store, path: Path, reader: Reader, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, odd, last = keep(store), keep(store), keep(store)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE jobs SET {damage} WHERE id = ?", (odd.id,))
    assert [first, last] == list(reader.active())
    assert f"job {odd.id} in the store cannot be understood and is left alone" in caplog.text


def test_latest_is_newest_first_limited_and_of_the_states_asked_for(store: Store, reader: Reader) -> None:
    jobs = [keep(store, state) for state in (S.RUNNING, S.QUEUED, S.RUNNING, S.JOB_FAILED, S.QUEUED)]
    ids = [job.id for job in jobs]

    assert ids[::-1] == [job.id for job in reader.latest(10)]
    assert ids[:2:-1] == [job.id for job in reader.latest(2)]
    assert [ids[4], ids[2], ids[1]] == [job.id for job in reader.latest(3, states=[S.RUNNING, S.QUEUED])]
    assert () == reader.latest(3, states=[S.LOST])


def test_latest_are_those_of_an_owner_an_application_and_a_time(store: Store, reader: Reader) -> None:
    first = keep(store, S.RUNNING, owner="ada")
    second = keep(store, S.QUEUED, owner="ada", application="b")
    third = keep(store, S.QUEUED, owner="bob", application="b")

    def ids(**chosen: Any) -> list[int]:
        return [job.id for job in reader.latest(5, **chosen)]

    assert [second.id, first.id] == ids(owner="ada")
    assert [third.id, second.id] == ids(application="b")
    assert [second.id] == ids(owner="ada", application="b", states=[S.QUEUED, S.LOST])
    assert [third.id, second.id] == ids(since=second.id)
    assert [] == ids(owner="eve")


def test_a_reader_notices_cheaply_that_somebody_committed_something(store: Store, reader: Reader) -> None:
    before = reader.changes()
    assert before == reader.changes()
    keep(store, S.RUNNING)
    assert before != reader.changes()


def test_moving_is_what_is_not_settled_and_what_came_after(store: Store, reader: Reader) -> None:
    assert 0 == reader.newest()
    running, _old, new = keep(store, S.RUNNING), keep(store, S.JOB_FINISHED), keep(store, S.JOB_FINISHED)
    assert {running.id: 1, new.id: 1} == reader.moving(new.id - 1)
    assert {running.id: 1} == reader.moving(new.id)
    assert new.id == reader.newest()


def test_alarms_are_there_until_they_are_forgotten(store: Store, reader: Reader) -> None:
    store.note_alarm("job 1", "first").result(10)
    store.note_alarm("broker", "away \udcff").result(10)
    store.note_alarm("job 1", "x" * 5000).result(10)
    assert ["broker", "job 1"] == [alarm.subject for alarm in reader.alarms()]
    found = reader.alarm("job 1")
    assert found is not None
    assert "x" * 2000 == found.message
    assert reader.alarm("job") is None

    store.forget_alarms("job 1").result(10)
    assert ["broker"] == [alarm.subject for alarm in reader.alarms()]
    store.forget_alarms().result(10)
    assert () == reader.alarms()


def test_what_is_kept_of_a_rejected_message_is_read_as_it_was_written(store: Store, reader: Reader) -> None:
    rejection = Rejection(
        message_id="m", sha256="0" * 64, size_bytes=3, reasons=("a: b", 'c "d"'), excerpt="{\n\x00"
    )
    rejected = evolve(keep(store), id=store.new_id(), state=S.JOB_REJECTED)
    store.take([Arrival("x", Change(None, (rejected,)), rejection=rejection)]).result(10)
    assert rejection == reader.rejection(rejected.id)
    assert reader.rejection(rejected.id + 1) is None


def test_the_backlog_is_counted_up_to_a_limit(store: Store, reader: Reader) -> None:
    assert 0 == reader.backlog(10)
    for _ in range(3):
        keep(store, S.RUNNING)
    assert [3, 2] == [reader.backlog(10), reader.backlog(2)]


def test_counts_tell_how_many_jobs_are_in_each_state(store: Store, reader: Reader) -> None:
    for state in (S.RUNNING, S.RUNNING, S.JOB_FAILED):
        keep(store, state)
    assert {S.RUNNING: 2, S.JOB_FAILED: 1} == reader.counts()


def test_only_old_settled_jobs_whose_directory_is_kept_are_to_be_cleaned(
    store: Store, reader: Reader
) -> None:
    old = keep(store, S.JOB_FINISHED, changed=10)
    older = keep(store, S.JOB_CANCELLED, changed=5)
    failed = keep(store, S.JOB_FAILED, changed=7)
    keep(store, S.JOB_FINISHED, changed=100)
    keep(store, S.RUNNING, changed=1)

    assert (older.id, old.id) == reader.to_clean(50, 10, failed=False)
    assert (failed.id,) == reader.to_clean(50, 10, failed=True)
    assert (older.id,) == reader.to_clean(50, 1, failed=False)
    store.forget_directories([older.id]).result(10)
    assert (old.id,) == reader.to_clean(50, 10, failed=False)


def test_the_outbox_is_in_order_after_a_number_and_forgets_what_is_confirmed(
    store: Store, reader: Reader
) -> None:
    for _ in range(5):
        keep(store)
    store.reply("{}", "status.me").result(10)
    entries = reader.outbox(0, 10)
    ids = [entry.id for entry in entries]

    assert sorted(ids) == ids
    assert (None, "hpc", "status.me", "{}") == (
        *(entries[-1].job_id, entries[-1].exchange, entries[-1].key, entries[-1].body),
    )
    assert entries[2:4] == reader.outbox(ids[1], 2)
    store.confirm([ids[0], ids[2]]).result(10)
    assert [ids[1], *ids[3:]] == [entry.id for entry in reader.outbox(0, 10)]
    store.confirm(ids).result(10)
    keep(store)
    assert reader.outbox(0, 10)[0].id > ids[-1]  # a number is never given again


def test_requests_come_in_order_once_each(store: Store, path: Path, reader: Reader) -> None:
    Desk(path).request("hold", 5, asked_by="ada", now=1)
    Desk(path).request("retry", 5, asked_by="ada", now=1, from_start=True)
    first, second = reader.requests(0)
    assert [("hold", 5, "ada", False), ("retry", 5, "ada", True)] == [
        (each.command, each.job_id, each.asked_by, each.from_start) for each in (first, second)
    ]
    assert (second,) == reader.requests(first.id)
    store.request_done(first.id).result(10)
    assert (second,) == reader.requests(0)


def test_a_store_that_is_not_there_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match=r"there is no store yet; `edgecore run SITE\.toml` makes it"):
        Reader(tmp_path / "none.sqlite")
    assert [] == list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------- indexes

_QUESTIONS: dict[str, Callable[[Reader], object]] = {
    "job": lambda reader: reader.job(1),
    "find": lambda reader: (reader.find("12"), reader.find("12", owner="ada")),
    "active": lambda reader: list(reader.active()),
    "latest": lambda reader: (
        reader.latest(5),
        reader.latest(5, states=[S.RUNNING, S.LOST]),
        reader.latest(5, owner="ada", since=3),
        reader.latest(5, application="x", states=[S.LOST]),
        reader.latest(5, owner="ada", application="x", states=[S.LOST], since=3),
    ),
    "changes": lambda reader: reader.changes(),
    "newest": lambda reader: reader.newest(),
    "moving": lambda reader: reader.moving(5),
    "marks": lambda reader: reader.marks([1, 2]),
    "rejection": lambda reader: reader.rejection(1),
    "backlog": lambda reader: reader.backlog(5),
    "alarms": lambda reader: reader.alarms(),
    "alarm": lambda reader: reader.alarm("x"),
    "counts": lambda reader: reader.counts(),
    "to_clean": lambda reader: (reader.to_clean(5, 5, failed=True), reader.to_clean(5, 5, failed=False)),
    "history": lambda reader: reader.history(1),
    "attempts": lambda reader: reader.attempts(1),
    "transfers": lambda reader: reader.transfers(1),
    "outbox": lambda reader: reader.outbox(0, 5),
    "requests": lambda reader: reader.requests(0),
    "application": lambda reader: reader.application("x"),
    "application_names": lambda reader: reader.application_names(),
    "applications": lambda reader: reader.applications(),
}

_WHOLE: dict[str, str] = {
    "latest": r"SCAN (TABLE )?jobs$",  # from the newest on, by id, until the limit
    "counts": r"SCAN (TABLE )?jobs USING COVERING INDEX jobs_state",
    "active": r"SCAN (TABLE )?jobs USING INDEX jobs_active",  # has only those
    "moving": r"SCAN (TABLE )?jobs USING INDEX jobs_active",  # has only those
    "backlog": r"SCAN (TABLE )?outbox$|SCAN (SUBQUERY|\()",  # from the oldest on, until the limit
    "alarms": r"SCAN (TABLE )?alarms",
    "application_names": r"SCAN (TABLE )?applications",
    "applications": r"SCAN (TABLE )?applications",
}
"""The questions that read a whole table or index, and how."""


def test_every_question_is_explained_here() -> None:
    public = {name for name, _ in inspect.getmembers(Reader, inspect.isfunction) if not name.startswith("_")}
    assert public - {"close"} == set(_QUESTIONS)


@pytest.mark.parametrize("name", _QUESTIONS)
def test_no_question_scans_a_table_that_grows(store: Store, reader: Reader, name: str) -> None:
    for number in range(3):
        job = keep(store, S.JOB_FAILED, job_id=str(number), changed=number)
        record = TransferRecord(
            direction="in", url="file:///x", started=1, ended=2, files=3, size_bytes=4, verified="size"
        )
        store.apply([Change(job, (evolve(job, message="x"),), transfer=record)]).result(10)
    asked: list[str] = []
    reader._connection.set_trace_callback(asked.append)
    _QUESTIONS[name](reader)
    reader._connection.set_trace_callback(None)

    assert asked
    for query in asked:
        plan = [row[3] for row in reader._connection.execute(f"EXPLAIN QUERY PLAN {query}")]
        scans = [
            step for step in plan if step.startswith("SCAN") and not re.match(_WHOLE.get(name, "$"), step)
        ]
        assert [] == scans, query
        assert [] == [step for step in plan if "TEMP B-TREE" in step], query


def test_a_store_that_another_process_keeps_locked_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(path, site="testsite").close()
    monkeypatch.setattr("edgecore.store_file._BUSY_S", 0.01)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        with Reader(path) as reader:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreUnusable, match=f"database is locked; .*: fuser {path} names it"):
                reader.newest()
            with pytest.raises(StoreUnusable, match=f"database is locked; .*: fuser {path} names it"):
                Reader(path)
