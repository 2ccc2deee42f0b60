"""The engine: back-off, giving up, errors of all kinds, listeners, and a store that cannot write."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest
from attrs import define, evolve
from scripted import Edge, ScriptedTransfer

import edgecore.rows
from edgecore import hookimpl
from edgecore.backoff import Backoff
from edgecore.config import Limits
from edgecore.errors import TransferInterrupted, Veto
from edgecore.models import Intent, Job, NativeState
from edgecore.models import JobState as S
from edgecore.reader import Reader
from edgecore.store import Arrival, Change, Store
from edgecore.store_file import last_beat

SLOW_RETRY = {"first_s": 600.0, "longest_s": 600.0}


def retry(edge: Edge, **more: Any) -> None:
    edge.config = evolve(edge.config, retry=evolve(edge.config.retry, **more))


def failing_transfers(edge: Edge, *errors: Exception) -> ScriptedTransfer:
    edge.transfer = ScriptedTransfer()
    edge.transfer.errors.extend(errors)
    return edge.transfer


def send_with_input(edge: Edge, name: str = "job", **more: Any) -> None:
    edge.send(name, input_url=f"file://{edge.site.base}/data/x", **more)


# ------------------------------------------------------------------------------------ moving


@pytest.mark.slow
def test_a_service_shows_that_it_moves_while_it_waits_works_and_drains(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.engine._BEAT_S", 0.01)
    edge.config = evolve(edge.config, timing=evolve(edge.config.timing, drain_s=60.0))
    edge.start()

    def moves() -> None:
        os.utime(f"{edge.config.store}.lock", (1, 1))
        edge.until(lambda: (last_beat(edge.config.store) or 0) > 1)

    moves()
    edge.scheduling.may_look.clear()  # so that the drain has something to wait for
    edge.send()
    edge.until(lambda: any(hook == "observe" for hook, _ in edge.scheduling.calls))
    edge.balsam.stop()
    moves()
    edge.scheduling.may_look.set()


@pytest.mark.slow
def test_a_job_goes_on_whose_thread_could_not_be_started_though_nothing_else_happens(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.engine._BEAT_S", 0.01)
    start, refused = threading.Thread.start, list[str]()

    def sparing(thread: threading.Thread) -> None:
        if thread.name.startswith("edgecore-submitting") and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", sparing)
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    assert 1 == len(refused)


def test_a_new_job_with_nothing_to_stage_or_prepare_becomes_durable_where_it_can_be_submitted(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[S]] = []
    take = Store.take

    def noting(store: Store, arrivals: Sequence[Arrival]) -> Any:
        written.extend([job.state for job in arrival.change.path] for arrival in arrivals)
        return take(store, arrivals)

    monkeypatch.setattr(Store, "take", noting)
    edge.start()
    edge.send("plain")
    send_with_input(edge, "staged")
    edge.wait("plain", S.JOB_FINISHED)
    assert [S.CREATED, S.STAGED_IN, S.PREPROCESSED] in written
    assert [S.CREATED] in written


# ------------------------------------------------------------------------------------ back-off


def test_waiting_times_double_up_to_the_longest_with_a_quarter_of_jitter() -> None:
    backoff = Backoff(first_s=10, longest_s=600)
    for failures, expected in ((1, 10), (2, 20), (3, 40), (6, 320), (7, 600), (1000, 600)):
        waits = {backoff.after(failures) for _ in range(50)}
        assert all(0.75 * expected <= wait <= 1.25 * expected for wait in waits)
        assert len(waits) > 1


def test_a_passing_failure_is_tried_so_many_times_and_then_given_up(edge: Edge) -> None:
    transfer = failing_transfers(edge, *[TransferInterrupted("reset by peer")] * 9)
    edge.start()
    send_with_input(edge)
    failed = edge.wait("job", S.STAGE_IN_FAILED)
    assert "gave up after 3 tries: reset by peer" == failed.message
    assert 3 == len(transfer.fetched)
    edge.wait("job", S.JOB_FAILED)


def test_failures_count_anew_after_a_step_has_succeeded(edge: Edge) -> None:
    transfer = failing_transfers(edge, *[TransferInterrupted("reset")] * 2)
    edge.start()
    send_with_input(edge, output_url=edge.output("job"))
    edge.wait("job", S.STAGED_IN)
    transfer.errors.extend([TransferInterrupted("reset")] * 2)
    edge.wait("job", S.JOB_FINISHED)
    assert (3, 3) == (len(transfer.fetched), len(transfer.delivered))


def test_a_wait_says_its_reason_and_outlives_a_restart(edge: Edge) -> None:
    retry(edge, **SLOW_RETRY)
    transfer = failing_transfers(edge, TransferInterrupted("no route to host"))
    edge.start()
    send_with_input(edge)
    edge.until(lambda: edge.job().failures == 1)
    job = edge.job()
    assert "no route to host" == job.message
    assert 400e6 < job.due - job.changed < 800e6
    edge.restart()
    edge.send("other")
    edge.wait("other", S.JOB_FINISHED)
    assert 1 == len(transfer.fetched)
    assert (1, job.due) == (edge.job().failures, edge.job().due)


def test_tries_before_a_restart_count(edge: Edge) -> None:
    transfer = failing_transfers(edge, *[TransferInterrupted("reset")] * 9)
    retry(edge, **SLOW_RETRY)
    edge.start()
    send_with_input(edge)
    edge.until(lambda: edge.job().failures == 1)
    edge.stop()
    with sqlite3.connect(edge.config.store) as store:  # time passes
        store.execute("UPDATE jobs SET due = 0")
    store.close()
    retry(edge, first_s=0.02, longest_s=0.05)
    edge.start()
    edge.wait("job", S.JOB_FAILED)
    assert 3 == len(transfer.fetched)


def test_slow_transfers_never_hold_up_submissions(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    for number in range(10):  # more than there are threads for transfers
        send_with_input(edge, f"slow-{number}")
    assert edge.transfer.moving.wait(10)
    edge.send("quick")
    edge.wait("quick", S.JOB_FINISHED)


# ------------------------------------------------------------------------------ what may go wrong


def test_an_unexpected_exception_in_an_action_neither_stops_the_engine_nor_fails_the_job(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    transfer = failing_transfers(edge, ZeroDivisionError("a bug in a driver"))
    edge.start()
    send_with_input(edge)
    edge.wait("job", S.JOB_FINISHED)
    assert 2 == len(transfer.fetched)
    assert "ZeroDivisionError" in caplog.text


def test_an_action_that_calls_exit_ends_neither_its_lane_nor_the_job(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    edge.config = evolve(edge.config, limits=Limits(staging=1))  # the thread is the only one of its lane
    transfer = failing_transfers(edge)
    transfer.errors.append(SystemExit(3))  # type: ignore[arg-type]
    edge.start()
    send_with_input(edge)
    edge.wait("job", S.JOB_FINISHED)
    assert 2 == len(transfer.fetched)
    assert "SystemExit(3)" in caplog.text


def test_a_job_for_which_nothing_can_be_decided_is_alarmed_and_keeps_no_other_back(edge: Edge) -> None:
    edge.start()
    engine = edge.balsam._engine
    assert engine is not None
    steps = engine.graph.steps
    assert isinstance(steps, dict)
    broken = True

    def alike(job: Job) -> object:
        if job.name == "odd" and broken:
            raise KeyError("queue")
        return job.id

    steps[S.PREPROCESSED] = evolve(steps[S.PREPROCESSED], alike=alike)
    edge.send("odd")
    odd = edge.wait("odd", S.PREPROCESSED)
    assert "it cannot go on: KeyError('queue')" == edge.wait_alarm(f"job {odd.id}")
    edge.send("even")
    edge.wait("even", S.JOB_FINISHED)
    assert S.PREPROCESSED is edge.job("odd").state
    broken = False
    edge.wait("odd", S.JOB_FINISHED)


def test_a_bug_that_stays_is_given_up_with_its_name(edge: Edge) -> None:
    failing_transfers(edge, *[KeyError("size")] * 9)
    edge.start()
    send_with_input(edge)
    assert "internal error: KeyError('size')" in edge.wait("job", S.STAGE_IN_FAILED).message


def test_an_exception_where_jobs_move_on_at_once_concerns_that_job_only(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Reader.application

    def damaged(self: Reader, name: str) -> Any:
        if name == "fails":
            raise sqlite3.OperationalError("disk I/O error")
        return real(self, name)

    retry(edge, tries=1_000)  # however long the damage lasts
    edge.scheduling.auto = False
    edge.start()
    edge.send("unlucky", "fails")
    edge.send("lucky", "quick")
    edge.program("ledger.sh", "exit 0")
    edge.wait("unlucky", S.QUEUED)
    edge.wait("lucky", S.QUEUED)
    monkeypatch.setattr(Reader, "application", damaged)
    for entry in edge.scheduling.entries:
        edge.scheduling.start(entry)
    edge.wait("lucky", S.JOB_FINISHED)
    edge.until(lambda: "disk I/O error" in edge.job("unlucky").message)
    monkeypatch.undo()
    edge.wait("unlucky", S.JOB_FINISHED)


def test_a_move_that_the_graph_does_not_know_is_alarmed_and_not_made(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    job = edge.wait("job", S.QUEUED)
    engine = edge.balsam._engine
    assert engine is not None
    engine.change(job, lambda now: Change(now, (now.moved(S.STAGED_OUT, 1),))).result(10)
    assert "no way from QUEUED to STAGED_OUT" in edge.wait_alarm(f"job {job.id}")
    edge.scheduling.start(edge.wait_entry())
    edge.wait("job", S.JOB_FINISHED)


def test_an_exception_of_the_driver_in_a_listing_is_a_silence(
    edge: Edge, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)
    monkeypatch.setattr(edge.scheduling, "entries", None)  # every listing fails on it
    edge.wait_alarm("batch system")
    assert "the batch system does not answer" in caplog.text
    assert "Traceback" in caplog.text
    monkeypatch.undo()


# --------------------------------------------------------------------------------- listeners


@define(eq=False)
class Policy:
    """Forbid a state until told otherwise."""

    forbidden: S | None
    asked: int = 0

    @hookimpl
    def job_changing(self, before: Job | None, after: Job) -> None:
        if after.state is self.forbidden:
            self.asked += 1
            raise Veto("not before the maintenance is over")


@pytest.mark.parametrize(
    "state", [S.STAGED_IN, S.PREPROCESSED, S.SUBMITTING, S.EXECUTION_FINISHED, S.JOB_FINISHED]
)
def test_a_veto_keeps_the_job_where_it_is_until_it_is_lifted(edge: Edge, state: S) -> None:
    policy = Policy(state)
    edge.plugins.append(policy)
    edge.start()
    edge.send()
    edge.until(lambda: policy.asked >= 2)
    assert state not in edge.states()
    policy.forbidden = None
    edge.wait("job", S.JOB_FINISHED)
    assert {edge.job().id: 1} == edge.site.starts()


def test_a_listener_that_fails_is_named_and_disturbs_nobody(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        @hookimpl
        def job_changed(self, job: Job) -> None:
            raise RuntimeError("cannot reach the dashboard")

        @hookimpl
        def job_changing(self, before: Job | None, after: Job) -> None:
            raise RuntimeError("neither here")

    edge.plugins.append(Broken())
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    assert "Broken failed in job_changed" in caplog.text


def test_listeners_hear_of_every_status_once_and_in_order(edge: Edge) -> None:
    edge.start()
    edge.send(**edge.input("job"))
    finished = edge.wait("job", S.JOB_FINISHED)
    heard = [job.sequence for job in edge.heard.jobs if job.id == finished.id]
    assert list(range(1, finished.sequence + 1)) == heard
    assert edge.states() == [str(job.state) for job in edge.heard.jobs]


def test_listeners_hear_of_rejected_jobs(edge: Edge) -> None:
    edge.start()
    edge.send("broken", "no-such-application")
    assert "no-such-application" in edge.wait("broken", S.JOB_REJECTED).message


# ------------------------------------------------------------------- a store that cannot write


@define(eq=False)
class FullDisk:
    """Make every change of a job fail while `full`."""

    full: bool = False
    failed: int = 0
    once: S | None = None
    """Fail one write of this state."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    disk = FullDisk()
    real = edgecore.rows.write_history

    def write_history(connection: sqlite3.Connection, jobs: Sequence[Job]) -> None:
        if jobs and (disk.full or any(job.state is disk.once for job in jobs)):
            disk.failed, disk.once = disk.failed + 1, None
            raise sqlite3.OperationalError("database or disk is full")
        real(connection, jobs)

    monkeypatch.setattr(edgecore.rows, "write_history", write_history)
    return disk


