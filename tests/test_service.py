"""A whole service: how it starts, what goes on without its neighbours, and how it stops."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from attrs import define, evolve, field
from scripted import LONG_S, Edge, ScriptedTransfer

import edgecore.intake
import edgecore.outbox
import edgecore.service
from edgecore.backoff import Backoff
from edgecore.config import Limits, PluginsTable
from edgecore.drivers import SchedulingRelay
from edgecore.errors import ConfigurationError, SchedulerUnavailable, StoreLocked
from edgecore.models import JobState as S
from edgecore.reader import Reader
from edgecore.service import Balsam, collecting_seldom


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let intake and outbox ask an absent broker again soon."""
    for kind in (edgecore.outbox.Outbox, edgecore.intake.Intake):

        def init(self: Any, *, _real: Any = kind.__init__, **more: Any) -> None:
            _real(self, **more, backoff=Backoff(first_s=0.05, longest_s=0.2))

        monkeypatch.setattr(kind, "__init__", init)


def stop_in(edge: Edge) -> float:
    """Stop the service; answers how many seconds that took."""
    begun = time.monotonic()
    edge.stop()
    assert edge.failure is None
    return time.monotonic() - begun


# -------------------------------------------------------------------------------------- start


@pytest.mark.usefixtures("impatient")
def test_a_broker_that_is_away_at_the_start_keeps_nothing_else_from_going_on(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)
    edge.stop()
    edge.broker.down = "connection refused"
    edge.start()
    edge.scheduling.start(edge.wait_entry())
    finished = edge.wait("job", S.JOB_FINISHED)
    assert "connection refused" in edge.wait_alarm("message broker")
    edge.broker.down = ""
    edge.send("next")
    edge.scheduling.auto = True
    edge.wait("next", S.JOB_FINISHED)

    def empty() -> bool:
        with Reader(edge.config.store) as reader:
            return not reader.outbox(0, 1)

    edge.until(empty)
    told = [status["sequence"] for status in edge.site.statuses() if status["name"] == "job"]
    assert list(range(1, finished.sequence + 1)) == told


def test_a_service_can_be_stopped_while_its_broker_is_away(edge: Edge) -> None:
    edge.broker.down = "connection refused"
    edge.start()
    assert stop_in(edge) < LONG_S / 2


@pytest.mark.usefixtures("impatient")
def test_a_broker_that_is_away_is_alarmed_also_when_nothing_is_to_be_sent(edge: Edge) -> None:
    edge.start()
    edge.broker.down = "connection refused"
    assert "connection refused" in edge.wait_alarm("job definitions")
    edge.broker.down = ""
    edge.wait_alarm("job definitions", cleared=True)
    assert ["job definitions"] == [subject for subject, _ in edge.heard.alarms]


@define(eq=False)
class Away:
    """Stand before a batch system that does not answer when it is opened."""

    real: Callable[..., SchedulingRelay]
    refusals: int
    asked: threading.Semaphore = field(factory=lambda: threading.Semaphore(0))

    def __call__(self, *given: Any, **named: Any) -> SchedulingRelay:
        self.asked.release()
        if self.refusals:
            self.refusals -= 1
            raise SchedulerUnavailable("slurm_load_ctl_conf error: Unable to contact slurm controller")
        return self.real(*given, **named)


