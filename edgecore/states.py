"""Draw the way of a job as tables: legal moves, and what a retry does about a failure.

::

    CREATED -> STAGED_IN -> PREPROCESSED -> SUBMITTING -> SUBMITTED -> QUEUED/HELD/RUNNING
      -> EXECUTION_FINISHED -> POSTPROCESSED -> STAGED_OUT -> JOB_FINISHED

Names are those that users of the original service know. ``SUBMITTING`` is the durable intent to
submit, ``HELD`` is only what the batch system says, ``LOST`` is alarmed and reversible, and
``SUBMIT_DISABLED`` is where a dry run ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgecore.models import JobState

__all__ = ["AT_BATCH_SYSTEM", "COUNTS_AS_QUEUED", "MOVES", "RESUMES_AT", "SETTLED", "TERMINAL", "is_legal"]

S = JobState

TERMINAL: Final = frozenset({S.JOB_FINISHED, S.JOB_FAILED, S.JOB_CANCELLED, S.JOB_REJECTED})
"""States that never change again by themselves."""

SETTLED: Final = TERMINAL | {S.SUBMIT_DISABLED}
"""States in which a service has nothing left to do."""

AT_BATCH_SYSTEM: Final = frozenset({S.SUBMITTED, S.QUEUED, S.HELD, S.RUNNING, S.LOST})
"""States that only what the batch system or the run record shows can change."""

COUNTS_AS_QUEUED: Final = frozenset({S.SUBMITTING, S.SUBMITTED, S.QUEUED, S.HELD})
"""States of what is given to the batch system and not known to run: `max_queued` limits them."""

_SEEN: Final = frozenset(
    {
        S.QUEUED,
        S.HELD,
        S.RUNNING,
        S.LOST,
        S.EXECUTION_FINISHED,
        S.EXECUTION_FAILED,
        S.PREPROCESSED,
        S.SUBMIT_FAILED,
    }
)
"""Where evidence can move an attempt: when it is proved that it never started, to PREPROCESSED, or to
SUBMIT_FAILED where it waited for what does not come."""

_STEPS: Final[Mapping[JobState, frozenset[JobState]]] = {
    S.CREATED: frozenset({S.STAGED_IN, S.STAGE_IN_FAILED}),
    S.STAGE_IN_FAILED: frozenset({S.JOB_FAILED}),
    S.STAGED_IN: frozenset({S.PREPROCESSED, S.PREPROCESS_FAILED}),
    S.PREPROCESS_FAILED: frozenset({S.JOB_FAILED}),
    S.PREPROCESSED: frozenset({S.SUBMITTING, S.SUBMIT_FAILED}),
    S.SUBMITTING: _SEEN | {S.SUBMITTED, S.SUBMIT_DISABLED},
    S.SUBMIT_FAILED: frozenset({S.JOB_FAILED}),
    S.SUBMIT_DISABLED: frozenset({S.PREPROCESSED}),
    S.SUBMITTED: _SEEN,
    S.QUEUED: _SEEN,
    S.HELD: _SEEN,
    S.RUNNING: _SEEN,
    S.LOST: _SEEN | {S.SUBMITTED},
    S.EXECUTION_FINISHED: frozenset({S.POSTPROCESSED, S.POSTPROCESS_FAILED}),
    S.EXECUTION_FAILED: frozenset({S.PREPROCESSED, S.JOB_FAILED}),
    S.POSTPROCESSED: frozenset({S.STAGED_OUT, S.STAGE_OUT_FAILED}),
    S.POSTPROCESS_FAILED: frozenset({S.JOB_FAILED}),
    S.STAGED_OUT: frozenset({S.JOB_FINISHED}),
    S.STAGE_OUT_FAILED: frozenset({S.JOB_FAILED}),
    S.JOB_FINISHED: frozenset(),
    S.JOB_FAILED: frozenset({S.CREATED, S.STAGED_IN, S.PREPROCESSED, S.EXECUTION_FINISHED, S.POSTPROCESSED}),
    S.JOB_CANCELLED: frozenset(),
    S.JOB_REJECTED: frozenset(),
}

MOVES: Final[Mapping[JobState, frozenset[JobState]]] = {
    state: targets if state in TERMINAL else targets | {S.JOB_CANCELLED} for state, targets in _STEPS.items()
}
"""State -> the states that may follow it. The moves out of JOB_FAILED are an operator's retry."""

RESUMES_AT: Final[Mapping[JobState, JobState]] = {
    S.STAGE_IN_FAILED: S.CREATED,
    S.PREPROCESS_FAILED: S.STAGED_IN,
    S.SUBMIT_FAILED: S.PREPROCESSED,
    S.EXECUTION_FAILED: S.PREPROCESSED,
    S.POSTPROCESS_FAILED: S.EXECUTION_FINISHED,
    S.STAGE_OUT_FAILED: S.POSTPROCESSED,
}
"""The step that failed -> the state from which a retry does it again."""


def is_legal(before: JobState | None, after: JobState) -> bool:
    """Tell whether a job may move from *before* (None: it is new) to *after*."""
    if before is None:
        return after in (S.CREATED, S.JOB_REJECTED)
    return after in MOVES[before]
