"""Tell people once that something needs them, and once that it does not any more.

What lasts is alarmed, what passes is only logged: `Silence` counts how long a partner that every service
depends on (the batch system, the broker) has not answered.
"""

from __future__ import annotations

import logging
import threading
from typing import Final, Protocol

from attrs import define, field, frozen

from edgecore.clock import Clock
from edgecore.errors import EdgeError
from edgecore.trouble import of_host

__all__ = ["STORE", "AlarmListener", "Alarms", "HostTrouble", "Silence"]

log = logging.getLogger(__name__)

STORE: Final = "store"
"""The subject of an alarm about changes that cannot be written."""


class AlarmListener(Protocol):
    """Who is told of alarms."""

    def alarm_raised(self, *, subject: str, message: str) -> None: ...
    def alarm_cleared(self, *, subject: str, message: str) -> None: ...


@frozen(eq=False)
class Alarms:
    """Remember what people were told of; from any thread."""

    _listener: AlarmListener
    _raised: set[str] = field(init=False, factory=set)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def raise_once(self, subject: str, message: str) -> None:
        """Tell people that something needs them, unless they know."""
        with self._lock:
            if subject in self._raised:
                return
            self._raised.add(subject)
        log.error("alarm: %s: %s", subject, message, extra={"alarm": subject})
        self._listener.alarm_raised(subject=subject, message=message)

    def clear(self, subject: str, message: str) -> None:
        """Tell people who know of an alarm that the reason for it is gone."""
        with self._lock:
            if subject not in self._raised:
                return
            self._raised.discard(subject)
        log.warning("alarm cleared: %s: %s", subject, message, extra={"alarm": subject})
        self._listener.alarm_cleared(subject=subject, message=message)


@frozen(eq=False)
class HostTrouble:
    """Alarm people of what this host cannot do, at once, and say when all work is done again."""

    _alarms: Alarms
    _troubled: set[str] = field(init=False, factory=set)

    def worked(self, what: str, error: BaseException | None) -> bool:
        """Note how some work, known as *what*, has ended; tell whether the host was to blame."""
        words = of_host(error)
        if words:
            self._troubled.add(what)
            self._alarms.raise_once("host", words)
        elif error is None and what in self._troubled:
            self._troubled.discard(what)
            if not self._troubled:
                self._alarms.clear("host", "it does its work again")
        return bool(words)


@define(eq=False, kw_only=True)
class Silence:
    """Say once that *subject* does not answer, alarm people when that lasts, and say when it is over."""

    subject: str
    begins: str
    """What is logged with the first failure: ``the batch system does not answer``."""
    lasts: str = "no answer"
    """What people are told after `alarm_after_s` seconds: ``no answer`` for so many minutes."""
    ends: str
    """What is said in the end: ``it answers again``."""
    alarms: Alarms
    alarm_after_s: float
    clock: Clock
    failures: int = field(init=False, default=0)
    """How often in a row there was no answer."""
    _since: float = field(init=False, default=0.0)

    def answered(self) -> None:
        """Note an answer."""
        if self.failures:
            self.failures = 0
            log.warning("%s: %s", self.subject, self.ends)
            self.alarms.clear(self.subject, self.ends)

    def failed(self, error: Exception) -> None:
        """Note that *error* came instead of an answer."""
        now = self.clock.monotonic()
        if not self.failures:
            self._since = now
            log.warning(
                "%s: %s", self.begins, error, exc_info=None if isinstance(error, EdgeError) else error
            )
        self.failures += 1
        lasted_s = now - self._since
        if lasted_s >= self.alarm_after_s:
            message = f"{self.lasts} for {lasted_s / 60:.0f} minutes: {error}"
            self.alarms.raise_once(self.subject, message)
