"""What people ask of jobs, in every state: cancel, hold, release, retry, report."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from scripted import Edge, ScriptedTransfer

from edgecore import batch
from edgecore.config import Limits
from edgecore.control import objection
from edgecore.models import Intent, Job, JobDefinition, NativeState, Option, Parameter, Refusal
from edgecore.models import JobState as S

pytestmark = pytest.mark.slow


def waiting(edge: Edge) -> None:
    """Have a job that waits in the batch system."""
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)


def in_lane(edge: Edge, name: str) -> None:
    """Wait until something waits in a lane."""
    engine = edge.balsam._engine
    assert engine is not None
    edge.until(lambda: bool(engine._crew.lanes[name]._waiting))


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


def test_a_job_that_waits_for_its_place_is_cancelled_at_once(edge: Edge) -> None:
    edge.config = evolve(edge.config, limits=Limits(max_queued=1))
    waiting(edge)
    edge.send("next")
    edge.wait("next", S.PREPROCESSED)
    in_lane(edge, "submitting")
    edge.ask("cancel", "next")
    edge.wait("next", S.JOB_CANCELLED)
    assert S.QUEUED is edge.job().state


def test_a_job_that_waits_behind_a_slow_transfer_is_cancelled_at_once(edge: Edge) -> None:
    edge.config = evolve(edge.config, limits=Limits(staging=1))
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/x")
    assert edge.transfer.moving.wait(10)
    edge.send("next", input_url=f"file://{edge.site.base}/data/x")
    edge.wait("next", S.CREATED)
    in_lane(edge, "staging")
    edge.ask("cancel", "next")
    edge.wait("next", S.JOB_CANCELLED)
    assert S.CREATED is edge.job().state
    assert 1 == len(edge.transfer.fetched)


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
    process = edge.wait_entry().process
    assert process is not None
    edge.until(lambda: process.poll() is not None)  # the script says that it ends, and then ends


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


def test_a_queued_job_counts_as_cancelled_only_when_the_batch_system_was_asked(edge: Edge) -> None:
    waiting(edge)
    entry = edge.wait_entry()
    edge.scheduling.deaf = {"cancel"}
    edge.ask("cancel")
    edge.until(lambda: edge.scheduling.count("cancel") >= 3)
    assert S.QUEUED is edge.job().state
    assert batch.ABSTAINED == edge.scheduling.run_again(entry)  # it cannot start any more
    edge.scheduling.deaf = set()
    edge.wait("job", S.JOB_CANCELLED)
    assert NativeState.ENDED is entry.state


def test_a_job_that_is_not_listed_at_the_moment_is_cancelled_in_the_batch_system_too(edge: Edge) -> None:
    edge.config = evolve(edge.config, timing=evolve(edge.config.timing, lost_after_s=3600))
    waiting(edge)
    edge.wait_entry().listed = False
    edge.ask("cancel")
    cancelled = edge.wait("job", S.JOB_CANCELLED)
    assert cancelled.attempt is not None
    assert ("cancel", (cancelled.attempt.tag,)) in edge.scheduling.calls


def test_a_cancel_is_not_taken_back_by_a_release_that_comes_with_it(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send(job_id="mine")
    edge.wait("job", S.QUEUED)
    edge.site.send(*({"command": command, "job_id": "mine"} for command in ("cancel", "release")))
    edge.wait("job", S.JOB_CANCELLED)


@pytest.mark.parametrize("command", ["hold", "cancel"])
def test_a_retry_takes_back_what_was_wanted_of_a_job_before_it_failed(edge: Edge, command: str) -> None:
    edge.scheduling.open_gate.clear()
    edge.scheduling.refuse(Refusal.PERMANENT, "bad account")
    edge.start()
    edge.send()
    edge.wait("job", S.SUBMITTING)
    edge.ask(command)
    edge.until(lambda: edge.job().intent is not Intent.RUN)
    edge.scheduling.open_gate.set()
    edge.wait("job", S.JOB_FAILED)
    edge.ask("retry")
    edge.wait("job", S.JOB_FINISHED)
    assert Intent.RUN is edge.job().intent


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


def test_a_lost_job_is_not_retried_by_its_sender_who_cannot_know_that_nothing_of_it_lives(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    edge.start()
    edge.send(application="long", job_id="mine")
    edge.wait("job", S.RUNNING)
    edge.wait_entry().listed = False
    edge.wait("job", S.LOST)
    edge.tell("hold", "mine")
    edge.until(lambda: edge.job().intent is Intent.HELD)
    edge.tell("retry", "mine")
    edge.until(lambda: "only an operator can know" in caplog.text)
    edge.wait_looks(2)
    job = edge.job()
    assert S.LOST is job.state
    assert Intent.HELD is job.intent
    assert {job.id: 1} == edge.site.starts()
    edge.ask("cancel")
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


def test_a_hold_whose_answer_was_lost_was_ours_and_can_be_released(edge: Edge) -> None:
    waiting(edge)
    edge.scheduling.lost = {"hold"}
    edge.ask("hold")
    edge.wait("job", S.HELD)
    edge.until(lambda: attempt(edge).held)
    edge.ask("release")
    edge.wait("job", S.QUEUED, times=2)


def test_a_hold_that_was_carried_out_and_not_noted_before_a_kill_is_ours(edge: Edge) -> None:
    waiting(edge)
    edge.ask("hold")
    edge.wait("job", S.HELD)
    edge.stop()
    with closing(sqlite3.connect(edge.config.store)) as connection, connection:
        connection.execute("UPDATE attempts SET held = 0")
    edge.start()
    edge.until(lambda: attempt(edge).held)
    edge.ask("release")
    edge.wait("job", S.QUEUED, times=2)


def test_a_release_that_the_batch_system_does_not_hear_is_asked_again(edge: Edge) -> None:
    waiting(edge)
    edge.ask("hold")
    edge.wait("job", S.HELD)
    edge.scheduling.deaf = {"release"}
    edge.ask("release")
    edge.until(lambda: edge.scheduling.count("release") >= 2)
    assert attempt(edge).held
    edge.scheduling.deaf = set()
    edge.wait("job", S.QUEUED, times=2)


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
    edge.wait_looks()
    assert 0 == edge.scheduling.count("hold")
    assert not attempt(edge).held
    edge.ask("release")
    edge.until(lambda: edge.job().intent is Intent.RUN)
    edge.scheduling.start(edge.wait_entry())
    edge.wait("job", S.JOB_FINISHED)


def test_a_batch_system_that_cannot_hold_is_not_asked_for_what_was_to_be_held_before(edge: Edge) -> None:
    edge.scheduling.can_hold = edge.scheduling.auto = False
    edge.scheduling.open_gate.clear()
    edge.start()
    edge.send()
    assert edge.scheduling.at_gate.acquire(timeout=10)
    edge.ask("hold")
    edge.until(lambda: edge.job().intent is Intent.HELD)
    edge.scheduling.open_gate.set()
    edge.wait("job", S.QUEUED)
    edge.wait_looks(4)
    assert 0 == edge.scheduling.count("hold")
    edge.scheduling.start(edge.wait_entry())
    edge.wait("job", S.EXECUTION_FINISHED)
    edge.ask("release")
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


# ---------------------------------------------------------------------- a retry from the start


def wrong_input(edge: Edge) -> Path:
    """Have a job that failed for what stands in its input; answers the file to correct."""
    edge.register("picky", parameters={"events": Parameter(type="integer")})
    edge.start()
    edge.send(application="picky", job_id="mine", **edge.input("job", events="many"))
    edge.wait("job", S.JOB_FAILED)
    assert S.PREPROCESS_FAILED is edge.job().failed_state
    return edge.site.base / "data/job/app.cfg"


@pytest.mark.slow
def test_a_retry_uses_what_was_staged_in_and_one_from_the_start_fetches_what_was_corrected(
    edge: Edge,
) -> None:
    wrong_input(edge).write_text("events = 5\n")
    edge.ask("retry")
    edge.wait("job", S.JOB_FAILED, times=2)
    assert "many" in edge.job().message
    edge.ask("retry", from_start=True)
    edge.wait("job", S.JOB_FINISHED)
    again = edge.states()[-edge.states()[::-1].index("JOB_FAILED") :]
    assert ["CREATED", "STAGED_IN", "PREPROCESSED"] == again[:3]


@pytest.mark.slow
def test_a_sender_who_corrected_the_input_retries_from_the_start(edge: Edge) -> None:
    wrong_input(edge).write_text("events = 5\n")
    edge.tell("retry", "mine", from_start=True)
    edge.wait("job", S.JOB_FINISHED)


@pytest.mark.slow
def test_a_retry_from_the_start_reads_options_anew_and_makes_a_further_attempt(edge: Edge) -> None:
    edge.config = evolve(
        edge.config, scheduling=evolve(edge.config.scheduling, options={"constraint": Option(type="string")})
    )
    edge.scheduling.refuse(Refusal.PERMANENT, "Invalid feature specification")
    edge.start()
    more = edge.input("job", constraint="knll") | {"config_file": None, "scheduler_config": "app.cfg"}
    edge.send(**more)
    edge.wait("job", S.JOB_FAILED)
    (edge.site.base / "data/job/app.cfg").write_text("constraint = knl\n")
    edge.ask("retry", from_start=True)
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert finished.plan is not None
    assert (2, {"constraint": "knl"}) == (finished.attempt.number, finished.plan.options)
    assert {finished.id: 1} == edge.site.starts()


@pytest.mark.parametrize(
    ("command", "state", "words"),
    [
        ("retry", S.LOST, "it is LOST; a retry from the start is for JOB_FAILED"),
        ("retry", S.SUBMIT_DISABLED, "it is SUBMIT_DISABLED; a retry from the start is for JOB_FAILED"),
        ("retry", S.JOB_FAILED, None),
        ("cancel", S.QUEUED, "from_start belongs to a retry, not to a cancel"),
        ("report", S.QUEUED, "from_start belongs to a retry, not to a report"),
    ],
)
def test_only_a_retry_of_a_failed_job_begins_at_the_start(command: str, state: S, words: str | None) -> None:
    definition = JobDefinition(name="job", application="a", site="here")
    job = Job(id=1, owner="alice", definition=definition, state=state)
    assert words == objection(command, job, from_start=True)
