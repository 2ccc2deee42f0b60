"""Run work on a bounded number of threads, gathering what is alike while all of them are busy.

What comes to a lane with a free thread goes at once, alone. What gathers while all threads are
busy, and has the same key, goes as one group. Threads are started when they are needed.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

__all__ = ["Lane"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Lane(Generic[T]):
    """Hand items to *work* in groups, on at most *threads* threads, first come first served.

    Items count as being worked on until `done` is called for them: what came of them may be known only
    after *work* has returned. *room* answers how many items may be begun now, given those; `look_again`
    asks it anew.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        work: Callable[[Sequence[T]], None],
        room: Callable[[Sequence[T]], int] | None = None,
    ) -> None:
        self._name = name
        self._most = threads
        self._work = work
        self._room = room
        self._waiting: dict[Hashable, tuple[deque[T], int]] = {}
        self._at_work: list[T] = []
        self._threads = 0
        self._idle = 0
        self._open = True
        self._changed = threading.Condition()

    def put(self, items: Sequence[T], key: Hashable, largest: int = 1) -> None:
        """Queue *items*; those of equal *key* may be worked on together, *largest* at once."""
        with self._changed:
            self._waiting.setdefault(key, (deque(), largest))[0].extend(items)
            self._call_one()

    def withdraw(self, key: Hashable, unwanted: Callable[[T], bool]) -> bool:
        """Take what is *unwanted* out of those of *key* that wait; tell whether any was there."""
        with self._changed:
            items, largest = self._waiting.get(key, (deque(), 1))
            left = deque(item for item in items if not unwanted(item))
            if len(left) == len(items):
                return False
            if left:
                self._waiting[key] = (left, largest)
            else:
                del self._waiting[key]
            return True

    def _call_one(self) -> None:
        # A thread that was woken and has not begun yet still counts as idle: it takes one group, not two.
        if len(self._waiting) > self._idle and self._threads < self._most:
            self._start_thread()
        else:
            self._changed.notify()

    def look_again(self) -> None:
        """Note that there may be more room now, or threads to be had."""
        with self._changed:
            if self._waiting and self._idle == 0 and self._threads < self._most:  # one could not be started
                self._start_thread()
            self._wake()

    def _start_thread(self) -> None:
        name = f"edgecore-{self._name}-{self._threads + 1}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError as error:  # too many processes for this account, for now
            log.warning("lane %s: %s; its work waits", self._name, error)
        else:
            self._threads += 1

    def _wake(self) -> None:
        if self._waiting:  # else threads would only fall asleep again
            self._changed.notify_all()

    def done(self, items: Sequence[T]) -> None:
        """Note that nothing is left to do with *items*, which were handed to *work*."""
        with self._changed:
            for item in items:
                self._at_work.remove(item)
            self._wake()

    def stop(self) -> None:
        """Begin nothing more; what waits is dropped."""
        with self._changed:
            self._open = False
            self._waiting.clear()
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        """Whether anything was handed to *work* and is not done."""
        return bool(self._at_work)

    def _run(self) -> None:
        while group := self._take():
            self._work(group)

    def _take(self) -> list[T]:
        with self._changed:
            while self._open:
                group = self._first()
                if group:
                    self._at_work.extend(group)
                    if self._waiting:
                        self._call_one()
                    return group
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
        return []

    def _first(self) -> list[T]:
        if not self._waiting:
            return []
        room = self._room(self._at_work) if self._room else None
        key, (items, largest) = next(iter(self._waiting.items()))
        most = largest if room is None else min(largest, room)
        group = [items.popleft() for _ in range(min(most, len(items)))]
        if group:  # to the end of the line: a key that is always refilled must not keep others out
            del self._waiting[key]
            if items:
                self._waiting[key] = (items, largest)
        return group
