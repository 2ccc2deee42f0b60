"""Say what the models state in words and no type can: times, ids, counts, and what goes together.

One function per model, found by the class of what a driver answered. Each assumes that the types
are right, which `edgecore.testing.checks` has seen to before.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from edgecore.errors import Problem
from edgecore.models import (
    Answer,
    Delivery,
    Finding,
    Level,
    MessagingProfile,
    NativeState,
    Observation,
    ProbeReport,
    Refused,
    SchedulingProfile,
    SendReport,
    Settled,
    Submitted,
    TransferReport,
    TransferUpdate,
)
from edgecore.serial import shorten

__all__ = ["stated"]

_SECOND_US: Final = 1_000_000
_EARLIEST_US: Final = 946_684_800 * _SECOND_US
"""The year 2000: earlier are seconds or milliseconds taken for microseconds."""
_AHEAD_US: Final = 300 * _SECOND_US
"""How far clocks may differ; local time taken for UTC differs by more."""
_LONGEST_ID: Final = 255


def stated(value: object) -> Iterator[Problem]:
    """Say in what *value* breaks what its class states in words; paths are relative to it."""
    return _RULES.get(type(value), _nothing)(value)


def _nothing(value: object) -> Iterator[Problem]:
    return iter(())


def _submitted(value: Submitted) -> Iterator[Problem]:
    yield from _word("batch_id", value.batch_id)


def _refused(value: Refused) -> Iterator[Problem]:
    yield from _words("reason", value.reason)


def _observation(value: Observation) -> Iterator[Problem]:
    yield from _word("batch_id", value.batch_id)
    yield from _word("native_state", value.native_state)
    yield from _between("exit_code", value.exit_code, 0, 255)
    yield from _between("signal", value.signal, 1, 64)
    yield from _between("index", value.index, 0, None)
    now_us = time.time_ns() // 1000
    for name in ("queued", "started", "ended"):
        when: int | None = getattr(value, name)
        if when is not None and not _EARLIEST_US <= when <= now_us + _AHEAD_US:
            allowed = f"microseconds UTC, from the year 2000 to now, which is {now_us}"
            yield Problem(name, str(when), allowed)
    if value.started is not None and value.ended is not None and value.started > value.ended:
        yield Problem("ended", f"{value.ended}, before started = {value.started}", "the order of events")
    if value.state in (NativeState.QUEUED, NativeState.HELD, NativeState.RUNNING):
        for name in ("ended", "exit_code", "signal"):
            if getattr(value, name) is not None:
                yield Problem(name, str(getattr(value, name)), f"None, since the attempt is {value.state}")


def _answer(value: Answer) -> Iterator[Problem]:
    for tag, reason in value.refused.items():
        yield from _words(f"refused[{tag!r}]", reason)


def _finding(value: Finding) -> Iterator[Problem]:
    yield from _words("subject", value.subject)
    yield from _words("message", value.message)
    if value.level is not Level.OK:
        yield from _words("remedy", value.remedy)


def _scheduling(value: SchedulingProfile) -> Iterator[Problem]:
    yield from _word("batch_id_text", value.batch_id_text)
    if re.search(r'(?<!\\)"|`', value.batch_id_text):
        yield Problem("batch_id_text", shorten(value.batch_id_text), "text that is fit for double quotes")
    yield from _between("max_group", value.max_group, 1, None)
    yield from _between("parallel_submits", value.parallel_submits, 1, None)
    if value.poll_interval_s <= 0:
        yield Problem("poll_interval_s", f"{value.poll_interval_s:g}", "more than 0 seconds")


def _update(value: TransferUpdate) -> Iterator[Problem]:
    yield from _between("files", value.files, 0, None)
    yield from _between("size_bytes", value.size_bytes, 0, value.total_bytes)


def _report(value: TransferReport) -> Iterator[Problem]:
    yield from _between("files", value.files, 0, None)
    yield from _between("size_bytes", value.size_bytes, 0, None)
    yield from _between("skipped_files", value.skipped_files, 0, value.files)
    yield from _word("verified", value.verified)
    for path, checksum in value.checksums.items():
        if not re.fullmatch(r"[a-z0-9]+:[0-9a-f]+", checksum):
            yield Problem(f"checksums[{path!r}]", shorten(checksum), "algorithm:value in hexadecimal")


def _probe(value: ProbeReport) -> Iterator[Problem]:
    yield from _words("message", value.message)


def _messaging(value: MessagingProfile) -> Iterator[Problem]:
    yield from _words("broker", value.broker)
    if re.search(r"://[^/\s]*:[^/\s]*@", value.broker):
        yield Problem("broker", "a URL with a password", "what may stand in a log")


def _send(value: SendReport) -> Iterator[Problem]:
    yield from _between("sent", value.sent, 0, None)
    for message_id, reason in value.unroutable.items():
        yield from _words(f"unroutable[{message_id!r}]", reason)


def _delivery(value: Delivery) -> Iterator[Problem]:
    yield from _words("token", value.token)


def _settled(value: Settled) -> Iterator[Problem]:
    yield from _between("count", value.count, 0, None)


_RULES: Final[Mapping[type, Callable[[Any], Iterator[Problem]]]] = {
    Answer: _answer,
    Delivery: _delivery,
    Finding: _finding,
    MessagingProfile: _messaging,
    Observation: _observation,
    ProbeReport: _probe,
    Refused: _refused,
    SchedulingProfile: _scheduling,
    SendReport: _send,
    Settled: _settled,
    Submitted: _submitted,
    TransferReport: _report,
    TransferUpdate: _update,
}


# ------------------------------------------------------------------------------------ helpers


def _word(path: str, text: str) -> Iterator[Problem]:
    """Require one printable line without blanks at its ends."""
    if not text.isprintable() or text != text.strip() or not 0 < len(text) <= _LONGEST_ID:
        allowed = f"1 to {_LONGEST_ID} printable characters on one line, no blank at either end"
        yield Problem(path, shorten(text), allowed)


def _words(path: str, text: str) -> Iterator[Problem]:
    if not text.strip():
        yield Problem(path, shorten(text), "words")


def _between(path: str, number: int | None, minimum: int, maximum: int | None) -> Iterator[Problem]:
    if number is not None and (number < minimum or (maximum is not None and number > maximum)):
        yield Problem(
            path,
            str(number),
            f"at least {minimum}" + (f" and at most {maximum}" if maximum is not None else ""),
        )