@pytest.mark.parametrize("state", [S.CREATED, S.STAGED_IN, S.PREPROCESSED, S.SUBMITTING, S.RUNNING])
def test_what_cannot_be_written_is_alarmed_and_written_later(edge: Edge, disk: FullDisk, state: S) -> None:
    reached = threading.Event()

    class Filler:
        @hookimpl
        def job_changed(self, job: Job) -> None:
            if job.state is state and not reached.is_set():
                disk.full = True
                reached.set()

    retry(edge, tries=2)
    edge.plugins.append(Filler())
    edge.register("short", seconds=0.3)
    edge.start()
    edge.send(application="short")
    assert reached.wait(10)
    assert "disk is full" in edge.wait_alarm("store")
    edge.until(lambda: disk.failed >= 4)
    disk.full = False
    edge.wait_alarm("store", cleared=True)
    edge.wait("job", S.JOB_FINISHED)
    assert {edge.job().id: 1} == edge.site.starts()
    assert not any("FAILED" in word for word in edge.states())


@pytest.mark.parametrize(
    "state", [S.STAGED_IN, S.SUBMITTING, S.SUBMITTED, S.EXECUTION_FINISHED, S.JOB_FINISHED]
)
def test_one_change_that_could_not_be_written_fails_no_job(edge: Edge, disk: FullDisk, state: S) -> None:
    retry(edge, tries=1)
    disk.once = state
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    assert 1 == disk.failed
    assert {edge.job().id: 1} == edge.site.starts()
    assert not any("FAILED" in word for word in edge.states())


