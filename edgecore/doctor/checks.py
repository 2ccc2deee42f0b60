"""Say what a check is, and turn errors into findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from attrs import frozen

from edgecore.errors import ConfigurationError, DefinitionError, EdgeError
from edgecore.models import Finding, Level

__all__ = ["LIMIT_S", "Check", "findings_of"]

LIMIT_S: Final = 20.0
"""For what asks this host only; a file server that hangs takes longer."""
_CRASH: Final = "this is a fault of the check or of a driver, not of the site: report it with these words"
_SEE: Final = "let this account go there, and see that it is there whenever the service runs"
_GENERAL: Final = "put that right, and examine the site again"
_CORRECT: Final = "correct the site's file, or install what it names"


@frozen(kw_only=True)
class Check:
    """One thing to look at."""

    title: str
    """The part of the site that it belongs to."""
    subject: str
    """What a finding about the check itself is called."""
    find: Callable[[], Iterable[Finding]]
    limit_s: float = LIMIT_S
    when_silent: str = "see whether a file system hangs: ls, df and mount show it"
    """What to do when the time was not enough."""


def findings_of(subject: str, error: BaseException, remedy: str = _GENERAL) -> Iterator[Finding]:
    """Yield the words of an error, one finding for each problem that it names."""
    if isinstance(error, ConfigurationError | DefinitionError):
        for problem in error.problems:
            yield Finding(subject, Level.FAILURE, f"{error.source}: {problem}", _CORRECT)
    elif isinstance(error, EdgeError):
        yield Finding(subject, Level.FAILURE, str(error), remedy)
    elif isinstance(error, OSError):
        words = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        yield Finding(subject, Level.FAILURE, words, _SEE)
    else:
        notes = "; ".join(getattr(error, "__notes__", ()))
        words = f"the check itself failed: {type(error).__name__}: {error}{' ' + notes if notes else ''}"
        yield Finding(subject, Level.FAILURE, words, _CRASH)
