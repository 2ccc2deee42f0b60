"""Name what contract tests steer and spoil: kinds of commands, endings, and faults.

Apart from the rest, because the commands of the fake batch system need these words and must start fast:
only the standard library is imported.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Command", "Ending", "Garbling", "SubmitFault", "Word"]


class Command(StrEnum):
    """What the commands of a batch system are for."""

    SUBMIT = "submit"
    QUERY = "query"
    """The listing of what waits and runs."""
    ACCOUNTING = "accounting"
    """The record of what ended."""
    CANCEL = "cancel"
    HOLD = "hold"
    RELEASE = "release"


class Ending(StrEnum):
    """How a batch system ends a job by itself; what runs is killed without a word."""

    CANCELLED = "cancelled"
    """By somebody else: an administrator."""
    NODE_FAILURE = "node failure"
    OUT_OF_MEMORY = "out of memory"
    TIME_LIMIT = "time limit"


class Garbling(StrEnum):
    """What can happen to the text of a listing."""

    BROKEN_LINE = "broken line"
    """The line of one job lacks its fields."""
    TRUNCATED = "truncated"
    """The output stops in the middle of the line of one job, which comes last."""
    INTERLEAVED = "interleaved"
    """Another program's words stand in the middle of the line of one job."""
    NOT_UTF8 = "not UTF-8"
    """The line of one job holds bytes that are no text."""
    EMPTY = "empty"
    """Exit code 0 and nothing else."""


class Word(StrEnum):
    """How a state can be written in a listing, beside the usual way."""

    UNKNOWN = "unknown"
    """A word that no manual has."""
    DECORATED = "decorated"
    """The right word and more: ``CANCELLED by 1234``, ``COMPLETING*``."""


class SubmitFault(StrEnum):
    """What can go wrong with a submission that the batch system has accepted."""

    FAILS_WITH_ID = "prints the id and exits non-zero"
    DIES = "dies before it prints anything"
    HANGS = "does not come back"
    NEVER_RUNS = "accepts what can never run"
    """The job waits for ever, with a reason."""