def test_definitions_that_cannot_be_written_are_taken_later(edge: Edge, disk: FullDisk) -> None:
    edge.start()
    disk.full = True
    edge.send()
    edge.until(lambda: disk.failed >= 1)
    assert [] == edge.site.jobs()
    disk.full = False
    edge.wait("job", S.JOB_FINISHED)
    assert 1 == len(edge.site.jobs())


def test_an_operators_retry_that_cannot_be_written_is_kept(
    edge: Edge, disk: FullDisk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.control._LOOK_ANYWAY_S", 0.1)
    edge.start()
    edge.send(application="fails")
    edge.wait("job", S.JOB_FAILED)
    disk.full = True
    edge.ask("retry")
    edge.until(lambda: "which failed and will be tried again: " in caplog.text)
    edge.program("ledger.sh", "exit 0")
    disk.full = False
    edge.wait("job", S.JOB_FINISHED)


# ----------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize(
    "state",
    [
        S.CREATED,
        S.STAGED_IN,
        S.PREPROCESSED,
        S.SUBMITTED,
        S.EXECUTION_FINISHED,
        S.POSTPROCESSED,
        S.STAGED_OUT,
    ],
)
def test_a_job_goes_on_from_every_state_after_a_restart(
    edge: Edge, state: S, caplog: pytest.LogCaptureFixture
) -> None:
    """The service is stopped at the very moment when it has committed the state."""

    class Stopper:
        @hookimpl
        def job_changed(self, job: Job) -> None:
            if job.state is state:
                edge.balsam.stop()

    caplog.set_level(logging.INFO)
    program = edge.program("nothing", ":")
    edge.register("whole", preprocess=program, postprocess=program)
    stopper = Stopper()
    edge.plugins.append(stopper)
    edge.start()
    edge.send(application="whole", **edge.input("job"))
    edge.wait("job", state)
    edge.stop()
    edge.plugins.remove(stopper)
    edge.start()
    edge.until(lambda: edge.job().state is S.JOB_FINISHED)
    assert {edge.job().id: 1} == edge.site.starts()
    with Reader(edge.config.store) as reader:
        sequences = [entry.sequence for entry in reader.history(edge.job().id)]
    assert list(range(1, len(sequences) + 1)) == sequences


