"""What a job's state may follow from: listings, silence, tokens and native ends."""

from __future__ import annotations

import logging

import pytest
from attrs import evolve
from scripted import Edge, Entry

from edgecore import batch
from edgecore.clock import Clock
from edgecore.models import Job, NativeState
from edgecore.models import JobState as S

FOR_EVER_S = 3600.0


def timing(edge: Edge, **more: float) -> None:
    edge.config = evolve(edge.config, timing=evolve(edge.config.timing, **more))


def running(edge: Edge) -> Entry:
    """Have a long job running; answers its entry in the batch system."""
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    entry = edge.wait_entry()
    edge.until(lambda: token(edge) == "running" and bool(edge.site.starts()))
    return entry


def queued(edge: Edge) -> Entry:
    """Have a job waiting in the batch system; answers its entry there."""
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)
    return edge.wait_entry()


def token(edge: Edge, attempt: int = 1) -> str:
    found = batch.run_directory(edge.config.work_directory, edge.job().id, attempt).token()
    return str(found.state) if found is not None else "none"


def _missed(edge: Edge) -> int | None:
    attempt = edge.job().attempt
    return attempt.missed if attempt is not None else None


class Later(Clock):
    """Be an hour and a bit ahead."""

    def now(self) -> int:
        return super().now() + 3_700_000_000


def attempt_number(job: Job) -> int:
    assert job.attempt is not None
    return job.attempt.number


# ------------------------------------------------------------------------------------ silence


def test_a_job_that_is_missing_from_some_listings_stays_as_it_was(edge: Edge) -> None:
    timing(edge, lost_after_s=FOR_EVER_S)
    entry = queued(edge)
    before = edge.states()
    entry.listed = False
    edge.wait_looks(4)
    entry.listed = True
    edge.wait_looks(4)
    assert before == edge.states()
    assert "ready" == token(edge)
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)
    assert {edge.job().id: 1} == edge.site.starts()


def test_misses_count_from_the_last_listing_that_showed_the_job(edge: Edge) -> None:
    timing(edge, lost_after_s=FOR_EVER_S)
    entry = queued(edge)
    entry.listed = False
    edge.until(lambda: _missed(edge) is not None)
    entry.listed = True
    edge.until(lambda: _missed(edge) is None)


def test_what_was_missed_before_a_restart_does_not_count(edge: Edge) -> None:
    timing(edge, lost_after_s=FOR_EVER_S)
    entry = queued(edge)
    entry.listed = False
    edge.until(lambda: _missed(edge) is not None)
    edge.stop()
    edge.clock = Later()
    edge.start()
    edge.wait_looks(4)
    assert S.QUEUED is edge.job().state
    assert "ready" == token(edge)
    missed = _missed(edge)
    assert missed is not None
    assert missed > edge.clock.now() - 1_000_000 * FOR_EVER_S
    entry.listed = True
    edge.until(lambda: _missed(edge) is None)


def test_a_queued_job_that_nobody_knows_for_long_is_revoked_and_submitted_anew(edge: Edge) -> None:
    entry = queued(edge)
    edge.scheduling.auto = True
    entry.listed = False
    finished = edge.wait("job", S.JOB_FINISHED)
    assert 2 == attempt_number(finished)
    assert "revoked" == token(edge, 1)
    # It was only a slow batch system: the old script starts now, and abstains.
    assert batch.ABSTAINED == edge.scheduling.run_again(entry)
    assert {finished.id: 1} == edge.site.starts()
    assert 0 == finished.retries_used


def test_a_running_job_that_nobody_knows_is_lost_with_an_alarm_and_found_again(edge: Edge) -> None:
    entry = running(edge)
    entry.listed = False
    lost = edge.wait("job", S.LOST)
    assert "the batch system does not know it" in lost.message
    assert "LOST" in edge.wait_alarm(f"job {lost.id}")
    entry.listed = True
    edge.wait("job", S.RUNNING, times=2)
    edge.wait_alarm(f"job {lost.id}", cleared=True)
    assert 1 == len([subject for subject, _ in edge.heard.alarms if subject == f"job {lost.id}"])