def test_a_batch_system_that_is_away_at_the_start_is_waited_for(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = Away(vars(edgecore.service)["open_batch_system"], refusals=2)
    monkeypatch.setattr("edgecore.service.open_batch_system", away)
    monkeypatch.setattr("edgecore.service.Backoff", lambda **_: Backoff(first_s=0.02, longest_s=0.02))
    edge.send()
    edge.start()
    edge.wait("job", S.JOB_FINISHED)
    assert "the batch system is away; nothing is taken before it answers" in caplog.text
    assert 0 == away.refusals


def test_a_service_can_be_stopped_while_it_waits_for_its_batch_system(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(vars(edgecore.service)["open_batch_system"], refusals=1)
    monkeypatch.setattr("edgecore.service.open_batch_system", away)
    monkeypatch.setattr("edgecore.service.Backoff", lambda **_: Backoff(first_s=600, longest_s=600))
    edge.start(wait=False)
    assert away.asked.acquire(timeout=10)
    assert stop_in(edge) < LONG_S / 2
    assert [] == edge.heard.service  # it never worked
    edge.start()  # and has given its store back


def test_a_job_that_cannot_be_understood_keeps_no_other_from_going_on_at_the_start(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    for name in ("odd", "even"):
        edge.send(name)
        edge.wait(name, S.QUEUED)
    edge.stop()
    with closing(sqlite3.connect(edge.config.store)) as connection, connection:
        connection.execute(
            "UPDATE jobs SET definition = json_set(definition, '$.of_a_newer_edgecore', 1) WHERE name = 'odd'"
        )
    edge.start()
    edge.scheduling.start(edge.wait_entry(2))
    edge.wait("even", S.JOB_FINISHED)


def test_a_second_service_on_the_same_store_is_refused(edge: Edge) -> None:
    edge.start()
    with pytest.raises(StoreLocked, match="belongs to a running service"):
        Balsam(edge.config).run()


def test_a_plugin_that_nobody_installed_is_refused_and_the_store_is_given_back(edge: Edge) -> None:
    config = evolve(edge.config, plugins=PluginsTable(enabled=("no-such-plugin",)))
    with pytest.raises(ConfigurationError, match="no-such-plugin"):
        Balsam(config).run()
    edge.start()


def test_a_service_that_is_told_to_stop_before_it_runs_does_not_begin(edge: Edge) -> None:
    balsam = Balsam(edge.config, [edge.heard])
    balsam.stop()
    balsam.run()
    assert ["started", "stopped"] == edge.heard.service


def test_python_looks_for_garbage_less_often_while_a_service_runs_and_as_before_afterwards() -> None:
    before = gc.get_threshold()
    with collecting_seldom():
        assert before[0] < gc.get_threshold()[0]
        assert 0 < gc.get_freeze_count()
    assert (before, 0) == (gc.get_threshold(), gc.get_freeze_count())


def test_listeners_hear_of_start_and_stop(edge: Edge) -> None:
    edge.start()
    assert ["started"] == edge.heard.service
    edge.stop()
    assert ["started", "stopped"] == edge.heard.service


# --------------------------------------------------------------------------------------- stop


def test_an_idle_service_stops_at_once_and_leaves_no_thread_behind(edge: Edge) -> None:
    before = threading.active_count()
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    assert stop_in(edge) < 2
    edge.until(lambda: threading.active_count() <= before)


def test_a_slow_transfer_is_stopped_and_goes_on_after_the_next_start(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/x")
    assert edge.transfer.moving.wait(10)
    assert stop_in(edge) < 2
    job = edge.job()
    assert (S.CREATED, 0) == (job.state, job.failures)
    edge.transfer.slow = False
    edge.start()
    edge.wait("job", S.JOB_FINISHED)
    assert 2 == len(edge.transfer.fetched)


def test_a_submission_that_has_begun_is_finished_before_the_service_stops(edge: Edge) -> None:
    edge.scheduling.open_gate.clear()
    edge.start()
    edge.send()
    assert edge.scheduling.at_gate.acquire(timeout=10)
    edge.balsam.stop()
    edge.scheduling.open_gate.set()
    edge.stop()
    job = edge.job()
    assert job.attempt is not None
    assert (S.SUBMITTED, "1001") == (job.state, job.attempt.batch_id)
    assert S.SUBMITTED is edge.heard.jobs[-1].state


@pytest.mark.slow
def test_a_service_that_drains_too_long_returns_all_the_same(edge: Edge) -> None:
    edge.config = evolve(edge.config, timing=evolve(edge.config.timing, drain_s=0.3))
    edge.scheduling.open_gate.clear()
    edge.start()
    edge.send()
    assert edge.scheduling.at_gate.acquire(timeout=10)
    assert stop_in(edge) < 3
    assert S.SUBMITTING is edge.job().state
    edge.scheduling.open_gate.set()
    edge.start()
    edge.wait("job", S.JOB_FINISHED)
    assert {edge.job().id: 1} == edge.site.starts()


def test_what_waits_in_a_lane_is_not_begun_when_the_service_stops(edge: Edge) -> None:
    edge.config = evolve(edge.config, limits=Limits(staging=1))
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    for number in range(3):
        edge.send(f"job-{number}", input_url=f"file://{edge.site.base}/data/x")
        edge.wait(f"job-{number}", S.CREATED)
    assert edge.transfer.moving.wait(10)
    edge.stop()
    assert 1 == len(edge.transfer.fetched)


def test_running_jobs_go_on_without_the_service(edge: Edge) -> None:
    release = edge.site.base / "release"
    patient = edge.program("patient", f'while [ ! -e "{release}" ]; do sleep 0.02; done')
    edge.register("patient", executable=patient, arguments=())
    edge.start()
    edge.send(application="patient")
    edge.wait("job", S.RUNNING)
    edge.stop()
    release.touch()
    process = edge.wait_entry().process
    assert process is not None
    assert 0 == process.wait(10)
    edge.start()
    edge.wait("job", S.JOB_FINISHED)


def test_jobs_of_all_kinds_go_on_after_a_restart(edge: Edge) -> None:
    """One job in each kind of state at the moment of the stop."""
    edge.scheduling.auto = False
    edge.transfer = ScriptedTransfer()
    edge.start()
    for name in ("queued", "running", "held"):
        edge.send(name, "quick")
        edge.wait(name, S.QUEUED)
    entries = {edge.job(name).id: name for name in ("queued", "running", "held")}
    by_name = {
        name: entry
        for entry in edge.scheduling.entries
        for name in entries.values()
        if _is(edge, entry, name)
    }
    edge.ask("hold", "held")
    edge.wait("held", S.HELD)
    edge.transfer.slow = True
    edge.send("staging", input_url=f"file://{edge.site.base}/data/x")
    assert edge.transfer.moving.wait(10)
    edge.stop()
    edge.scheduling.start(by_name["running"])
    process = by_name["running"].process
    assert process is not None
    process.wait(10)
    edge.transfer.slow, edge.scheduling.auto = False, True
    edge.start()
    edge.wait("staging", S.JOB_FINISHED)
    edge.wait("running", S.JOB_FINISHED)
    edge.ask("release", "held")
    edge.wait("held", S.QUEUED, times=2)
    for name in ("queued", "held"):
        edge.scheduling.start(by_name[name])
        edge.wait(name, S.JOB_FINISHED)
    assert {job.id: 1 for job in edge.site.jobs()} == edge.site.starts()


def _is(edge: Edge, entry: Any, name: str) -> bool:
    attempt = edge.job(name).attempt
    return attempt is not None and attempt.tag == entry.tag
