"""Decide what an attempt's token and the batch system's answer prove together.

One pure function, so that every combination can be tested and the protocol can be explored
exhaustively with the very code that decides. Silence proves nothing: an end is what the token
says, or the batch system's own word about the very execution that holds the token, made safe by a
rename that takes the token away. The caller carries out the decision, and after any rename that
fails it looks again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from attrs import field, frozen

from edgecore.batch import Token, TokenState
from edgecore.models import NativeState, Observation

__all__ = ["Conclusion", "Decision", "Patience", "WaitLimits", "decide", "outstays"]


class Conclusion(StrEnum):
    """What follows from the evidence."""

    ALIVE = "alive"
    """Listed and not ended: its native state counts."""
    QUIET = "quiet"
    """Nothing can be concluded yet: leave it and look again."""
    LOST = "lost"
    """It took the token, and nobody has known of it for too long: alarm; reversible."""
    ENDED = "ended"
    """The token says that the application ended, and how."""
    REVOKE = "revoke"
    """Rename `ready` to `revoked`; where that works, it never started and never will."""
    NEVER_STARTED = "never started"
    """The token is revoked already."""
    FENCE = "fence"
    """Rename the running or paused token to `stopped`; where that works, the execution is over."""
    INTERRUPTED = "interrupted"
    """The token is stopped already: the execution ended without a word of its own."""


@frozen
class Decision:
    """A conclusion, with the reason in words for people."""

    conclusion: Conclusion
    reason: str = ""
    exit_code: int | None = None


@frozen(kw_only=True)
class Patience:
    """How long silence is borne, in microseconds."""

    grace: int
    """From the native end until it is taken for one although the token still says running."""
    lost_after: int
    """From the first miss until an attempt counts as gone (never started) or lost (running)."""
    walltime: int
    """From its start until an unlisted execution cannot be alive: its walltime and a margin."""
    clock_skew: int = field(default=60_000_000)
    """How far the clocks of batch system and file server may differ."""


@frozen(kw_only=True)
class WaitLimits:
    """How long an attempt may wait in the batch system, in microseconds."""

    stuck: int
    """From when the batch system says that it will never start it."""
    overdue: int | None = None
    """From when it waits, for whatever reason; None: as long as it takes."""


_ENDINGS: Final = {TokenState.REVOKED: Conclusion.NEVER_STARTED, TokenState.STOPPED: Conclusion.INTERRUPTED}


def decide(
    token: Token | None,
    seen: Observation | None,
    *,
    missed: int | None,
    now: int,
    patience: Patience,
    unwanted: bool = False,
    unclear: bool = False,
    started: int | None = None,
    wall_clock: int | None = None,
) -> Decision:
    """Tell what *token* and *seen* prove about one attempt.

    *seen* is what a listing begun after the submission showed, None when it did not show it.
    *missed* is since when no listing shows it alive (microseconds UTC), None when this is the
    first time. *unwanted* says that it is not to start any more: cancelled, or given up. *unclear*
    says that the outcome of the submission is not known, so that a miss needs no patience: the token
    makes a late start harmless. *started* is when it started by the batch system's word, which counts
    where a file system keeps a file's times through a rename.
    *wall_clock* is the time by the host's clock where that was set since *now* began to count: a
    walltime has passed only where it has by both.
    """
    ended = seen is not None and seen.state is NativeState.ENDED
    silent_for = now - (missed if missed is not None else now)
    reason = seen.reason if seen is not None else ""
    if token is None:
        if silent_for >= patience.lost_after:
            return Decision(Conclusion.LOST, "its run directory shows no token: is the file system mounted?")
        return Decision(Conclusion.QUIET)
    if token.state is TokenState.ENDED:
        return Decision(Conclusion.ENDED, reason, token.exit_code)
    if token.state in _ENDINGS:
        return Decision(_ENDINGS[token.state], reason)
    if token.state is TokenState.READY:
        if unwanted or ended or (seen is None and (unclear or silent_for >= patience.lost_after)):
            return Decision(Conclusion.REVOKE, reason or "the batch system does not know it")
        return Decision(Conclusion.QUIET if seen is None else Conclusion.ALIVE)
    running_for = min(now, wall_clock or now) - max(token.since, started or 0)
    return _running(token, seen, silent_for, running_for, patience)


def _running(
    token: Token, seen: Observation | None, silent_for: int, running_for: int, patience: Patience
) -> Decision:
    if seen is not None and (seen.batch_id != token.batch_id or _is_of_former(token, seen, patience)):
        seen = None  # an answer about another execution of the same script says nothing of this one
    if seen is not None and seen.state is not NativeState.ENDED:
        return Decision(Conclusion.ALIVE)
    if seen is not None and silent_for < patience.grace:
        return Decision(Conclusion.QUIET)
    paused = token.state is TokenState.PAUSED
    if seen is not None:
        reason = seen.reason or ("it was told to stop" if paused else "ended without an end record")
        return Decision(Conclusion.FENCE, reason, token.exit_code if paused else seen.exit_code)
    if silent_for < patience.lost_after:
        return Decision(Conclusion.QUIET)
    if paused:
        return Decision(
            Conclusion.FENCE,
            "it was told to stop, and the batch system does not start it again",
            token.exit_code,
        )
    if running_for >= patience.walltime:
        return Decision(Conclusion.FENCE, "its walltime has passed and the batch system does not know it")
    return Decision(Conclusion.LOST, "it started, wrote no end, and the batch system does not know it")


def _is_of_former(token: Token, seen: Observation, patience: Patience) -> bool:
    """Tell whether *seen* is the end of an execution before the one that took the token."""
    ended = seen.ended if seen.state is NativeState.ENDED else None
    return ended is not None and ended + patience.clock_skew < token.since


def outstays(*, stuck: int | None, waiting: int | None, now: int, limits: WaitLimits) -> str:
    """Say why an attempt is to be taken back from the batch system; empty while it may go on waiting.

    *stuck* and *waiting* are since when it does so (microseconds UTC), None while it does not.
    """
    if stuck is not None and now - stuck >= limits.stuck:
        return f"the batch system says that it will never start it, for {_span(now - stuck)}"
    if limits.overdue is not None and waiting is not None and now - waiting >= limits.overdue:
        return f"it has waited for {_span(now - waiting)}, which is longer than this site allows"
    return ""


def _span(microseconds: int) -> str:
    seconds = microseconds / 1e6
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"
