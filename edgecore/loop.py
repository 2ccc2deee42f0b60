"""Handle events one after another on one thread, and others when their time has come."""

from __future__ import annotations

import heapq
import logging
import queue
from collections.abc import Callable
from typing import Final, TypeAlias

from attrs import define, field

from edgecore.clock import Clock

__all__ = ["Event", "Loop"]

log = logging.getLogger(__name__)

Event: TypeAlias = Callable[[], None]

_IDLE_S: Final = 3600.0


@define(eq=False)
class Loop:
    """Events of one thread. All but `put` is for that thread."""

    _clock: Clock
    _failed: Callable[[Exception], None]
    """Hears of an event that could not be handled; the others are handled all the same."""
    _events: queue.SimpleQueue[Event] = field(init=False, factory=queue.SimpleQueue)
    _timers: list[tuple[float, int, Event]] = field(init=False, factory=list)
    _timer_number: int = field(init=False, default=0)

    def put(self, event: Event) -> None:
        """Have *event* handled after those that wait; from any thread."""
        self._events.put(event)

    def after(self, seconds: float, event: Event) -> None:
        """Have *event* handled in so many seconds."""
        self._timer_number += 1
        heapq.heappush(self._timers, (self._clock.monotonic() + seconds, self._timer_number, event))

    def turn(self) -> None:
        """Wait for the next event or the next timer, and handle what is due."""
        self.take(max(0.0, self._timers[0][0] - self._clock.monotonic()) if self._timers else _IDLE_S)
        now = self._clock.monotonic()
        while self._timers and self._timers[0][0] <= now:
            self._handle(heapq.heappop(self._timers)[2])

    def take(self, timeout_s: float) -> bool:
        """Handle one event, but no timer; tell whether one came within *timeout_s* seconds."""
        try:
            event = self._events.get(timeout=timeout_s) if timeout_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return False
        self._handle(event)
        return True

    def _handle(self, event: Event) -> None:
        try:
            event()
        except Exception as error:
            log.exception("an event could not be handled")
            self._failed(error)
