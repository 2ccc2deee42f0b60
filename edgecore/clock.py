"""Tell the time: the one clock of a service, so that tests can set it.

Stored times are UTC as integer microseconds since the epoch; waits use the monotonic clock,
which a correction of the wall clock does not disturb.
"""

from __future__ import annotations

import functools
import threading
import time
from datetime import UTC, datetime
from typing import Final

__all__ = ["Clock", "SteadyClock", "iso", "microseconds"]

_STEP_US: Final = 10_000_000
"""What is more is no slow correction: somebody has set the clock."""


class Clock:
    """Read the wall clock and the monotonic clock of this machine."""

    def now(self) -> int:
        """Return the UTC time in microseconds since the epoch."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds on a clock that only ever goes forward."""
        return time.monotonic()


class SteadyClock(Clock):
    """Tell the time for spans that pass between two looks: it follows slow corrections, and no jump of the wall clock.

    A clock that is set forward by hours must not let anybody's patience end, and one that is set back must not
    make anybody wait.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ahead = self._wall_ahead()
        self.jumped_us = 0
        """How far the wall clock was set since the beginning, in all."""

    def now(self) -> int:
        """Return the time in microseconds since the epoch, as if nobody had set the clock since the beginning."""
        with self._lock:
            ahead = self._wall_ahead()
            if abs(ahead - self._ahead) > _STEP_US:
                self.jumped_us += ahead - self._ahead
            self._ahead = ahead
            return self._clock.now() - self.jumped_us

    def earliest(self) -> int:
        """Return the wall clock's time or ours, whichever is less: what is over by it is over by both."""
        return min(self.now(), self._clock.now())

    def monotonic(self) -> float:
        """Return seconds on a clock that only ever goes forward."""
        return self._clock.monotonic()

    def _wall_ahead(self) -> int:
        return self._clock.now() - round(self._clock.monotonic() * 1e6)


def iso(time_us: int) -> str:
    """Write a stored time as ISO 8601 in UTC, for example ``2017-10-03T03:04:11.064986Z``."""
    seconds, fraction = divmod(time_us, 1_000_000)
    return f"{_to_the_second(seconds)}.{fraction:06d}Z"


@functools.lru_cache(maxsize=16)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def microseconds(moment: datetime) -> int:
    """Return a date and time (UTC where it names no zone) as microseconds since the epoch."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1_000_000)
