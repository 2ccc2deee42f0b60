"""Check every answer of a driver: its type to the last field, and what the models state in words.

pluggy checks the names of a hook's arguments and nothing else, so that a driver that answers with an exit
code as text is found out weeks later, by the job that it spoils. `TypeChecked` is a layer for
any role that holds each answer against the type hints of `edgecore.hookspecs` and
`edgecore.models`, and each error against what the hook may raise. It belongs into tests: it says
nothing about the batch system, the peer or the broker, only about the driver's own words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from attrs import define, field

from edgecore.errors import (
    BrokerUnavailable,
    ConfigurationError,
    EdgeError,
    Problem,
    SchedulerUnavailable,
    TransferInterrupted,
    TransferRefused,
    Unavailable,
)
from edgecore.hookspecs import Messaging, Scheduling, Transfer, hookimpl
from edgecore.models import (
    Answer,
    Closed,
    Declared,
    Delivery,
    Finding,
    Group,
    MessagingProfile,
    Observation,
    OutgoingMessage,
    Reference,
    SchedulingProfile,
    SendReport,
    Settled,
    SubmissionAnswer,
    Submitted,
    Topology,
    TransferProfile,
    TransferProgress,
    TransferReport,
    TransferUpdate,
)
from edgecore.serial import shorten
from edgecore.testing.typed import breaches

__all__ = ["CheckedProgress", "TypeChecked", "WrongAnswer"]

T = TypeVar("T")

_SHOWN_LIMIT: Final = 10
_EVERY_S: Final = 1.0
"""How often progress is told, by the contract."""


class WrongAnswer(AssertionError):
    """A driver answered what its role does not allow: which hook, where in the answer, what, and what is right."""

    def __init__(self, hook: str, problems: Sequence[Problem]) -> None:
        self.hook = hook
        self.problems = tuple(problems)
        lines = [f"{hook}: {one.path}: found {one.found}, expected {one.allowed}" for one in problems]
        if (more := len(lines) - _SHOWN_LIMIT) > 0:
            lines[_SHOWN_LIMIT:] = [f"and {more} more"]
        super().__init__("\n".join(lines))


# ------------------------------------------------------------------------------------- layer


@define(eq=False)
class TypeChecked:
    """Check what a driver of any role answers and raises; the first layer, since it is to see all.

    ::

        relay = SchedulingRelay(driver, site, layers=[TypeChecked()])

    Raises WrongAnswer, an AssertionError, which no part of a service takes for the driver's own.
    """

    @hookimpl(wrapper=True)
    def open(self) -> Generator[None, T, T]:
        """Check the profile."""
        with _only("open", SchedulerUnavailable, BrokerUnavailable, ConfigurationError):
            answer = yield
        return _right("open", answer, SchedulingProfile | TransferProfile | MessagingProfile)

    @hookimpl(wrapper=True)
    def diagnose(self) -> Generator[None, Sequence[Finding], Sequence[Finding]]:
        """Check the findings, where a driver looks for any."""
        with _only("diagnose", Unavailable):
            answer = yield
        return _right("diagnose", answer, _answer_of(Scheduling.diagnose))

    @hookimpl(wrapper=True)
    def close(self) -> Generator[None, Closed, Closed]:
        """Check that closing is confirmed."""
        with _only("close"):
            answer = yield
        return _right("close", answer, _answer_of(Scheduling.close))

    # ------------------------------------------------------------------------ scheduling

    @hookimpl(wrapper=True)
    def submit(
        self, group: Group
    ) -> Generator[None, Mapping[str, SubmissionAnswer], Mapping[str, SubmissionAnswer]]:
        """Check that only members are answered, and no batch id twice."""
        with _only("submit", SchedulerUnavailable):
            answer = yield
        _right("submit", answer, _answer_of(Scheduling.submit))
        ids = [one.batch_id for one in answer.values() if isinstance(one, Submitted)]
        _refuse("submit", _strangers(answer, [each.tag for each in group.submissions]), _twice(ids))
        return answer

    @hookimpl(wrapper=True)
    def observe(
        self, references: Sequence[Reference]
    ) -> Generator[None, Mapping[str, Observation], Mapping[str, Observation]]:
        """Check that only references are answered."""
        with _only("observe", SchedulerUnavailable):
            answer = yield
        _right("observe", answer, _answer_of(Scheduling.observe))
        _refuse("observe", _strangers(answer, [each.tag for each in references]))
        return answer

    @hookimpl(wrapper=True)
    def find(
        self, tags: Sequence[str]
    ) -> Generator[None, Mapping[str, Sequence[Observation]], Mapping[str, Sequence[Observation]]]:
        """Check that only what was asked for is answered, and a tag without any left out."""
        with _only("find", SchedulerUnavailable):
            answer = yield
        _right("find", answer, _answer_of(Scheduling.find))
        empty = (
            Problem(f"answer[{tag!r}]", "no observation", "the tag left out")
            for tag in answer
            if not answer[tag]
        )
        _refuse("find", _strangers(answer, tags), empty)
        return answer

    @hookimpl(wrapper=True)
    def cancel(self, references: Sequence[Reference]) -> Generator[None, Answer, Answer]:
        """Check that every reference is either accepted or refused."""
        return (yield from _of_references("cancel", references))

    @hookimpl(wrapper=True)
    def hold(self, references: Sequence[Reference]) -> Generator[None, Answer, Answer]:
        """Check that every reference is either accepted or refused."""
        return (yield from _of_references("hold", references))

    @hookimpl(wrapper=True)
    def release(self, references: Sequence[Reference]) -> Generator[None, Answer, Answer]:
        """Check that every reference is either accepted or refused."""
        return (yield from _of_references("release", references))

    # -------------------------------------------------------------------------- transfer

    @hookimpl(wrapper=True)
    def fetch(
        self, directory: Path, progress: TransferProgress
    ) -> Generator[None, TransferReport, TransferReport]:
        """Check the report, and with a `CheckedProgress` what was told on the way."""
        return (yield from _of_transfer("fetch", progress))

    @hookimpl(wrapper=True)
    def deliver(
        self, directory: Path, progress: TransferProgress
    ) -> Generator[None, TransferReport, TransferReport]:
        """Check the report, and with a `CheckedProgress` what was told on the way."""
        return (yield from _of_transfer("deliver", progress))

    @hookimpl(wrapper=True)
    def copy(self, progress: TransferProgress) -> Generator[None, TransferReport, TransferReport]:
        """Check the report, and with a `CheckedProgress` what was told on the way."""
        return (yield from _of_transfer("copy", progress))

    @hookimpl(wrapper=True)
    def probe(self) -> Generator[None, T, T]:
        """Check that a place that cannot be reached is an answer, not an error."""
        with _only("probe"):
            answer = yield
        return _right("probe", answer, _answer_of(Transfer.probe))

    # ------------------------------------------------------------------------- messaging

    @hookimpl(wrapper=True)
    def declare(self, topology: Topology) -> Generator[None, Declared, Declared]:
        """Check that every queue that was asked for is confirmed."""
        with _only("declare", BrokerUnavailable, ConfigurationError):
            answer = yield
        _right("declare", answer, _answer_of(Messaging.declare))
        missing = [queue.name for queue in topology.queues if queue.name not in answer.queues]
        _refuse(
            "declare", (Problem("answer.queues", f"no {name!r}", "every queue asked for") for name in missing)
        )
        return answer

    @hookimpl(wrapper=True)
    def send(self, messages: Sequence[OutgoingMessage]) -> Generator[None, SendReport, SendReport]:
        """Check that every message is accounted for once."""
        with _only("send", BrokerUnavailable):
            answer = yield
        _right("send", answer, _answer_of(Messaging.send))
        ids = [message.message_id for message in messages]
        _refuse("send", _strangers(answer.unroutable, ids, "answer.unroutable"))
        unroutable = sum(1 for each in ids if each in answer.unroutable)
        if answer.sent != len(ids) - unroutable:
            told = f"{answer.sent} sent and {unroutable} unroutable"
            _refuse("send", [Problem("answer.sent", told, f"{len(ids)} messages in all")])
        return answer

    @hookimpl(wrapper=True)
    def receive(self, queue: str, limit: int) -> Generator[None, Sequence[Delivery], Sequence[Delivery]]:
        """Check that no more came than was asked for, each from that queue with a handle of its own."""
        with _only("receive", BrokerUnavailable, ConfigurationError):
            answer = yield
        _right("receive", answer, _answer_of(Messaging.receive))
        wrong = [
            Problem(f"answer[{n}].queue", repr(each.queue), repr(queue))
            for n, each in enumerate(answer)
            if each.queue != queue
        ]
        if len(answer) > limit:
            wrong.append(Problem("answer", f"{len(answer)} deliveries", f"at most {limit}, as asked for"))
        _refuse("receive", wrong, _twice([each.token for each in answer]))
        return answer

    @hookimpl(wrapper=True)
    def settle(self, deliveries: Sequence[Delivery]) -> Generator[None, Settled, Settled]:
        """Check that no more were settled than were given."""
        with _only("settle", BrokerUnavailable):
            answer = yield
        _right("settle", answer, _answer_of(Messaging.settle))
        if answer.count > len(deliveries):
            _refuse("settle", [Problem("answer.count", str(answer.count), f"at most {len(deliveries)}")])
        return answer


def _of_references(hook: str, references: Sequence[Reference]) -> Generator[None, Answer, Answer]:
    with _only(hook, SchedulerUnavailable):
        answer = yield
    _right(hook, answer, Answer)
    asked = [each.tag for each in references]
    answered = [*answer.accepted, *answer.refused]
    missing = (
        Problem("answer", f"nothing on {tag!r}", "each accepted or refused")
        for tag in asked
        if tag not in answered
    )
    _refuse(hook, _strangers(answered, asked), _twice(answered), missing)
    return answer


def _of_transfer(hook: str, progress: object) -> Generator[None, TransferReport, TransferReport]:
    if not isinstance(progress, CheckedProgress):
        with _only(hook, EdgeError):  # what that progress raised cannot be told from the driver's own
            answer = yield
        return _right(hook, answer, TransferReport)
    progress.begin()
    with progress.passing(hook), _only(hook, TransferRefused, TransferInterrupted):
        answer = yield
    _right(hook, answer, TransferReport)
    _refuse(hook, progress.ended(answer))
    return answer


# ------------------------------------------------------------------------------------ helpers


@cache
def _answer_of(specification: Callable[..., object]) -> Any:
    return get_type_hints(specification, include_extras=True)["return"]


@contextmanager
def _only(hook: str, *allowed: type[Exception]) -> Iterator[None]:
    """Let only *allowed* errors pass, and only with words."""
    words = f"only {' and '.join(each.__name__ for each in allowed)}" if allowed else "no error"
    try:
        yield
    except allowed as error:
        if not str(error).strip():
            found = f"{type(error).__name__} without words"
            raise WrongAnswer(
                hook, [Problem("raised", found, "what was asked and found, and what to do")]
            ) from error
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise WrongAnswer(hook, [Problem("raised", found, words)]) from error


def _right(hook: str, answer: T, kind: Any) -> T:
    _refuse(hook, breaches(answer, kind))
    return answer


def _refuse(hook: str, *problems: Collection[Problem] | Iterator[Problem]) -> None:
    if found := [problem for some in problems for problem in some]:
        raise WrongAnswer(hook, found)


def _strangers(answered: Collection[str], asked: Sequence[str], path: str = "answer") -> Iterator[Problem]:
    """Say what was answered that nobody asked for."""
    known = set(asked)
    return (Problem(path, repr(each), "only what was asked for") for each in answered if each not in known)


def _twice(names: Sequence[str]) -> Iterator[Problem]:
    return (
        Problem("answer", f"{name!r} twice", "each once")
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    )


# ----------------------------------------------------------------------------------- progress


@define(eq=False)
class CheckedProgress:
    """Be the *progress* of a transfer: note every update, and check them when the transfer has ended.

    ``CheckedProgress(then)`` calls *then* with each update; what that raises must come out of the hook
    as it is.
    """

    then: TransferProgress = lambda update: None
    tolerance_s: float = 2.0
    """How much later than promised an update may be, since machines that test are busy."""
    updates: list[TransferUpdate] = field(init=False, factory=list)
    raised: BaseException | None = field(init=False, default=None)
    longest_silence_s: float = field(init=False, default=0.0)
    _last: float = field(init=False, factory=time.monotonic)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def __call__(self, update: TransferUpdate) -> None:
        """Note an update, and when it came."""
        with self._lock:
            self._note_time()
            self.updates.append(update)
        try:
            self.then(update)
        except BaseException as error:
            self.raised = error
            raise

    def begin(self) -> None:
        """Start the clock: a transfer begins."""
        self._last = time.monotonic()

    @contextmanager
    def passing(self, hook: str) -> Iterator[None]:
        """See that what was raised here comes out of the *hook* as it is."""
        try:
            yield
        except BaseException as error:
            came = error.__cause__ if isinstance(error, WrongAnswer) else error
            if self.raised is not None and came is not self.raised:
                raise WrongAnswer(hook, [self._not_passed(repr(came))]) from error
            raise self.raised or error from None
        if self.raised is not None:
            raise WrongAnswer(hook, [self._not_passed("nothing")]) from self.raised

    def _not_passed(self, found: str) -> Problem:
        return Problem("raised", found, f"the {type(self.raised).__name__} that progress raised, as it is")

    def ended(self, report: TransferReport) -> Iterator[Problem]:
        """Say everything that is wrong with what was told, now that the transfer ended with *report*."""
        self._note_time()
        wrong = [
            problem
            for number, update in enumerate(self.updates)
            for problem in breaches(update, TransferUpdate, f"update[{number}]")
        ]
        yield from wrong or self._order(report)
        if self.longest_silence_s > _EVERY_S + self.tolerance_s:
            found = f"no call for {self.longest_silence_s:.1f} s"
            yield Problem("progress", found, "a call at least every second")

    def _note_time(self) -> None:
        now = time.monotonic()
        self.longest_silence_s = max(self.longest_silence_s, now - self._last)
        self._last = now

    def _order(self, report: TransferReport) -> Iterator[Problem]:
        for name in ("files", "size_bytes"):
            counts = [getattr(update, name) for update in self.updates]
            last = getattr(report, name)
            if counts != sorted(counts):
                yield Problem(f"progress.{name}", shorten(str(counts)), "what never becomes less")
            elif counts and counts[-1] > last:
                yield Problem(f"progress.{name}", str(counts[-1]), f"no more than the report's {last}")
