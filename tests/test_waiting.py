"""What the batch system took and does not start: told at once, borne for a time, then taken back."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from scripted import Edge, Entry

from edgecore import batch
from edgecore.batch import RunDirectory
from edgecore.cli.advice import next_step
from edgecore.clock import Clock
from edgecore.models import Attempt, NativeState
from edgecore.models import JobState as S
from edgecore.watching import Watching

pytestmark = pytest.mark.slow

FOR_EVER_S = 3600.0
REASON = "PartitionNodeLimit"


class Later(Clock):
    """Be an hour and a bit ahead."""

    def now(self) -> int:
        return super().now() + 3_700_000_000


def timing(edge: Edge, **more: Any) -> None:
    edge.config = evolve(edge.config, timing=evolve(edge.config.timing, **more))


def attempt(edge: Edge) -> Attempt:
    found = edge.job().attempt
    assert found is not None
    return found


def token(edge: Edge) -> str:
    found = batch.run_directory(edge.config.work_directory, edge.job().id, 1).token()
    return str(found.state) if found is not None else "none"


def queued(edge: Edge, application: str = "quick", **more: Any) -> Entry:
    """Have a job waiting in the batch system; answers its entry there."""
    edge.scheduling.auto = False
    edge.start()
    edge.send(application=application, **more)
    edge.wait("job", S.QUEUED)
    return edge.wait_entry()


def stuck(edge: Edge, **more: Any) -> Entry:
    """Have a job waiting of which the batch system says that it will never start it."""
    entry = queued(edge, **more)
    entry.reason, entry.never_starts = REASON, True
    return entry


def assert_given_up(edge: Edge, entry: Entry) -> None:
    """Check that the job ended for the reason why it waited, and that nothing of it can start any more."""
    failed = edge.wait("job", S.JOB_FAILED)
    assert S.SUBMIT_FAILED is failed.failed_state
    assert REASON in failed.message
    assert failed.attempt is not None
    assert (1, failed.message) == (failed.attempt.number, failed.attempt.reason)
    assert ["SUBMIT_FAILED", "JOB_FAILED"] == edge.states()[-2:]
    assert "revoked" == token(edge)
    assert NativeState.ENDED is entry.state
    assert batch.ABSTAINED == edge.scheduling.run_again(entry)
    assert {} == edge.site.starts()
    assert 1 == len(edge.scheduling.entries)


# ------------------------------------------------------------------ what will never be started


def test_people_are_told_at_once_of_what_will_never_be_started_and_told_when_that_is_over(edge: Edge) -> None:
    entry = stuck(edge)
    subject = f"job {edge.job().id}"
    assert f"the batch system says that it will never start it: {REASON}" == edge.wait_alarm(subject)
    edge.until(lambda: attempt(edge).stuck is not None)
    assert REASON == edge.job().message
    assert "Correct the cause there" in next_step(edge.job())
    edge.wait_looks()
    assert S.QUEUED is edge.job().state
    assert "" == attempt(edge).given_up
    entry.reason, entry.never_starts = "Priority", False
    edge.wait_alarm(subject, cleared=True)
    edge.until(lambda: attempt(edge).stuck is None)
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)
    assert 0 == edge.scheduling.count("cancel")
    assert 1 == len([each for each, _ in edge.heard.alarms if each == subject])


def test_what_will_never_be_started_is_taken_back_after_a_time_and_not_tried_again(edge: Edge) -> None:
    timing(edge, stuck_after_s=0.1)
    entry = stuck(edge, retries=3)
    assert_given_up(edge, entry)
    edge.wait_alarm(f"job {edge.job().id}", cleared=True)


def test_a_job_that_is_held_with_an_error_is_taken_back_too(edge: Edge) -> None:
    timing(edge, stuck_after_s=0.1)
    entry = queued(edge)
    entry.state, entry.reason, entry.never_starts = NativeState.HELD, f"{REASON}: no such directory", True
    assert_given_up(edge, entry)
    assert "HELD" in edge.states()


def test_since_when_it_waits_is_remembered_through_a_restart(edge: Edge) -> None:
    timing(edge, stuck_after_s=FOR_EVER_S)
    entry = stuck(edge)
    edge.until(lambda: attempt(edge).stuck is not None)
    edge.stop()
    edge.clock = Later()
    edge.heard.alarms.clear()
    edge.start()
    assert_given_up(edge, entry)
    assert REASON in edge.wait_alarm(f"job {edge.job().id}")


def test_a_retry_by_an_operator_submits_what_was_given_up_anew(edge: Edge) -> None:
    timing(edge, stuck_after_s=0.0)
    stuck(edge)
    edge.wait("job", S.JOB_FAILED)
    edge.scheduling.auto = True
    edge.ask("retry")
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert (2, "") == (finished.attempt.number, finished.attempt.given_up)


def test_a_user_may_cancel_what_will_never_be_started(edge: Edge) -> None:
    stuck(edge)
    edge.wait_alarm(f"job {edge.job().id}")
    edge.ask("cancel")
    edge.wait("job", S.JOB_CANCELLED)
    edge.wait_alarm(f"job {edge.job().id}", cleared=True)
    assert "revoked" == token(edge)


# ------------------------------------------------------------------------ what waits for too long


def test_without_a_limit_a_job_waits_as_long_as_it_takes(edge: Edge) -> None:
    queued(edge)
    edge.stop()
    edge.clock = Later()
    edge.start()
    edge.wait_looks()
    assert S.QUEUED is edge.job().state


@pytest.mark.parametrize("state", [NativeState.QUEUED, NativeState.HELD])
def test_a_job_that_waits_longer_than_the_site_allows_is_taken_back(edge: Edge, state: NativeState) -> None:
    timing(edge, overdue_after_s=FOR_EVER_S)
    entry = queued(edge)
    entry.state, entry.reason = state, f"{REASON}, says alice"
    edge.until(lambda: edge.job().message == entry.reason)
    edge.stop()
    edge.clock = Later()
    edge.start()
    assert_given_up(edge, entry)
    assert "longer than this site allows" in edge.job().message


def test_a_hold_that_was_asked_for_here_never_counts(edge: Edge) -> None:
    timing(edge, stuck_after_s=FOR_EVER_S, overdue_after_s=FOR_EVER_S)
    entry = queued(edge)
    edge.ask("hold")
    edge.wait("job", S.HELD)
    entry.reason, entry.never_starts = "JobHeldUser", True
    edge.stop()
    edge.clock = Later()
    edge.start()
    edge.wait_looks()
    assert (S.HELD, None, None, "") == (
        edge.job().state,
        attempt(edge).waiting,
        attempt(edge).stuck,
        attempt(edge).given_up,
    )
    assert [] == edge.heard.alarms
    entry.never_starts = False
    edge.ask("release")
    edge.wait("job", S.QUEUED, times=2)  # from now on it counts, anew
    edge.wait_looks()
    assert S.QUEUED is edge.job().state
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)


# ----------------------------------------------------------------- killed, or overtaken, in between


def given_up_only_in_the_store(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """Give a job up and end the service before anything follows from it."""
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "revoke", _unanswered)
        patched.setattr(Watching, "_cancel", lambda *_: None)
        timing(edge, stuck_after_s=0.0)
        entry = stuck(edge)
        edge.until(lambda: attempt(edge).given_up != "")
        edge.stop()
    assert "ready" == token(edge)
    assert 0 == edge.scheduling.count("cancel")
    return entry


def _unanswered(_: RunDirectory) -> bool:
    raise OSError("the file server does not answer")


def test_what_was_given_up_before_a_kill_is_taken_back_after_it(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = given_up_only_in_the_store(edge, monkeypatch)
    edge.start()
    assert_given_up(edge, entry)


def test_what_was_given_up_and_starts_before_it_is_taken_back_runs_to_its_end(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = given_up_only_in_the_store(edge, monkeypatch)
    edge.register("quick", seconds=0.3)
    edge.scheduling.start(entry)
    edge.start()
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert "" == finished.attempt.given_up
    assert 0 == edge.scheduling.count("cancel")


def test_what_has_just_started_is_not_taken_back_for_a_listing_that_is_behind(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = edge.site.base / "gate"
    edge.program("ledger.sh", f'while [ ! -e "{gate}" ]; do sleep 0.02; done; exit 0')
    entry = given_up_only_in_the_store(edge, monkeypatch)
    edge.scheduling.start(entry)
    edge.until(lambda: token(edge) == "running")
    entry.state = NativeState.QUEUED  # is what the listing still shows
    edge.start()
    edge.wait_looks(5)
    assert 0 == edge.scheduling.count("cancel")
    entry.state = NativeState.RUNNING
    edge.wait("job", S.RUNNING)
    gate.touch()
    edge.wait("job", S.JOB_FINISHED)


def test_what_was_given_up_and_may_start_again_goes_on_waiting(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = given_up_only_in_the_store(edge, monkeypatch)
    entry.reason, entry.never_starts = "Priority", False
    edge.start()
    edge.until(lambda: attempt(edge).given_up == "")
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)


def test_a_kill_between_the_revoked_token_and_the_request_to_cancel_repeats_the_request(edge: Edge) -> None:
    edge.scheduling.deaf = {"cancel"}
    timing(edge, stuck_after_s=0.0)
    entry = stuck(edge)
    edge.until(lambda: edge.scheduling.count("cancel") > 0)
    assert S.QUEUED is edge.job().state
    edge.stop()
    assert "revoked" == token(edge)
    assert [] == edge.heard.cleared
    edge.scheduling.deaf = set()
    edge.start()
    assert_given_up(edge, entry)


def test_a_cancel_whose_answer_was_lost_does_not_hide_why_the_job_was_given_up(edge: Edge) -> None:
    edge.scheduling.lost = {"cancel"}
    timing(edge, stuck_after_s=0.0)
    entry = stuck(edge, retries=2)
    assert_given_up(edge, entry)
    assert "CANCELLED by 1000" == entry.reason


def test_what_was_given_up_and_left_every_list_while_we_were_away_has_failed(edge: Edge) -> None:
    edge.scheduling.deaf = {"cancel"}
    timing(edge, stuck_after_s=0.0)
    entry = stuck(edge, retries=2)
    edge.until(lambda: edge.scheduling.count("cancel") > 0)
    edge.stop()
    edge.scheduling.end(entry, "purged")
    entry.listed, edge.scheduling.deaf = False, set()
    edge.start()
    assert_given_up(edge, entry)


def test_an_execution_that_was_put_back_and_is_never_started_again_is_cancelled_and_has_failed(
    edge: Edge,
) -> None:
    timing(edge, stuck_after_s=0.1)
    edge.register("long", seconds=60, restartable=True)
    edge.start()
    edge.send(application="long", retries=3)
    edge.wait("job", S.RUNNING)
    entry = edge.wait_entry()
    edge.until(lambda: token(edge) == "running")
    edge.stop()
    edge.scheduling.end(entry)
    entry.state, entry.reason, entry.never_starts = NativeState.HELD, REASON, True
    edge.clock = Later()  # by which it began to run long before it began to wait
    edge.start()
    failed = edge.wait("job", S.JOB_FAILED)
    assert S.EXECUTION_FAILED is failed.failed_state
    assert "interrupted: given up" in failed.message
    assert REASON in failed.message
    assert failed.attempt is not None
    assert 1 == failed.attempt.number
    assert "stopped" == token(edge)
    assert NativeState.ENDED is entry.state
