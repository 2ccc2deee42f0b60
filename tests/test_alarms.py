"""Alarms and silences: what people are told, when, and how often."""

from __future__ import annotations

import logging

import pytest
from attrs import define, field

from edgecore.alarms import Alarms, Silence
from edgecore.clock import Clock
from edgecore.errors import BrokerUnavailable


@define(eq=False)
class Told:
    """Note what people were told."""

    words: list[tuple[str, str, str]] = field(factory=list)

    def alarm_raised(self, *, subject: str, message: str) -> None:
        self.words.append(("raised", subject, message))

    def alarm_cleared(self, *, subject: str, message: str) -> None:
        self.words.append(("cleared", subject, message))


@define(eq=False)
class HandClock(Clock):
    """A clock that a test sets."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def silence(told: Told, clock: HandClock) -> Silence:
    return Silence(
        subject="oracle",
        begins="the oracle does not answer",
        ends="it answers again",
        alarms=Alarms(told),
        alarm_after_s=600,
        clock=clock,
    )


def test_an_alarm_is_told_once_until_it_is_cleared(told: Told) -> None:
    alarms = Alarms(told)
    for _ in range(2):
        alarms.raise_once("a", "first")
        alarms.raise_once("a", "second")
        alarms.clear("a", "gone")
        alarms.clear("a", "gone")
    assert [("raised", "a", "first"), ("cleared", "a", "gone")] * 2 == told.words


def test_an_alarm_is_no_other_subject_s(told: Told) -> None:
    alarms = Alarms(told)
    alarms.raise_once("a", "m")
    alarms.clear("b", "m")
    alarms.raise_once("b", "m")
    assert [("raised", "a", "m"), ("raised", "b", "m")] == told.words


def test_a_silence_is_logged_once_and_alarmed_only_when_it_lasts(
    silence: Silence, told: Told, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        silence.failed(BrokerUnavailable("busy"))
        clock.seconds += 299
    assert [] == told.words
    assert ["the oracle does not answer: busy"] == [record.getMessage() for record in caplog.records]
    assert 3 == silence.failures
    silence.failed(BrokerUnavailable("still busy"))
    silence.failed(BrokerUnavailable("still busy"))
    assert [("raised", "oracle", "no answer for 15 minutes: still busy")] == told.words


def test_an_answer_ends_a_silence_and_its_alarm(silence: Silence, told: Told, clock: HandClock) -> None:
    silence.failed(BrokerUnavailable("busy"))
    clock.seconds += 600
    silence.failed(BrokerUnavailable("busy"))
    silence.answered()
    assert 0 == silence.failures
    assert ("cleared", "oracle", "it answers again") == told.words[-1]
    silence.failed(BrokerUnavailable("a new one begins to count at its own beginning"))
    assert 2 == len(told.words)


def test_answers_without_a_silence_say_nothing(
    silence: Silence, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    silence.answered()
    assert ([], []) == (told.words, caplog.records)


def test_only_what_nobody_expected_is_logged_with_its_traceback(
    silence: Silence, caplog: pytest.LogCaptureFixture
) -> None:
    silence.failed(BrokerUnavailable("busy"))
    silence.answered()
    silence.failed(TypeError("a mistake"))
    first, _, last = caplog.records
    assert first.exc_info is None
    assert last.exc_info is not None
    assert last.exc_info[0] is TypeError
