"""Tell the time: the one clock of a service, so that tests can set it.

Stored times are UTC as integer microseconds since the epoch; waits use the monotonic clock,
which a correction of the wall clock does not disturb.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["Clock", "iso", "microseconds"]


class Clock:
    """Read the wall clock and the monotonic clock of this machine."""

    def now(self) -> int:
        """Return the UTC time in microseconds since the epoch."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds on a clock that only ever goes forward."""
        return time.monotonic()


def iso(time_us: int) -> str:
    """Write a stored time as ISO 8601 in UTC, for example ``2017-10-03T03:04:11.064986Z``."""
    seconds, fraction = divmod(time_us, 1_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=fraction, tzinfo=None)
    return moment.isoformat(timespec="microseconds") + "Z"


def microseconds(moment: datetime) -> int:
    """Return a date and time (UTC where it names no zone) as microseconds since the epoch."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1_000_000)
