"""The two tables of states: every way leads somewhere, an end is an end, and a retry is a legal move."""

from __future__ import annotations

import pytest

from edgecore.models import JobState
from edgecore.states import AT_BATCH_SYSTEM, MOVES, RESUMES_AT, SETTLED, TERMINAL, is_legal

S = JobState
BEGINNINGS = {S.CREATED, S.JOB_REJECTED}


def reachable(begin: set[JobState]) -> set[JobState]:
    found: set[JobState] = set()
    waiting = set(begin)
    while waiting:
        state = waiting.pop()
        found.add(state)
        waiting |= MOVES[state] - found
    return found


def test_every_state_has_its_moves() -> None:
    assert set(JobState) == set(MOVES)


def test_every_state_is_reached_from_a_beginning() -> None:
    assert set(JobState) == reachable(BEGINNINGS)


def test_every_job_that_has_not_ended_can_still_end_well_or_be_cancelled() -> None:
    for state in set(JobState) - TERMINAL:
        assert {S.JOB_FINISHED, S.JOB_CANCELLED} <= reachable({state}), state


def test_every_job_whose_work_is_not_all_done_can_still_fail() -> None:
    assert {S.STAGED_OUT} == {
        state for state in set(JobState) - TERMINAL if S.JOB_FAILED not in reachable({state})
    }


def test_terminal_states_are_final_but_for_an_operators_retry_of_a_failed_job() -> None:
    assert {S.JOB_FINISHED, S.JOB_FAILED, S.JOB_CANCELLED, S.JOB_REJECTED} == TERMINAL
    assert {S.JOB_FAILED: set(RESUMES_AT.values())} == {
        state: MOVES[state] for state in TERMINAL if MOVES[state]
    }


def test_every_job_that_has_not_ended_may_be_cancelled_and_no_other() -> None:
    assert set(JobState) - TERMINAL == {state for state in JobState if S.JOB_CANCELLED in MOVES[state]}


def test_a_settled_job_has_ended_or_was_withheld_by_a_dry_run() -> None:
    assert TERMINAL | {S.SUBMIT_DISABLED} == SETTLED


def test_a_new_job_is_created_or_rejected_and_nothing_else() -> None:
    assert BEGINNINGS == {state for state in JobState if is_legal(None, state)}
    assert not [state for state in JobState if S.JOB_REJECTED in MOVES[state]]


@pytest.mark.parametrize("failed", RESUMES_AT)
def test_a_step_that_failed_is_done_again_from_a_state_that_leads_to_it(failed: JobState) -> None:
    begin = RESUMES_AT[failed]
    assert is_legal(S.JOB_FAILED, begin)
    assert failed in reachable({begin})
    assert begin not in TERMINAL | AT_BATCH_SYSTEM


def test_every_step_that_can_fail_says_where_a_retry_begins() -> None:
    failures = {state for state in JobState if state.value.endswith("_FAILED")} - {S.JOB_FAILED}
    assert failures == set(RESUMES_AT)
    for failed in failures:
        assert is_legal(failed, S.JOB_FAILED)


def test_nothing_is_submitted_without_a_durable_intent() -> None:
    for state in AT_BATCH_SYSTEM:
        before = {each for each in JobState if state in MOVES[each]}
        assert before <= AT_BATCH_SYSTEM | {S.SUBMITTING}, state
    assert {S.PREPROCESSED} == {state for state in JobState if S.SUBMITTING in MOVES[state]}


def test_only_evidence_ends_an_execution() -> None:
    for end in (S.EXECUTION_FINISHED, S.EXECUTION_FAILED):
        before = {state for state in JobState if end in MOVES[state]} - {S.JOB_FAILED}
        assert AT_BATCH_SYSTEM | {S.SUBMITTING} == before


def test_lost_is_reversible() -> None:
    assert AT_BATCH_SYSTEM <= MOVES[S.LOST] | {S.LOST}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (S.CREATED, S.PREPROCESSED),
        (S.CREATED, S.SUBMITTING),
        (S.STAGED_IN, S.SUBMITTING),
        (S.PREPROCESSED, S.SUBMITTED),
        (S.PREPROCESSED, S.RUNNING),
        (S.RUNNING, S.JOB_FINISHED),
        (S.RUNNING, S.SUBMITTING),
        (S.EXECUTION_FINISHED, S.PREPROCESSED),
        (S.EXECUTION_FINISHED, S.JOB_FINISHED),
        (S.JOB_FINISHED, S.JOB_CANCELLED),
        (S.JOB_CANCELLED, S.CREATED),
        (S.JOB_FAILED, S.JOB_FINISHED),
    ],
)
def test_no_step_is_skipped_and_none_goes_back(before: JobState, after: JobState) -> None:
    assert not is_legal(before, after)