def test_a_lost_job_is_ended_by_its_token(edge: Edge) -> None:
    release = edge.site.base / "release"
    patient = edge.program("patient", f'while [ ! -e "{release}" ]; do sleep 0.02; done; exit 5')
    edge.register("patient", executable=patient, arguments=())
    edge.start()
    edge.send(application="patient")
    edge.wait("job", S.RUNNING)
    edge.wait_entry().listed = False
    lost = edge.wait("job", S.LOST)
    release.touch()
    failed = edge.wait("job", S.EXECUTION_FAILED)
    assert "exit code 5" == failed.message
    edge.wait_alarm(f"job {lost.id}", cleared=True)


def test_a_lost_job_stays_lost_until_there_is_evidence(edge: Edge) -> None:
    running(edge).listed = False
    edge.wait("job", S.LOST)
    edge.wait_looks(5)
    assert S.LOST is edge.job().state
    edge.restart()
    edge.wait_looks(3)
    assert S.LOST is edge.job().state
    assert 1 == edge.states().count("LOST")


def test_an_unlisted_execution_whose_walltime_is_long_over_is_interrupted(edge: Edge) -> None:
    timing(edge, walltime_margin_s=0.0)
    entry = running(edge)
    entry.listed = False
    edge.wait("job", S.LOST)
    edge.stop()
    edge.clock = Later()
    edge.start()
    assert "its walltime has passed" in edge.wait("job", S.EXECUTION_FAILED).message
    assert "stopped" == token(edge)


def test_where_no_walltime_is_enforced_an_unlisted_execution_stays_lost(edge: Edge) -> None:
    timing(edge, walltime_margin_s=0.0)
    edge.scheduling.enforces_walltime = False
    edge.clock = Later()  # by which every execution has begun more than its walltime ago
    entry = running(edge)
    entry.listed = False
    edge.wait("job", S.LOST)
    edge.wait_looks(4)
    assert S.LOST is edge.job().state
    assert "running" == token(edge)
    entry.listed = True
    edge.wait("job", S.RUNNING, times=2)


# --------------------------------------------------------------------------------- native ends


def test_a_native_end_without_an_end_record_is_an_interruption_after_a_grace(edge: Edge) -> None:
    timing(edge, grace_s=FOR_EVER_S)
    entry = running(edge)
    edge.scheduling.end(entry, "NODE_FAIL", 1)
    edge.wait_looks(4)
    assert S.RUNNING is edge.job().state
    edge.stop()
    timing(edge, grace_s=0.1)
    edge.start()
    failed = edge.wait("job", S.EXECUTION_FAILED)
    assert "interrupted: NODE_FAIL" == failed.message
    assert failed.attempt is not None
    assert (1, "NODE_FAIL") == (failed.attempt.exit_code, failed.attempt.reason)
    assert "stopped" == token(edge)


def test_an_interrupted_execution_is_followed_by_a_new_attempt_where_retries_are_left(edge: Edge) -> None:
    edge.start()
    edge.send(application="long", retries=1)
    edge.wait("job", S.RUNNING)
    edge.program("ledger.sh", "exit 0")  # the next attempt is quick
    edge.scheduling.end(edge.wait_entry(), "PREEMPTED")
    finished = edge.wait("job", S.JOB_FINISHED)
    assert 2 == attempt_number(finished)


def test_a_token_that_says_the_end_counts_although_the_native_state_is_unknown(edge: Edge) -> None:
    entry = queued(edge)
    entry.state = NativeState.UNKNOWN
    edge.wait_looks(3)
    assert S.QUEUED is edge.job().state
    assert 0 == edge.scheduling.run_again(entry)
    edge.wait("job", S.JOB_FINISHED)
    assert NativeState.UNKNOWN is entry.state


