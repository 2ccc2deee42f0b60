"""The loop: events in order, timers in time, and none of them stops the others."""

from __future__ import annotations

import threading

import pytest
from attrs import define

from edgecore.clock import Clock
from edgecore.loop import Loop


@define(eq=False)
class HandClock(Clock):
    """A clock that a test sets."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def loop(clock: HandClock, failures: list[Exception]) -> Loop:
    return Loop(clock, failures.append)


def test_events_are_handled_in_the_order_in_which_they_came(loop: Loop) -> None:
    handled: list[int] = []
    for number in range(3):
        loop.put(lambda number=number: handled.append(number))  # type: ignore[misc]
    while loop.take(0):
        pass
    assert [0, 1, 2] == handled


def test_an_event_of_another_thread_wakes_the_loop(loop: Loop) -> None:
    handled = threading.Event()
    thread = threading.Thread(target=loop.put, args=(handled.set,))
    thread.start()
    loop.turn()  # would wait for an hour
    thread.join()
    assert handled.is_set()


def test_timers_are_handled_when_they_are_due_and_in_the_order_of_their_time(
    loop: Loop, clock: HandClock
) -> None:
    handled: list[str] = []
    loop.after(20, lambda: handled.append("late"))
    loop.after(10, lambda: handled.append("early"))
    loop.after(10, lambda: handled.append("early too"))
    loop.after(30, lambda: handled.append("later"))
    loop.put(lambda: handled.append("event"))
    loop.turn()
    assert ["event"] == handled
    clock.seconds += 20
    loop.turn()
    assert ["event", "early", "early too", "late"] == handled


def test_taking_one_event_leaves_the_timers_alone(loop: Loop) -> None:
    handled: list[str] = []
    loop.after(0, lambda: handled.append("timer"))
    assert not loop.take(0)
    assert [] == handled


def test_an_event_that_fails_is_told_and_the_next_are_handled(loop: Loop, failures: list[Exception]) -> None:
    handled: list[str] = []
    mistake = ZeroDivisionError("a mistake")

    def fail() -> None:
        raise mistake

    loop.put(fail)
    loop.put(lambda: handled.append("next"))
    loop.after(0, fail)
    loop.after(0, lambda: handled.append("timer"))
    loop.turn()
    loop.turn()
    assert [mistake, mistake] == failures
    assert ["timer", "next"] == handled
