"""Draw the pictures of the documentation: the way of a job, the token, the submission.

The picture of the states is laid out by hand and checked against the table of moves: a move that is
neither drawn nor said in words is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

from docs.generators.drawing import Drawing, Point
from edgecore.models import JobState
from edgecore.states import AT_BATCH_SYSTEM, MOVES, RESUMES_AT, TERMINAL

__all__ = ["PICTURES", "drawn_moves"]

S = JobState

_SPINE: Final = (
    S.CREATED, S.STAGED_IN, S.PREPROCESSED, S.SUBMITTING, S.SUBMITTED,
    S.EXECUTION_FINISHED, S.POSTPROCESSED, S.STAGED_OUT, S.JOB_FINISHED,
)  # fmt: skip
_FAILS: Final = {
    S.CREATED: S.STAGE_IN_FAILED,
    S.STAGED_IN: S.PREPROCESS_FAILED,
    S.PREPROCESSED: S.SUBMIT_FAILED,
    S.EXECUTION_FINISHED: S.POSTPROCESS_FAILED,
    S.POSTPROCESSED: S.STAGE_OUT_FAILED,
}
"""State -> what stands at its right."""
_SIZE: Final = (190.0, 34.0)
_MIDDLE, _RIGHT, _LEFT, _RAIL = 370.0, 685.0, 110.0, 805.0
_ROW, _TOP = 66.0, 40.0


def _row(state: JobState) -> float:
    number = _SPINE.index(state)
    return _TOP + _ROW * number + (44 if number > _SPINE.index(S.SUBMITTED) else 0)


def drawn_moves() -> set[tuple[JobState, JobState]]:
    """Return every move that the picture shows by an arrow or says in words."""
    waiting = AT_BATCH_SYSTEM | {S.SUBMITTING}
    seen = {S.QUEUED, S.HELD, S.RUNNING, S.LOST}
    ends = {S.EXECUTION_FINISHED, S.EXECUTION_FAILED, S.PREPROCESSED, S.SUBMIT_FAILED}
    step = {(a, b) for a, b in pairwise(_SPINE) if a is not S.SUBMITTED}
    failed = set(_FAILS.items())
    to_the_end = {(each, S.JOB_FAILED) for each in RESUMES_AT}
    again = {(S.EXECUTION_FAILED, S.PREPROCESSED), (S.SUBMIT_DISABLED, S.PREPROCESSED)}
    cancelled = {(each, S.JOB_CANCELLED) for each in set(S) - TERMINAL}
    retried = {(S.JOB_FAILED, each) for each in RESUMES_AT.values()}
    watched = {(a, b) for a in waiting for b in seen | ends} | {(S.LOST, S.SUBMITTED)}
    return (
        step
        | failed
        | to_the_end
        | again
        | cancelled
        | retried
        | watched
        | {(S.SUBMITTING, S.SUBMIT_DISABLED)}
    )


def _job_states() -> str:
    missing = {(a, b) for a in MOVES for b in MOVES[a]} ^ drawn_moves()
    assert not missing, f"the picture of the states and edgecore/states.py differ in {sorted(missing)}"
    drawing = Drawing("The states of a job and its moves between them", 870, 670)
    _draw_spine(drawing)
    _draw_failures(drawing)
    _draw_left(drawing)
    return drawing.svg()


def _draw_spine(drawing: Drawing) -> None:
    words = {
        S.CREATED: "stage in", S.STAGED_IN: "preprocess", S.PREPROCESSED: "commit the intent",
        S.EXECUTION_FINISHED: "postprocess", S.POSTPROCESSED: "stage out",
    }  # fmt: skip
    for above, below in pairwise(_SPINE):
        high, low = _row(above) + 17, _row(below) - 17
        if above is S.SUBMITTED:
            high += 44
        if below is S.SUBMITTED:
            low -= 6
        drawing.arrow([(_MIDDLE, high), (_MIDDLE, low)])
        if above in words:
            drawing.text((_MIDDLE + 8, (high + low) / 2 + 4), words[above], "note left")
    drawing.text((_MIDDLE + 8, _row(S.SUBMITTING) + 37), "submit", "note left")
    drawing.text((_MIDDLE + 8, _row(S.SUBMITTED) + 79), "evidence of the end", "note left")
    for state in _SPINE:
        kind = "good" if state is S.JOB_FINISHED else ""
        drawing.box((_MIDDLE, _row(state)), _SIZE, state, kind=kind)
    y = _row(S.SUBMITTED) + 44
    for place, state in zip((235, 325, 415, 505), (S.QUEUED, S.HELD, S.RUNNING, S.LOST), strict=True):
        drawing.box((place, y), (80, 30), state, kind="other" if state is S.LOST else "")
    drawing.frame((_MIDDLE, y - 22), (372, 92))


def _draw_failures(drawing: Drawing) -> None:
    end = _row(S.JOB_FINISHED)
    executed = _row(S.SUBMITTED) + 22
    places = {failed: _row(state) for state, failed in _FAILS.items()} | {S.EXECUTION_FAILED: executed}
    for failed, y in places.items():
        begin = _MIDDLE + (186 if failed is S.EXECUTION_FAILED else 95)
        drawing.arrow([(begin, y), (_RIGHT - 95, y)])
        drawing.box((_RIGHT, y), _SIZE, failed, kind="bad")
        drawing.arrow([(_RIGHT + 95, y), (_RAIL, y)], tip=False)
    submitting = _row(S.SUBMITTING)
    drawing.arrow([(_MIDDLE + 95, submitting), (_RIGHT, submitting), (_RIGHT, _row(S.PREPROCESSED) + 17)])
    drawing.arrow([(540, executed - 46), (540, submitting)], tip=False)
    drawing.text((548, submitting + 25), "can never start", "note left")
    drawing.arrow([(_RAIL, _row(S.CREATED)), (_RAIL, end), (_RIGHT + 95, end)])
    drawing.box((_RIGHT, end), _SIZE, S.JOB_FAILED, kind="bad")
    drawing.text((_RIGHT, end + 34), "an operator's retry resumes where the failed step begins")


def _draw_left(drawing: Drawing) -> None:
    prepared, submitting, watched = _row(S.PREPROCESSED), _row(S.SUBMITTING), _row(S.SUBMITTED) + 22
    drawing.arrow([(_MIDDLE - 95, submitting), (_LEFT + 95, submitting)])
    drawing.text((240, submitting - 7), "dry run")
    drawing.box((_LEFT, submitting), _SIZE, S.SUBMIT_DISABLED, kind="other")
    drawing.arrow([(_LEFT, submitting - 17), (_LEFT, prepared + 8), (_MIDDLE - 95, prepared + 8)])
    drawing.arrow([(_MIDDLE - 186, watched), (8, watched), (8, prepared - 8), (_MIDDLE - 95, prepared - 8)])
    drawing.text((14, prepared - 15), "never started, or failed with", "note left")
    drawing.text((14, prepared + 2), "retries left: a new attempt", "note left")
    for state, words, y in (
        (S.JOB_CANCELLED, "from every state but the last ones", _row(S.POSTPROCESSED)),
        (S.JOB_REJECTED, "a definition that was refused", _row(S.JOB_FINISHED)),
    ):
        drawing.box((_LEFT, y), _SIZE, state, kind="bad")
        drawing.text((_LEFT, y + 34), words)


def _token() -> str:
    drawing = Drawing("The token of an attempt and who moves it", 760, 250)
    places: Mapping[str, tuple[Point, str, str]] = {
        "ready": ((90, 60), "may start once", ""),
        "running.ID.EXECUTION": ((370, 60), "this execution owns the attempt", ""),
        "ended.CODE": ((660, 60), "it ended by itself", "good"),
        "paused.ID.EXECUTION.CODE": ((648, 132), "told to stop; may go on", ""),
        "revoked": ((90, 200), "can never start", "bad"),
        "stopped": ((370, 200), "fenced: it is over", "bad"),
    }
    for name, (centre, words, kind) in places.items():
        drawing.box(centre, (210 if "." in name and "ID" in name else 150, 48), name, words, kind=kind)
    drawing.arrow([(165, 60), (265, 60)])
    drawing.text((215, 50), "batch script")
    drawing.arrow([(475, 60), (585, 60)])
    drawing.text((530, 50), "batch script")
    for x in (90, 370):
        drawing.arrow([(x, 84), (x, 176)])
        drawing.text((x + 10, 134), "service", "note left")
    drawing.arrow([(475, 70), (520, 70), (520, 132), (543, 132)])
    drawing.text((490, 104), "batch script")
    drawing.text((580, 196), "every arrow is one rename of one file,")
    drawing.text((580, 213), "which succeeds for one of those who try")
    return drawing.svg()


_LIVES: Final = {"store": 90.0, "service": 290.0, "batch system": 500.0, "run directory": 690.0}
_STEPS: Final[tuple[tuple[str, str, str], ...]] = (
    ("service", "run directory", "1  make it, with the token ready"),
    ("service", "store", "2  commit the intent"),
    ("service", "batch system", "3  submit under the tag"),
    ("batch system", "service", "a batch id, or nothing"),
    ("service", "store", "4  commit the batch id"),
    ("batch system", "run directory", "script: ready → running"),
    ("batch system", "run directory", "script: running → ended"),
    ("service", "run directory", "5  look, when it ended or is not listed"),
    ("service", "store", "6  commit the end"),
)
"""Who, to whom, what: in the order of time."""
_KILLED: Final = {
    1: "killed before 2: the attempt does not exist yet",
    4: "killed between 2 and 4: ask the batch system for the tag",
    6: "killed from here on: read the token",
}
"""After how many steps -> what a new service does."""


def _submission() -> str:
    drawing = Drawing("An attempt from its intent to its end", 800, 560)
    for name, x in _LIVES.items():
        drawing.arrow([(x, 50), (x, 545)], dashed=True, tip=False)
        drawing.box((x, 34), (140, 32), name, code=False)
    y = 84.0
    for number, (who, whom, what) in enumerate(_STEPS, 1):
        begin, end = _LIVES[who], _LIVES[whom]
        drawing.text(((begin + end) / 2, y - 6), what, "")
        drawing.arrow([(begin, y), (end, y)])
        y += 36
        if number in _KILLED:
            drawing.box((400, y - 4), (470, 26), _KILLED[number], kind="other", code=False)
            y += 42
    return drawing.svg()


PICTURES: Final[Mapping[str, Callable[[], str]]] = {
    "job-states.svg": _job_states,
    "submission.svg": _submission,
    "token.svg": _token,
}
"""File below ``docs/pictures`` -> what draws it."""
