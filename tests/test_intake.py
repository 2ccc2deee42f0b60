"""Deliveries on their way into the store: what is acknowledged is durable, what is not comes again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sites import Site, make_site, wait_for

from edgecore.admission import Admission
from edgecore.control import Control
from edgecore.drivers import Listeners, MessagingRelay
from edgecore.engine import Backoff, Engine, Graph, Watch
from edgecore.intake import Intake
from edgecore.models import Intent, Job, JobState
from edgecore.reader import Reader
from edgecore.store import Change, Route, Store


def _nothing(job: Job) -> None:
    return None


def _cannot(*_: object) -> Change:
    raise AssertionError("no step is taken here")


_NO_GRAPH = Graph(
    steps={},
    watch=Watch(states=frozenset(), look=lambda jobs: {}, interval_s=60),
    cancelled=_nothing,
    give_up=_cannot,
)


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
def intake(site: Site, store: Store, relay: MessagingRelay) -> Iterator[Intake]:
    """Run an intake whose engine notes what it is told, and does nothing about it."""
    with Reader(site.config.store) as names:
        engine = Engine(store=store, graph=_NO_GRAPH, lanes={}, listeners=Listeners())
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
