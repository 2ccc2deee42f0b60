"""Wrap the scheduling driver of a site: be slow on purpose, or submit nothing.

A layer does not replace the driver and knows nothing about it. It is active when the
configuration names it among the enabled plugins.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from typing import Annotated, TypeAlias, TypeVar

from attrs import define, field

from edgecore.clock import Clock
from edgecore.errors import SchedulerUnavailable
from edgecore.hookspecs import Scheduling, hookimpl
from edgecore.models import (
    Answer,
    Between,
    Closed,
    Count,
    Group,
    Reference,
    Refusal,
    Refused,
    SubmissionAnswer,
)

__all__ = ["DryRun", "Pacing"]

T = TypeVar("T")
_Rate: TypeAlias = Annotated[float, Between(0.1, 1_000_000)]


@define(eq=False)
class _Bucket:
    """Hold tokens that come back at a steady rate; who takes more than there are must wait.

    Many tokens may be taken at once: the next caller waits for them. Callers are served in the
    order in which they came.
    """

    interval_s: float
    """Seconds in which one token comes back."""
    size: int
    """How many tokens there are at most."""
    _full_at: float = 0.0
    """When all tokens are back, on the monotonic clock."""
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def take(self, count: int, now: float) -> float:
        """Take *count* tokens; return how many seconds the caller must wait before it acts."""
        with self._lock:
            begin = max(now, self._full_at - (self.size - 1) * self.interval_s)
            self._full_at = max(begin, self._full_at) + count * self.interval_s
            return begin - now


@define(eq=False)
class Pacing:
    """Bound the rate at which a service calls its batch system, by waiting before a call.

    A caller that waits when the driver is closed gets SchedulerUnavailable, and nothing was asked.
    """

    scheduling_calls_per_minute: _Rate = 60.0
    """How many calls of any kind, `open` and `close` apart."""
    submissions_per_minute: _Rate | None = None
    """How many attempts to submit; a group counts as many as it has. None: no bound."""
    burst: Count = 5
    """How many calls, or attempts, may come at once after a pause."""
    clock: Clock = field(init=False, factory=Clock)
    _closing: threading.Event = field(init=False, factory=threading.Event)
    _calls: _Bucket = field(init=False)
    _submissions: _Bucket | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._calls = _Bucket(60 / self.scheduling_calls_per_minute, self.burst)
        rate = self.submissions_per_minute
        self._submissions = _Bucket(60 / rate, self.burst) if rate else None

    def wait(self, wait_s: float) -> bool:
        """Wait *wait_s* seconds, or until the driver is closed; tell whether it was."""
        return self._closing.wait(wait_s)

    @hookimpl(wrapper=True)
    def submit(self, group: Group) -> Generator[None, T, T]:
        """Wait until a call and as many submissions as the group has are due."""
        self._pause(len(group.submissions))
        return (yield)

    @hookimpl(wrapper=True)
    def observe(self) -> Generator[None, T, T]:
        """Wait until a call is due."""
        self._pause()
        return (yield)

    find = cancel = hold = release = observe

    @hookimpl(wrapper=True)
    def close(self) -> Generator[None, Closed, Closed]:
        """Let nobody wait any longer."""
        self._closing.set()
        return (yield)

    def _pause(self, submissions: int = 0) -> None:
        now = self.clock.monotonic()
        wait_s = self._calls.take(1, now)
        if self._submissions is not None and submissions:
            wait_s = max(wait_s, self._submissions.take(submissions, now))
        if wait_s > 0 and self.wait(wait_s):
            raise SchedulerUnavailable("the service stops; nothing was asked of the batch system")


@define(eq=False)
class DryRun(Scheduling):
    """Withhold what would change the batch system, and let what only looks at it pass."""

    @hookimpl
    def submit(self, group: Group) -> dict[str, SubmissionAnswer]:
        """Refuse every member of the group as disabled."""
        refused = Refused(kind=Refusal.DISABLED, reason="dry run: nothing is submitted")
        return {submission.tag: refused for submission in group.submissions}

    @hookimpl
    def cancel(self, references: Sequence[Reference]) -> Answer:
        """Accept, and do nothing."""
        return _accepted(references)

    @hookimpl
    def hold(self, references: Sequence[Reference]) -> Answer:
        """Accept, and do nothing."""
        return _accepted(references)

    @hookimpl
    def release(self, references: Sequence[Reference]) -> Answer:
        """Accept, and do nothing."""
        return _accepted(references)


def _accepted(references: Sequence[Reference]) -> Answer:
    return Answer(accepted=tuple(reference.tag for reference in references))
