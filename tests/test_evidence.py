"""Hold the decision about an attempt against a table of every token and every answer."""

from __future__ import annotations

from itertools import product

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from edgecore.batch import Token, TokenState
from edgecore.evidence import Conclusion, Decision, Patience, WaitLimits, decide, outstays
from edgecore.models import NativeState, Observation

SECOND = 1_000_000
STARTED = 1_000_000 * SECOND
PATIENCE = Patience(grace=60 * SECOND, lost_after=600 * SECOND, walltime=7200 * SECOND)

TOKENS = {
    "none": None,
    "ready": Token(state=TokenState.READY, file="ready", since=STARTED),
    "running": Token(state=TokenState.RUNNING, file="running.7.x", batch_id="7", since=STARTED),
    "paused": Token(
        state=TokenState.PAUSED, file="paused.7.x.143", batch_id="7", exit_code=143, since=STARTED
    ),
    "ended": Token(state=TokenState.ENDED, file="ended.3", exit_code=3, since=STARTED),
    "revoked": Token(state=TokenState.REVOKED, file="revoked", since=STARTED),
    "stopped": Token(state=TokenState.STOPPED, file="stopped", since=STARTED),
}

ENDED = Observation(
    state=NativeState.ENDED,
    native_state="FAILED",
    batch_id="7",
    exit_code=137,
    reason="out of memory",
    ended=STARTED + SECOND,
)
ANSWERS = {
    "none": None,
    "queued": Observation(state=NativeState.QUEUED, native_state="PD", batch_id="7"),
    "held": Observation(state=NativeState.HELD, native_state="H", batch_id="7"),
    "running": Observation(state=NativeState.RUNNING, native_state="R", batch_id="7"),
    "unknown": Observation(state=NativeState.UNKNOWN, native_state="??", batch_id="7"),
    "ended": ENDED,
    "ended, no time": evolve(ENDED, ended=None),
    "ended, clocks differ": evolve(ENDED, ended=STARTED - 59 * SECOND),
    "a former ended": evolve(ENDED, ended=STARTED - 61 * SECOND),
    "another runs": Observation(state=NativeState.RUNNING, native_state="R", batch_id="8"),
    "another ended": evolve(ENDED, batch_id="8"),
}

SILENCE = {
    "new": (100 * SECOND, None),
    "short": (100 * SECOND, 59 * SECOND),
    "grace": (100 * SECOND, 60 * SECOND),
    "long": (1000 * SECOND, 600 * SECOND),
    "walltime": (7200 * SECOND, 600 * SECOND),
    "walltime, new": (7200 * SECOND, None),
}
"""Seconds since the token got its name, and seconds since which no listing showed it alive."""

TABLE = """
token    answer                | new            short          grace          long           walltime       walltime, new
none     *                     | quiet          quiet          quiet          lost           lost           quiet
ready    none                  | quiet          quiet          quiet          revoke         revoke         quiet
ready    queued                | alive          alive          alive          alive          alive          alive
ready    held                  | alive          alive          alive          alive          alive          alive
ready    running               | alive          alive          alive          alive          alive          alive
ready    unknown               | alive          alive          alive          alive          alive          alive
ready    ended                 | revoke         revoke         revoke         revoke         revoke         revoke
ready    ended, no time        | revoke         revoke         revoke         revoke         revoke         revoke
ready    ended, clocks differ  | revoke         revoke         revoke         revoke         revoke         revoke
ready    a former ended        | revoke         revoke         revoke         revoke         revoke         revoke
ready    another runs          | alive          alive          alive          alive          alive          alive
ready    another ended         | revoke         revoke         revoke         revoke         revoke         revoke
running  none                  | quiet          quiet          quiet          lost           fence          quiet
running  queued                | alive          alive          alive          alive          alive          alive
running  held                  | alive          alive          alive          alive          alive          alive
running  running               | alive          alive          alive          alive          alive          alive
running  unknown               | alive          alive          alive          alive          alive          alive
running  ended                 | quiet          quiet          fence          fence          fence          quiet
running  ended, no time        | quiet          quiet          fence          fence          fence          quiet
running  ended, clocks differ  | quiet          quiet          fence          fence          fence          quiet
running  a former ended        | quiet          quiet          quiet          lost           fence          quiet
running  another runs          | quiet          quiet          quiet          lost           fence          quiet
running  another ended         | quiet          quiet          quiet          lost           fence          quiet
paused   none                  | quiet          quiet          quiet          fence          fence          quiet
paused   queued                | alive          alive          alive          alive          alive          alive
paused   held                  | alive          alive          alive          alive          alive          alive
paused   running               | alive          alive          alive          alive          alive          alive
paused   unknown               | alive          alive          alive          alive          alive          alive
paused   ended                 | quiet          quiet          fence          fence          fence          quiet
paused   ended, no time        | quiet          quiet          fence          fence          fence          quiet
paused   ended, clocks differ  | quiet          quiet          fence          fence          fence          quiet
paused   a former ended        | quiet          quiet          quiet          fence          fence          quiet
paused   another runs          | quiet          quiet          quiet          fence          fence          quiet
paused   another ended         | quiet          quiet          quiet          fence          fence          quiet
ended    *                     | ended          ended          ended          ended          ended          ended
revoked  *                     | never started  never started  never started  never started  never started  never started
stopped  *                     | interrupted    interrupted    interrupted    interrupted    interrupted    interrupted
"""