@contextmanager
def refusing(edge: Edge, operation: str, when: str = "1") -> Iterator[None]:
    """Let the store refuse an operation on its jobs."""
    with closing(sqlite3.connect(edge.config.store, isolation_level=None)) as connection:
        connection.execute(
            f"CREATE TRIGGER refusing BEFORE {operation} ON jobs WHEN {when}"
            " BEGIN SELECT RAISE(ABORT, 'no space left'); END"
        )
        yield
        connection.execute("DROP TRIGGER refusing")


def test_one_change_that_cannot_be_written_stops_no_other_of_the_same_look(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    names = ("first", "odd", "last")
    for name in names:
        edge.send(name)
        edge.wait(name, S.QUEUED)
    with refusing(edge, "UPDATE", "NEW.name = 'odd'"):
        with edge.scheduling.pause_looks() as arrived:
            assert arrived.wait(10)
            edge.until(lambda: len(edge.scheduling.calls[-1][1]) == 3)  # one look at all of them
            for entry in edge.scheduling.entries:
                entry.state = NativeState.HELD
        edge.wait("first", S.HELD)
        edge.wait("last", S.HELD)
        assert "no space left" in edge.wait_alarm("store")
        assert S.QUEUED is edge.job("odd").state
    edge.wait("odd", S.HELD)
    edge.wait_alarm("store", cleared=True)


def test_what_somebody_wants_is_not_acted_upon_before_it_is_written_and_not_forgotten(
    edge: Edge, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.control._LOOK_ANYWAY_S", 0.1)
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)
    with refusing(edge, "UPDATE OF intent"):
        edge.ask("hold")
        edge.until(lambda: "which failed and will be tried again: " in caplog.text)
        edge.wait_looks(3)
        assert 0 == edge.scheduling.count("hold")
        assert Intent.RUN is edge.job().intent
    edge.wait("job", S.HELD)
