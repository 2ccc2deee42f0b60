"""Deliveries on their way into the store: what is acknowledged is durable, what is not comes again."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
from sites import Site, make_site, wait_for

from edgecore.admission import Admission
from edgecore.backoff import Backoff
from edgecore.control import Control
from edgecore.drivers import Listeners, MessagingRelay
from edgecore.engine import Engine
from edgecore.errors import StoreUnusable
from edgecore.graph import Graph, Step, Watch
from edgecore.intake import Intake
from edgecore.models import Intent, Job, JobDefinition, JobState
from edgecore.reader import Reader
from edgecore.store import Change, Route, Store


def _nothing(job: Job) -> None:
    return None


def _cannot(*_: object) -> NoReturn:
    raise AssertionError("no step is taken here")


_NO_GRAPH = Graph(
    steps={JobState.CREATED: Step(lane="none", action=_cannot, failed=JobState.STAGE_IN_FAILED)},
    watch=Watch(states=frozenset(), look=lambda jobs: {}, interval_s=60),
    cancelled=_nothing,
    give_up=_cannot,
)


class _Noting(Engine):
    """An engine that notes which jobs it is told of."""

    def add_new(self, changes: Iterable[Change]) -> None:
        self.__dict__.setdefault("told", []).extend(change.after for change in changes)


def _told(intake: Intake) -> list[Job]:
    told: list[Job] = intake.engine.__dict__.setdefault("told", [])
    return told


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path / "site")


@pytest.fixture
def store(site: Site) -> Iterator[Store]:
    store = Store(site.config.store, site="testsite", route=Route("hpc", "balsam_job_status"))
    yield store
    store.close()


@pytest.fixture
def relay(site: Site) -> Iterator[MessagingRelay]:
    relay = site.relay()
    yield relay
    relay.close()


@pytest.fixture
def intake(
    site: Site, store: Store, relay: MessagingRelay, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Intake]:
    """Run an intake whose engine notes what it is told, and does nothing about it."""
    monkeypatch.setattr("edgecore.intake._WAIT_S", 0.05)  # so that it stops soon
    with Reader(site.config.store) as names:
        engine = _Noting(store=store, graph=_NO_GRAPH, lanes={}, listeners=Listeners())
        intake = Intake(
            queue=site.config.queue,
            messaging=relay,
            admission=Admission(config=site.config, applications=names.application_names),
            store=store,
            store_path=site.config.store,
            engine=engine,
            control=Control(engine=engine, store=store, retry=_cannot, fence=lambda job: False),
            owner="local",
            backoff=Backoff(first_s=0.05, longest_s=0.05),
        )
        thread = intake.start()
        yield intake
        intake.stop()
        thread.join()


def _intent(site: Site, job_id: int) -> Intent:
    with Reader(site.config.store) as reader:
        return reader.find(str(job_id))[0].intent


def _waiting(site: Site) -> int:
    """Return how many messages the queue still has, claimed or not."""
    with closing(sqlite3.connect(site.base / "queues.sqlite")) as connection:
        query = (
            "SELECT count(*) FROM messages JOIN queues ON queues.id = messages.queue WHERE queues.name = ?"
        )
        return int(connection.execute(query, (site.config.queue,)).fetchone()[0])


def test_many_definitions_are_taken_once_each_in_order_and_acknowledged(site: Site, intake: Intake) -> None:
    numbers = range(450)  # more than two batches
    site.send(*(site.job(job_id=number) for number in numbers), *(site.job(job_id=7) for _ in range(3)))

    wait_for(lambda: _waiting(site) == 0, 20)
    jobs = sorted(site.jobs(), key=lambda job: job.id)
    assert list(numbers) == [job.definition.job_id for job in jobs]
    assert {JobState.CREATED} == {job.state for job in jobs}


def test_a_request_finds_the_job_that_came_just_before_it(site: Site, intake: Intake) -> None:
    ask = {"command": "cancel", "job_id": 1}
    site.send(site.job(job_id=1), json.dumps(ask).encode())  # one transaction, so one batch

    wait_for(lambda: _waiting(site) == 0, 10)
    wait_for(lambda: _intent(site, 1) is Intent.CANCELLED, 10)


def test_what_the_store_cannot_write_goes_back_to_the_queue_and_is_taken_later(
    site: Site, store: Store, intake: Intake, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(site.config.store)) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'full'); END")
        site.send(site.job(job_id=1), site.job(job_id=2))
        wait_for(lambda: "no job definitions can be taken" in caplog.text, 10)
        assert 2 == _waiting(site)

        connection.execute("DROP TRIGGER full")
        wait_for(lambda: _waiting(site) == 0, 10)
    assert {1, 2} == {job.definition.job_id for job in site.jobs()}


def test_one_job_that_cannot_be_written_keeps_no_other_back(site: Site, store: Store, intake: Intake) -> None:
    told = _told(intake)
    with closing(sqlite3.connect(site.config.store)) as connection:
        connection.execute(
            "CREATE TRIGGER bad BEFORE INSERT ON jobs WHEN NEW.sender_id = '2'"
            " BEGIN SELECT RAISE(ABORT, 'bad'); END"
        )
        site.send(site.job(job_id=1), site.job(job_id=2), site.job(job_id=3))
        wait_for(lambda: _waiting(site) == 1, 10)
        wait_for(lambda: [1, 3] == [job.definition.job_id for job in told], 10)
        connection.execute("DROP TRIGGER bad")
        wait_for(lambda: [1, 3, 2] == [job.definition.job_id for job in told], 10)


def test_a_message_at_which_we_fail_is_rejected_and_does_not_come_for_ever(
    site: Site, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Admission.definition

    def failing(self: Admission, document: Mapping[str, object], source: str) -> JobDefinition:
        if document["job_id"] == 1:
            raise ZeroDivisionError("a mistake of ours")
        return read(self, document, source)

    monkeypatch.setattr(Admission, "definition", failing)
    site.send(site.job(job_id=1), site.job(job_id=2))

    wait_for(lambda: _waiting(site) == 0, 10)
    states = {job.definition.job_id: (job.state, job.message) for job in site.jobs()}
    assert JobState.JOB_REJECTED is states[1][0]
    assert "internal error: ZeroDivisionError('a mistake of ours')" in states[1][1]
    assert JobState.CREATED is states[2][0]


def test_a_batch_goes_back_when_the_catalogue_cannot_be_read_and_comes_again(
    site: Site, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Admission.definition
    calls: list[object] = []

    def failing(self: Admission, document: Mapping[str, object], source: str) -> JobDefinition:
        calls.append(document["job_id"])
        if len(calls) == 2:  # after one of the batch was made a job
            raise StoreUnusable("away for a moment")
        return real(self, document, source)

    told = _told(intake)
    monkeypatch.setattr(Admission, "definition", failing)
    site.send(site.job(job_id=1), site.job(job_id=2))

    wait_for(lambda: _waiting(site) == 0, 10)
    assert [1, 2, 1, 2] == calls
    assert [1, 2] == [job.definition.job_id for job in told]


def test_a_request_that_fails_for_a_moment_leaves_its_batch_alone_and_comes_again_after_a_while(
    site: Site, intake: Intake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Reader.find
    away = [StoreUnusable("away for a moment"), StoreUnusable("away for a moment")]

    def failing(self: Reader, public_id: str | int, *, owner: str | None = None) -> tuple[Job, ...]:
        if away and threading.current_thread().name == "edgecore-intake":
            raise away.pop()
        return real(self, public_id, owner=owner)

    told = _told(intake)
    monkeypatch.setattr(Reader, "find", failing)
    ask = {"command": "cancel", "job_id": 1}
    site.send(site.job(job_id=1), json.dumps(ask).encode(), site.job(job_id=2))

    wait_for(lambda: _waiting(site) == 0, 20)
    assert Intent.CANCELLED is _intent(site, 1)
    assert [1, 2] == [job.definition.job_id for job in told]
    assert "could not be finished" not in caplog.text
    assert "no job definitions can be taken: away for a moment" in caplog.text


def test_a_request_waits_for_its_job_where_that_could_not_be_written_yet(
    site: Site, store: Store, intake: Intake, caplog: pytest.LogCaptureFixture
) -> None:
    ask = {"command": "cancel", "job_id": 2}
    with closing(sqlite3.connect(site.config.store)) as connection:
        connection.execute(
            "CREATE TRIGGER bad BEFORE INSERT ON jobs WHEN NEW.sender_id = '2'"
            " BEGIN SELECT RAISE(ABORT, 'bad'); END"
        )
        site.send(site.job(job_id=2), json.dumps(ask).encode(), site.job(job_id=3))
        wait_for(lambda: "no job definitions can be taken" in caplog.text, 20)
        wait_for(lambda: [3] == [job.definition.job_id for job in site.jobs()], 20)
        assert 2 == _waiting(site)
        connection.execute("DROP TRIGGER bad")
    wait_for(lambda: _waiting(site) == 0, 20)
    assert Intent.CANCELLED is _intent(site, 2)