def columns(line: str) -> list[str]:
    """Cut a line of the table into its cells, which two spaces or a bar separate."""
    return [cell.strip() for cell in line.replace("|", "  ").split("  ") if cell.strip()]


def rows() -> list[tuple[str, str, str, str]]:
    """Return token, answer, silence and conclusion for every cell of the table."""
    head, *lines = TABLE.strip().splitlines()
    silences = columns(head)[2:]
    cells = []
    for token, answer, *conclusions in map(columns, lines):
        for each in ANSWERS if answer == "*" else [answer]:
            cells += [(token, each, *pair) for pair in zip(silences, conclusions, strict=True)]
    return cells


def decided(
    token: str, answer: str, silence: str, *, cancelled: bool = False, unclear: bool = False
) -> Decision:
    """Decide a case of the table."""
    age, silent_for = SILENCE[silence]
    now = STARTED + age
    return decide(
        TOKENS[token],
        ANSWERS[answer],
        missed=None if silent_for is None else now - silent_for,
        now=now,
        patience=PATIENCE,
        unwanted=cancelled,
        unclear=unclear,
    )


def test_the_table_names_every_token_with_every_answer_and_every_silence() -> None:
    assert set(product(TOKENS, ANSWERS, SILENCE)) == {row[:3] for row in rows()}


@pytest.mark.parametrize(("token", "answer", "silence", "conclusion"), rows())
def test_the_decision_is_that_of_the_table(token: str, answer: str, silence: str, conclusion: str) -> None:
    assert conclusion == decided(token, answer, silence).conclusion


@pytest.mark.parametrize(("token", "answer", "silence", "conclusion"), rows())
def test_a_cancel_revokes_whatever_has_not_started_and_changes_no_other_decision(
    token: str, answer: str, silence: str, conclusion: str
) -> None:
    expected = "revoke" if token == "ready" else conclusion
    assert expected == decided(token, answer, silence, cancelled=True).conclusion


@pytest.mark.parametrize(("token", "answer", "silence", "conclusion"), rows())
def test_an_unclear_submission_that_is_not_listed_is_revoked_at_once_and_changes_no_other_decision(
    token: str, answer: str, silence: str, conclusion: str
) -> None:
    expected = "revoke" if (token, answer) == ("ready", "none") else conclusion
    assert expected == decided(token, answer, silence, unclear=True).conclusion


def test_the_exit_code_of_an_end_is_that_of_the_token_not_of_the_batch_system() -> None:
    assert Decision(Conclusion.ENDED, "out of memory", 3) == decided("ended", "ended", "new")


def test_a_fenced_execution_has_the_exit_code_and_the_reason_of_the_batch_system() -> None:
    assert Decision(Conclusion.FENCE, "out of memory", 137) == decided("running", "ended", "grace")


def test_a_paused_execution_that_goes_on_no_more_has_its_own_exit_code() -> None:
    assert Decision(Conclusion.FENCE, "out of memory", 143) == decided("paused", "ended", "grace")
    assert 143 == decided("paused", "none", "long").exit_code


def test_the_reason_why_it_never_started_is_that_of_the_batch_system() -> None:
    assert decided("ready", "ended", "new").reason == "out of memory"
    assert decided("revoked", "ended", "new").reason == "out of memory"


@pytest.mark.parametrize("token", ["none", "running"])
def test_a_lost_attempt_says_why_in_words(token: str) -> None:
    assert decided(token, "none", "long").reason


# ------------------------------------------------------------------------ properties