def test_an_end_record_wins_over_the_batch_systems_own_word(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    entry = edge.wait_entry()
    assert 0 == edge.scheduling.run_again(entry)
    edge.scheduling.end(entry, "NODE_FAIL", 1)
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert 0 == finished.attempt.exit_code


def test_a_job_that_ended_and_was_forgotten_while_we_were_away_is_known_by_its_token(edge: Edge) -> None:
    timing(edge, lost_after_s=FOR_EVER_S)
    entry = queued(edge)
    edge.stop()
    assert 0 == edge.scheduling.run_again(entry)
    entry.listed = False
    edge.start()
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert finished.attempt.ended is not None


def test_a_job_that_is_listed_as_running_for_ever_is_ended_by_its_token(edge: Edge) -> None:
    timing(edge, lost_after_s=0.3)
    entry = queued(edge)
    with edge.scheduling._lock:
        edge.scheduling.start(entry)
        process, entry.process = entry.process, None  # nobody tells the batch system of its end
    edge.wait("job", S.JOB_FINISHED)
    assert process is not None
    assert 0 == process.wait()
    assert NativeState.RUNNING is entry.state
    assert {edge.job().id: 1} == edge.site.starts()


def test_an_end_that_the_batch_system_is_about_to_tell_waits_for_its_reason(edge: Edge) -> None:
    timing(edge, lost_after_s=0.1, grace_s=FOR_EVER_S)
    entry = running(edge)
    with edge.scheduling._lock:
        process, entry.process = entry.process, None
    assert process is not None
    process.terminate()
    assert 0 != process.wait()
    edge.until(lambda: token(edge) == "ended")
    edge.wait_looks(10)
    assert S.RUNNING is edge.job().state
    edge.scheduling.end(entry, "the walltime is over")
    edge.wait("job", S.JOB_FAILED)
    assert "the walltime is over" in edge.job().message


def test_a_job_that_the_batch_system_ends_before_its_start_fails_with_the_reason(edge: Edge) -> None:
    entry = queued(edge)
    edge.scheduling.end(entry, "removed by alice")
    failed = edge.wait("job", S.EXECUTION_FAILED)
    assert "ended before it started: removed by alice" == failed.message
    assert "revoked" == token(edge)
    assert batch.ABSTAINED == edge.scheduling.run_again(entry)
    assert {} == edge.site.starts()


def test_an_end_under_a_reused_batch_id_says_nothing_about_our_job(edge: Edge) -> None:
    entry = running(edge)
    # The id now belongs to a job of somebody else, which has ended.
    stranger = evolve(entry, process=None, state=NativeState.ENDED, exit_code=0)
    stranger.submission = evolve(entry.submission, tag="theirs")
    entry.listed = False
    edge.scheduling.entries.append(stranger)
    edge.wait("job", S.LOST)
    edge.wait_looks()
    assert S.LOST is edge.job().state
    assert "running" == token(edge)


def test_a_second_start_by_the_batch_system_abstains(edge: Edge) -> None:
    entry = running(edge)
    assert batch.ABSTAINED == edge.scheduling.run_again(entry)
    assert S.RUNNING is edge.job().state
    assert {edge.job().id: 1} == edge.site.starts()


def test_a_restartable_application_goes_on_under_the_same_attempt(edge: Edge) -> None:
    edge.register("long", seconds=60, restartable=True)
    entry = running(edge)
    edge.scheduling.end(entry)
    entry.state = NativeState.QUEUED  # preempted and put back by the batch system
    edge.wait("job", S.QUEUED)
    edge.program("ledger.sh", "exit 0")
    edge.scheduling.start(entry)
    finished = edge.wait("job", S.JOB_FINISHED)
    assert 1 == attempt_number(finished)


def test_a_run_directory_that_cannot_be_seen_is_lost_and_comes_back(edge: Edge) -> None:
    entry = running(edge)
    run = batch.run_directory(edge.config.work_directory, edge.job().id, 1).path
    hidden = run.with_name("hidden")
    run.rename(hidden)
    entry.listed = False
    assert "is the file system mounted?" in edge.wait("job", S.LOST).message
    hidden.rename(run)
    entry.listed = True
    edge.wait("job", S.RUNNING, times=2)


# ------------------------------------------------------------------------ what a listing says


def test_a_new_reason_why_a_job_waits_is_noted_without_a_new_status(edge: Edge) -> None:
    entry = queued(edge)
    before = edge.job()
    for reason in ("Priority", "BadConstraints"):
        entry.reason = reason
        edge.until(lambda wanted=reason: edge.job().message == wanted)  # type: ignore[misc]
    assert before.sequence == edge.job().sequence
    assert ["QUEUED"] == edge.states()[before.sequence - 1 :]


def test_a_reason_that_is_no_text_is_told_as_far_as_it_can_be_and_disturbs_no_other_job(edge: Edge) -> None:
    entry = queued(edge)
    edge.send("other")
    edge.wait("other", S.QUEUED)
    entry.reason = "waits for \udcff"
    edge.until(lambda: edge.job().message == "waits for ?")
    edge.scheduling.end(entry, "removed by \udcff")
    edge.scheduling.start(edge.wait_entry(2))
    failed = edge.wait("job", S.EXECUTION_FAILED)
    assert "ended before it started: removed by ?" == failed.message
    assert failed.attempt is not None
    assert "removed by ?" == failed.attempt.reason
    edge.wait("other", S.JOB_FINISHED)


# ------------------------------------------------------------------------ a silent batch system


def test_where_nothing_can_be_found_by_tag_only_unclear_submissions_wait(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    edge.scheduling.deaf = {"find"}  # accounting is down, the queue answers
    entry = queued(edge)
    edge.scheduling.lose_request()
    edge.send("unclear")
    edge.wait("unclear", S.SUBMITTING)
    edge.until(lambda: edge.scheduling.count("find") >= 2)
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)
    assert S.SUBMITTING is edge.job("unclear").state
    assert "1 jobs were not to be found by tag" in caplog.text
    edge.scheduling.auto, edge.scheduling.deaf = True, set()
    assert 2 == attempt_number(edge.wait("unclear", S.JOB_FINISHED))


def test_a_batch_system_that_is_down_for_long_costs_one_warning_and_one_alarm(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    entry = queued(edge)
    edge.scheduling.down = "slurm_load_jobs error: Unable to contact slurm controller"
    assert "Unable to contact" in edge.wait_alarm("batch system")
    edge.wait_looks(4)
    before = edge.states()
    edge.scheduling.start(entry)  # it starts and ends while nobody can see it
    edge.send("other", **edge.input("other"))
    edge.wait("other", S.PREPROCESSED)  # intake and staging go on
    assert before == edge.states()
    edge.scheduling.auto = True
    edge.scheduling.down = ""
    edge.wait_alarm("batch system", cleared=True)
    edge.wait("job", S.JOB_FINISHED)
    edge.wait("other", S.JOB_FINISHED)
    warnings = [r for r in caplog.records if "the batch system does not answer" in r.message]
    assert 1 == len(warnings)
    assert 1 == len([subject for subject, _ in edge.heard.alarms if subject == "batch system"])


def test_one_listing_serves_all_jobs(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.site.send(*(edge.site.job(name=f"job-{number}", application="quick") for number in range(20)))
    edge.wait_entry(20)
    for number in range(20):
        edge.wait(f"job-{number}", S.QUEUED)
    before = len(edge.scheduling.calls)
    edge.wait_looks(3)
    assert all(len(tags) == 20 for _, tags in edge.scheduling.calls[before:])


def test_many_requests_at_once_cost_few_listings(edge: Edge) -> None:
    timing(edge, poll_interval_s=FOR_EVER_S)
    edge.scheduling.auto = False
    edge.start()
    edge.site.send(*(edge.site.job(name=f"job-{number}", application="quick") for number in range(30)))
    edge.wait_entry(30)
    for number in range(30):
        edge.wait(f"job-{number}", S.SUBMITTED)
    with edge.scheduling.pause_looks() as arrived:
        for number in range(30):
            edge.ask("cancel", f"job-{number}")
        assert arrived.wait(10)
        edge.until(lambda: all(job.intent == "cancelled" for job in edge.site.jobs()))
    for number in range(30):
        edge.wait(f"job-{number}", S.JOB_CANCELLED)
    assert edge.scheduling.count("observe") <= 5
    assert edge.scheduling.count("cancel") <= 5
