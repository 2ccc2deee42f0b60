"""What people ask of jobs, in every state: cancel, hold, release, retry, report."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future
from typing import Any

import pytest
from attrs import evolve
from scripted import Edge, ScriptedTransfer

from edgecore import batch
from edgecore.config import Limits
from edgecore.control import objection
from edgecore.models import Intent, Job, JobDefinition, NativeState, Refusal
from edgecore.models import JobState as S
from edgecore.reader import Reader
from edgecore.store import Desk


def waiting(edge: Edge) -> None:
    """Have a job that waits in the batch system."""
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)


def attempt(edge: Edge) -> Any:
    return edge.job().attempt


# ------------------------------------------------------------------------------------- cancel


def test_a_job_that_waits_for_its_place_is_cancelled_without_a_submission(edge: Edge) -> None:
    edge.config = evolve(edge.config, limits=Limits(max_queued=1))
    edge.scheduling.auto = False
    edge.start()
    edge.send("first")
    edge.wait("first", S.QUEUED)
    edge.send()
    edge.wait("job", S.PREPROCESSED)
    edge.ask("cancel", "job")
    edge.scheduling.start(edge.wait_entry())
    edge.wait("first", S.JOB_FINISHED)
    edge.wait("job", S.JOB_CANCELLED)
    assert 1 == len(edge.scheduling.entries)


def test_a_job_that_waits_for_a_passing_refusal_is_cancelled_at_once(edge: Edge) -> None:
    edge.config = evolve(edge.config, retry=evolve(edge.config.retry, first_s=600, longest_s=600))
    edge.scheduling.refuse(Refusal.TRANSIENT, "too many jobs")
    edge.start()
    edge.send()
    edge.wait("job", S.PREPROCESSED, times=2)
    edge.ask("cancel")
    edge.wait("job", S.JOB_CANCELLED)


def test_a_cancel_stops_a_slow_transfer_into_the_site(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/x")
    assert edge.transfer.moving.wait(10)
    edge.ask("cancel")
    edge.wait("job", S.JOB_CANCELLED)
    assert ["CREATED", "JOB_CANCELLED"] == edge.states()


def test_a_cancel_stops_a_slow_transfer_out_of_the_site(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    edge.send(output_url=edge.output("job"))
    assert edge.transfer.moving.wait(10)
    edge.ask("cancel")
    edge.wait("job", S.JOB_CANCELLED)
    assert "STAGED_OUT" not in edge.states()


def test_a_queued_job_is_revoked_and_taken_out_of_the_batch_system(edge: Edge) -> None:
    waiting(edge)
    edge.ask("cancel")
    cancelled = edge.wait("job", S.JOB_CANCELLED)
    entry = edge.wait_entry()
    edge.until(lambda: entry.state is NativeState.ENDED)
    assert batch.ABSTAINED == edge.scheduling.run_again(entry)
    assert {} == edge.site.starts()
    token = batch.run_directory(edge.config.work_directory, cancelled.id, 1).token()
    assert token is not None
    assert batch.TokenState.REVOKED is token.state


def test_a_running_job_is_cancelled_only_when_it_has_ended(edge: Edge) -> None:
    stubborn = edge.program(
        "stubborn", f'trap "" TERM; while [ ! -e "{edge.site.base}/go" ]; do sleep 0.02; done'
    )
    edge.register("stubborn", executable=stubborn, arguments=())
    edge.start()
    edge.send(application="stubborn")
    edge.wait("job", S.RUNNING)
    edge.ask("cancel")
    edge.until(lambda: edge.scheduling.count("cancel") >= 2)
    assert S.RUNNING is edge.job().state
    (edge.site.base / "go").touch()
    edge.wait("job", S.JOB_CANCELLED)
    assert "EXECUTION_FINISHED" == edge.states()[-2]
    assert "POSTPROCESSED" not in edge.states()


def test_a_cancelled_execution_ends_with_its_exit_code_and_is_not_retried(edge: Edge) -> None:
    edge.start()
    edge.send(application="long", retries=5)
    edge.wait("job", S.RUNNING)
    edge.ask("cancel")
    cancelled = edge.wait("job", S.JOB_CANCELLED)
    assert cancelled.attempt is not None
    assert (1, 143) == (cancelled.attempt.number, cancelled.attempt.exit_code)
    entry = edge.wait_entry()
    assert entry.process is not None
    assert entry.process.poll() is not None


def test_a_cancel_that_the_batch_system_does_not_hear_is_asked_again(edge: Edge) -> None:
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.scheduling.down = "slurm_kill_job error: Unable to contact slurm controller"
    edge.ask("cancel")
    edge.until(lambda: edge.job().intent is Intent.CANCELLED)
    edge.wait_looks(2)
    assert S.RUNNING is edge.job().state
    edge.scheduling.down = ""
    edge.wait("job", S.JOB_CANCELLED)


def test_a_cancel_during_an_unclear_submission_ends_the_job_and_nothing_runs(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.scheduling.open_gate.clear()
    edge.scheduling.lose_answer()
    edge.start()
    edge.send()
    assert edge.scheduling.at_gate.acquire(timeout=10)
    edge.ask("cancel")
    edge.until(lambda: edge.job().intent is Intent.CANCELLED)
    edge.scheduling.open_gate.set()
    edge.wait("job", S.JOB_CANCELLED)
    assert batch.ABSTAINED == edge.scheduling.run_again(edge.wait_entry())
    assert {} == edge.site.starts()


def test_a_lost_job_is_not_cancelled_by_its_sender_before_there_is_evidence(edge: Edge) -> None:
    edge.start()
    edge.send(application="long", job_id="mine")
    edge.wait("job", S.RUNNING)
    entry = edge.wait_entry()
    entry.listed = False
    edge.wait("job", S.LOST)
    edge.tell("cancel", "mine")
    edge.until(lambda: edge.job().intent is Intent.CANCELLED)
    edge.wait_looks(3)
    assert S.LOST is edge.job().state
    entry.listed = True
    edge.wait("job", S.JOB_CANCELLED)


def test_an_operator_who_knows_better_cancels_a_lost_job(edge: Edge) -> None:
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.scheduling.end(edge.wait_entry())
    edge.wait_entry().listed = False
    lost = edge.wait("job", S.LOST)
    edge.ask("cancel")
    edge.wait("job", S.JOB_CANCELLED)
    edge.wait_alarm(f"job {lost.id}", cleared=True)


def test_an_operator_who_knows_better_retries_a_lost_job(edge: Edge) -> None:
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.scheduling.end(edge.wait_entry())
    edge.wait_entry().listed = False
    lost = edge.wait("job", S.LOST)
    edge.program("ledger.sh", "exit 0")
    edge.ask("retry")
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert 2 == finished.attempt.number
    after = edge.states()[edge.states().index("LOST") :]
    assert ["LOST", "EXECUTION_FAILED", "PREPROCESSED"] == after[:3]
    edge.wait_alarm(f"job {lost.id}", cleared=True)


def test_a_retry_of_a_lost_job_is_not_undone_by_a_look_on_its_way(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.scheduling.end(edge.wait_entry())
    edge.wait_entry().listed = False
    edge.wait("job", S.LOST)
    edge.program("ledger.sh", "exit 0")
    with edge.scheduling.pause_looks() as arrived:
        assert arrived.wait(10)
        edge.ask("retry")  # while a look is on its way
        edge.until(lambda: "as asked" in caplog.text)
    edge.wait("job", S.JOB_FINISHED)


def test_a_settled_job_cannot_be_cancelled(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    edge.ask("cancel")
    edge.until(lambda: "it is JOB_FINISHED already" in caplog.text)
    assert S.JOB_FINISHED is edge.job().state


# --------------------------------------------------------------------------- hold and release


def test_a_job_that_is_held_before_its_submission_waits_until_it_is_released(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/x")
    assert edge.transfer.moving.wait(10)
    edge.ask("hold")
    edge.until(lambda: edge.job().intent is Intent.HELD)
    edge.stop()
    edge.transfer.slow = False
    edge.start()
    edge.send("other")
    edge.wait("other", S.JOB_FINISHED)
    assert ["CREATED"] == edge.states()
    edge.ask("release")
    edge.wait("job", S.JOB_FINISHED)


def test_a_queued_job_is_held_in_the_batch_system_and_released_there(edge: Edge) -> None:
    waiting(edge)
    edge.ask("hold")
    edge.wait("job", S.HELD)
    assert attempt(edge).held
    assert 1 == edge.scheduling.count("hold")
    edge.ask("release")
    edge.wait("job", S.QUEUED, times=2)
    assert not attempt(edge).held
    assert 1 == edge.scheduling.count("release")


def test_we_remember_over_a_restart_that_the_hold_was_ours(edge: Edge) -> None:
    waiting(edge)
    edge.ask("hold")
    edge.wait("job", S.HELD)
    edge.restart()
    edge.ask("release")
    edge.wait("job", S.QUEUED, times=2)


def test_what_somebody_else_holds_is_not_released(edge: Edge) -> None:
    waiting(edge)
    entry = edge.wait_entry()
    entry.state = NativeState.HELD
    edge.wait("job", S.HELD)
    edge.ask("release")
    edge.wait_looks(4)
    assert 0 == edge.scheduling.count("release")
    assert S.HELD is edge.job().state


def test_a_batch_system_that_cannot_hold_says_so_and_the_job_goes_on(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    edge.scheduling.can_hold = False
    waiting(edge)
    edge.ask("hold")
    edge.until(lambda: "this batch system cannot hold" in caplog.text)
    assert not attempt(edge).held
    edge.ask("release")
    edge.until(lambda: edge.job().intent is Intent.RUN)
    edge.scheduling.start(edge.wait_entry())
    edge.wait("job", S.JOB_FINISHED)


def test_a_held_job_that_is_cancelled_cannot_be_held_again(edge: Edge) -> None:
    job = Job(
        id=1,
        owner="alice",
        definition=JobDefinition(name="n", application="a", site="s"),
        state=S.RUNNING,
        intent=Intent.CANCELLED,
    )
    assert "it is being cancelled" == objection("hold", job)
    assert "it is being cancelled" == objection("release", job)
    assert objection("cancel", job) is None


# ----------------------------------------------------------------------------- control messages


@pytest.mark.parametrize("by", ["the sender's id", "our id"])
def test_a_sender_cancels_by_message(edge: Edge, by: str) -> None:
    edge.start()
    edge.send(application="long", **({"job_id": "mine"} if by == "the sender's id" else {}))
    job = edge.wait("job", S.RUNNING)
    edge.tell("cancel", job.public_id)
    edge.wait("job", S.JOB_CANCELLED)


def test_a_request_reaches_only_jobs_of_its_own_sender(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.broker.sender = "alice"
    edge.start()
    edge.send(application="long", job_id="hers")
    job = edge.wait("job", S.RUNNING)
    assert "alice" == job.owner
    edge.broker.sender = "mallory"
    for public_id in ("hers", job.id):
        edge.tell("cancel", public_id)
        edge.until(lambda wanted=public_id: f"mallory asked to cancel job {wanted}, of which" in caplog.text)  # type: ignore[misc]
    assert Intent.RUN is edge.job().intent


def test_two_owners_may_use_one_job_id_and_each_reaches_their_own(edge: Edge) -> None:
    edge.start()
    for owner in ("alice", "bob"):
        edge.broker.sender = owner
        edge.send(f"job-of-{owner}", "long", job_id="1")
        edge.wait(f"job-of-{owner}", S.RUNNING)
    edge.tell("cancel", "1")
    edge.wait("job-of-bob", S.JOB_CANCELLED)
    assert Intent.RUN is edge.job("job-of-alice").intent


def test_a_report_sends_the_present_status_again_under_its_number(edge: Edge) -> None:
    edge.start()
    edge.send(job_id="mine")
    finished = edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: len(edge.broker.sent) == finished.sequence)
    edge.tell("report", "mine")
    edge.until(lambda: len(edge.broker.sent) == finished.sequence + 1)
    again, last = (json.loads(message.body) for message in edge.broker.sent[-2:])
    assert last == again


def test_a_request_follows_the_accepted_job_and_not_a_later_rejected_one(edge: Edge) -> None:
    edge.start()
    edge.send(application="long", job_id="mine")
    edge.wait("job", S.RUNNING)
    edge.send("broken", "no-such-application", job_id="mine")
    edge.until(lambda: edge.job("broken").state is S.JOB_REJECTED)
    edge.tell("cancel", "mine")
    edge.wait("job", S.JOB_CANCELLED)


def test_a_request_is_acknowledged_only_when_it_is_durable(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.start()
    edge.send(application="long", job_id="mine")
    edge.wait("job", S.RUNNING)
    order: list[str] = []
    store_class = type(edge.balsam._engine.store)  # type: ignore[union-attr]
    set_intent = store_class.set_intent

    def slow(self: Any, job_id: int, intent: Intent, *, revive: bool) -> Future[None]:
        future = set_intent(self, job_id, intent, revive=revive)
        future.add_done_callback(lambda _: order.append("durable"))
        return future

    monkeypatch.setattr(store_class, "set_intent", slow)
    edge.broker.on_settle = lambda: order.append("settled")
    edge.tell("cancel", "mine")
    edge.wait("job", S.JOB_CANCELLED)
    edge.until(lambda: "settled" in order)
    assert ["durable", "settled"] == order


# ------------------------------------------------------------------------- operators' requests


def test_requests_made_while_the_service_is_away_are_carried_out_at_its_start(edge: Edge) -> None:
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.stop()
    edge.ask("cancel")
    edge.start()
    edge.wait("job", S.JOB_CANCELLED)
    with Reader(edge.config.store) as reader:
        assert () == reader.requests(0)


def test_a_request_about_no_job_is_logged_and_forgotten(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.start()
    Desk(edge.config.store).request("cancel", 42, asked_by="alice", now=1)
    edge.until(lambda: "alice asked to cancel job 42, which there is not" in caplog.text)


def test_a_cancel_survives_a_kill_of_the_service(edge: Edge) -> None:
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.scheduling.down = "away"
    edge.ask("cancel")
    edge.until(lambda: edge.job().intent is Intent.CANCELLED)
    edge.restart()
    edge.scheduling.down = ""
    edge.wait("job", S.JOB_CANCELLED)