times = st.integers(0, 2 * STARTED)
tokens = st.builds(
    lambda token, since: token and evolve(token, since=since), st.sampled_from(list(TOKENS.values())), times
)
answers = st.none() | st.builds(
    Observation,
    state=st.sampled_from(NativeState),
    native_state=st.just("?"),
    batch_id=st.sampled_from(["7", "8", ""]),
    exit_code=st.none() | st.integers(0, 255),
    ended=st.none() | times,
)


@given(tokens, answers, st.none() | times, times, st.booleans(), st.booleans())
@example(TOKENS["ended"], ANSWERS["running"], None, STARTED, True, True)
def test_a_rename_is_asked_for_only_where_it_is_allowed_and_an_end_never_changes(
    token: Token | None,
    seen: Observation | None,
    missed: int | None,
    now: int,
    cancelled: bool,
    unclear: bool,
) -> None:
    found = decide(
        token, seen, missed=missed, now=now, patience=PATIENCE, unwanted=cancelled, unclear=unclear
    )
    state = token.state if token else None
    lasting: dict[TokenState | None, Conclusion] = {
        TokenState.ENDED: Conclusion.ENDED,
        TokenState.REVOKED: Conclusion.NEVER_STARTED,
        TokenState.STOPPED: Conclusion.INTERRUPTED,
    }
    assert lasting.get(state) == (found.conclusion if found.conclusion in lasting.values() else None)
    if found.conclusion is Conclusion.REVOKE:
        assert state is TokenState.READY
        assert cancelled or seen is None or seen.state is NativeState.ENDED
    if found.conclusion is Conclusion.FENCE:
        assert state in (TokenState.RUNNING, TokenState.PAUSED)
        assert missed is not None
        assert now - missed >= PATIENCE.grace
        assert seen is None or seen.state is NativeState.ENDED or seen.batch_id != "7"
    if found.conclusion is Conclusion.ALIVE:
        assert seen is not None
        assert seen.state is not NativeState.ENDED


@given(tokens, answers, times, times)
def test_patience_never_turns_a_listing_that_shows_it_alive_into_anything_else(
    token: Token | None, seen: Observation | None, missed: int, now: int
) -> None:
    def found(since: int | None) -> Conclusion:
        return decide(token, seen, missed=since, now=now, patience=PATIENCE).conclusion

    if found(None) is Conclusion.ALIVE:
        assert found(missed) == Conclusion.ALIVE


def running(*, since: int) -> Token:
    return Token(state=TokenState.RUNNING, file="running.17.x", batch_id="17", since=since)


def test_past_its_walltime_an_execution_is_fenced_only_when_missed_as_long_as_a_lost_one() -> None:
    now = 100_000 * SECOND
    token = running(since=now - 2 * PATIENCE.walltime)
    for silent_for, conclusion in (
        (PATIENCE.lost_after - 1, Conclusion.QUIET),
        (PATIENCE.lost_after, Conclusion.FENCE),
    ):
        decision = decide(token, None, missed=now - silent_for, now=now, patience=PATIENCE)
        assert conclusion is decision.conclusion


def test_a_walltime_counts_from_the_start_where_a_file_system_keeps_the_time_of_a_file_through_a_rename() -> (
    None
):
    now = 100_000 * SECOND
    token = running(since=now - 2 * PATIENCE.walltime)
    started = now - PATIENCE.walltime // 2
    decision = decide(
        token, None, missed=now - PATIENCE.lost_after, now=now, patience=PATIENCE, started=started
    )
    assert Conclusion.LOST is decision.conclusion


# ------------------------------------------------------------------------ waiting

NOW = STARTED


@pytest.mark.parametrize(
    ("stuck_for", "waiting_for", "pending", "words"),
    [
        (None, None, 60, ""),
        (None, 10_000, None, ""),
        (3599, 3599, None, ""),
        (3600, 3600, None, "never start it, for 60 minutes"),
        (None, 7199, 7200, ""),
        (None, 7200, 7200, "it has waited for 2 hours"),
        (10, 7200, 7200, "it has waited for 2 hours"),
        (3600, 7200, 7200, "never start it, for 60 minutes"),
    ],
)
def test_an_attempt_outstays_when_it_is_stuck_or_has_waited_for_as_long_as_the_site_allows(
    stuck_for: int | None, waiting_for: int | None, pending: int | None, words: str
) -> None:
    def since(seconds: int | None) -> int | None:
        return None if seconds is None else NOW - seconds * SECOND

    limits = WaitLimits(stuck=3600 * SECOND, overdue=None if pending is None else pending * SECOND)
    found = outstays(stuck=since(stuck_for), waiting=since(waiting_for), now=NOW, limits=limits)
    assert (words != "") == (found != "")
    assert words in found
