"""Take deliveries from the site's queue into the store; acknowledge them when they are durable there.

A delivery is a job definition or a request about a job. What is wrong with one is told to its
sender as JOB_REJECTED with every reason, kept as a job that an operator can look at, and put among
the dead letters. A delivery that comes again changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Final

from attrs import Factory, define, evolve, field, frozen

from edgecore import serial
from edgecore.admission import Admission
from edgecore.alarms import STORE, Silence
from edgecore.backoff import Backoff
from edgecore.broker import Broker
from edgecore.clock import SteadyClock
from edgecore.control import Control
from edgecore.drivers import MessagingRelay
from edgecore.engine import Engine
from edgecore.errors import DefinitionError, EdgeError, Problem, StoreError
from edgecore.logs import about
from edgecore.models import (
    ControlMessage,
    Delivery,
    Job,
    JobDefinition,
    JobState,
    RoutingKey,
    Verdict,
    printable,
)
from edgecore.reader import Reader
from edgecore.rows import Rejection
from edgecore.store import REPEATED_WITHIN_US, Arrival, Change, Store, status_of

__all__ = ["Intake"]

log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 200
_WAIT_S: Final = 1.0
_LONGEST_ID: Final = 255
_EXCERPT_BYTES: Final = 2_000
_NEVER_US: Final = 2**62
_DURABLE_S: Final = 5.0
"""How long to wait until a request is durable; then it goes back to the broker."""


@frozen
class _Taken:
    """A delivery on its way into the store."""

    delivery: Delivery
    arrival: Arrival
    refusal: str = ""

    @property
    def change(self) -> Change:
        """What makes the job."""
        return self.arrival.change

    @property
    def named(self) -> tuple[str, str]:
        """The owner, and how requests may name the job."""
        job = self.change.after
        return job.owner, str(job.public_id)


@frozen
class _Batch:
    """Deliveries on their way into the store in one transaction, and what else they asked for."""

    taken: Sequence[_Taken]
    written: Future[list[int]]
    asked: Sequence[tuple[Delivery, ControlMessage]]


@define(eq=False, kw_only=True)
class Intake:
    """Empty the site's queue into the store."""

    queue: str
    messaging: Broker | MessagingRelay
    admission: Admission
    store: Store
    store_path: Path
    engine: Engine
    control: Control
    owner: str
    """Who owns what the broker vouches for nobody."""
    alarm_after_s: float = 1_800.0
    backoff: Backoff = field(factory=lambda: Backoff(first_s=1.0, longest_s=60.0))
    _stop: threading.Event = field(init=False, factory=threading.Event)
    _begun: deque[_Batch] = field(init=False, factory=deque)
    _steady: SteadyClock = field(
        init=False, default=Factory(lambda self: SteadyClock(self.engine.clock), takes_self=True)
    )
    _silence: Silence = field(init=False)
    """Of the broker or the store: whatever keeps us from taking more."""

    @_silence.default
    def _make_silence(self) -> Silence:
        return Silence(
            subject="job definitions",
            begins="no job definitions can be taken",
            lasts="none taken",
            ends="they are taken again",
            alarms=self.engine.alarms,
            alarm_after_s=self.alarm_after_s,
            clock=self.engine.clock,
        )

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own. Raises StoreUnusable."""
        reader = Reader(self.store_path)
        thread = threading.Thread(target=self._run, args=(reader,), name="edgecore-intake", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Take nothing more; what was taken is finished."""
        self._stop.set()

    def _run(self, reader: Reader) -> None:
        with reader:
            while not self._stop.is_set():
                try:
                    if self._round(reader):
                        self._silence.answered()
                except Exception as error:
                    self._silence.failed(error)
                    if isinstance(error, StoreError):
                        self.engine.alarms.raise_once(STORE, str(error))
                    self._finish_all(reader)  # what is durable must not wait with us
                    self._stop.wait(self.backoff.after(self._silence.failures))
            self._finish_all(reader)

    def _round(self, reader: Reader) -> bool:
        """Receive and begin one batch, and finish the one before, which was committed meanwhile.

        Tell whether that shows that all is well: what has only begun may yet be found not to be durable.
        """
        wait_s = 0.0 if self._begun else _WAIT_S
        deliveries = self.messaging.receive(queue=self.queue, limit=_MOST_AT_ONCE, timeout_s=wait_s)
        if deliveries:
            try:
                self._begun.append(self._begin(deliveries))
            except BaseException:
                self._put_back(deliveries)
                raise
        if len(self._begun) > 1 or not deliveries:
            self._finish_first(reader)
            return True
        return not self._begun

    def _put_back(self, deliveries: Sequence[Delivery]) -> None:
        self.messaging.settle(deliveries=deliveries, verdict=Verdict.PUT_BACK, reason="")

    def _finish_all(self, reader: Reader) -> None:
        while self._begun:
            try:
                self._finish_first(reader)
            except Exception as error:
                log.warning("deliveries could not be finished and will come again: %s", error)

    def _begin(self, deliveries: Sequence[Delivery]) -> _Batch:
        """Read deliveries and hand the new jobs to the store, to be written in one transaction."""
        taken: list[_Taken] = []
        asked: list[tuple[Delivery, ControlMessage]] = []
        admission = self.admission.now()
        with self.store.together():
            for delivery in map(_storable, deliveries):
                try:
                    read = self._read(delivery, admission)
                except DefinitionError as error:
                    taken.append(self._reject(delivery, error))
                    continue
                if isinstance(read, ControlMessage):
                    asked.append((delivery, read))
                else:
                    taken.append(self._create(delivery, read))
            written = self.store.take([item.arrival for item in taken])
        return _Batch(taken, written, asked)

    def _read(self, delivery: Delivery, admission: Admission) -> JobDefinition | ControlMessage:
        """Read a message. Raises DefinitionError, also where we fail at it: it must not come again for ever."""
        source = self._source(delivery)
        try:
            return admission.read(delivery.body, source)
        except EdgeError:
            raise
        except Exception as error:
            log.exception("%s cannot be read, which is a fault of edgecore", source)
            raise DefinitionError(source, [Problem("", "", f"internal error: {error!r}")]) from error

    def _finish_first(self, reader: Reader) -> None:
        """Wait until the oldest batch is durable, let the engine have it, and acknowledge it."""
        if not self._begun:
            return
        batch = self._begun.popleft()
        written: list[_Taken] = []
        new: list[Change] = []
        failed: list[tuple[Delivery, BaseException]] = []
        missing: dict[tuple[str, str], BaseException] = {}
        for item, done in zip(batch.taken, self._ids(batch), strict=True):
            if isinstance(done, BaseException):
                failed.append((item.delivery, done))
                missing[item.named] = done
                continue
            written.append(item)
            if done == item.change.after.id:
                new.append(item.change)
            else:
                log.info("%s repeats job %d", self._source(item.delivery), done, extra={"job": done})
        self.engine.on_commit()
        self.engine.add_new(new)
        accepted = [item.delivery for item in written if not item.refusal]
        asked = []
        for delivery, message in batch.asked:
            if why := missing.get((self._owner(delivery), str(message.job_id))):
                failed.append((delivery, why))  # it comes again with its job
            else:
                asked.append((delivery, message))
        accepted += self._carried_out(asked, reader, failed)  # after the jobs: one of them may be meant
        if accepted:
            self.messaging.settle(deliveries=accepted, verdict=Verdict.ACCEPT, reason="")
        for item in written:
            if item.refusal:
                self.messaging.settle(deliveries=[item.delivery], verdict=Verdict.REFUSE, reason=item.refusal)
        if failed:
            self._put_back([delivery for delivery, _ in failed])
            raise failed[0][1]

    def _ids(self, batch: _Batch) -> Sequence[int | BaseException]:
        """Wait until a batch is durable; answers whose each delivery is. One that cannot be written stops no other."""
        if batch.written.exception() is None:
            return batch.written.result()
        with self.store.together():
            alone = [self.store.take([item.arrival]) for item in batch.taken]
        return [future.exception() or future.result()[0] for future in alone]

    def _source(self, delivery: Delivery) -> str:
        return f"message {_shown(delivery.message_id)}" if delivery.message_id else "message without id"

    def _owner(self, delivery: Delivery) -> str:
        return delivery.sender or self.owner

    def _create(self, delivery: Delivery, definition: JobDefinition) -> _Taken:
        owner = self._owner(delivery)
        since = 0
        if definition.job_id is not None:
            identity = f"job\t{owner}\t{definition.job_id}"
        elif delivery.message_id:
            identity = message_identity(owner, delivery.message_id)
        else:
            # Equal bodies may be two jobs; only a delivery known to be a repetition is taken for one.
            identity = f"body\t{owner}\t{_digest(delivery.body)}"
            since = self._repeated_since(delivery)
        change = self.engine.begun(self._new(owner, definition, JobState.CREATED, ""))
        return _Taken(delivery, Arrival(identity, change, since=since))

    def _repeated_since(self, delivery: Delivery) -> int:
        """Return since when an equal content, taken before, makes a delivery a repetition."""
        return self._steady.earliest() - REPEATED_WITHIN_US if delivery.redelivered else _NEVER_US

    def _reject(self, delivery: Delivery, error: DefinitionError) -> _Taken:
        owner = self._owner(delivery)
        digest = _digest(delivery.body)
        reasons = "; ".join(map(str, error.problems))
        message = f"{reasons} (message id {_shown(delivery.message_id)}, sha256 {digest})"
        job = self._new(owner, self.admission.what_can_be_read(delivery.body), JobState.JOB_REJECTED, message)
        log.warning("%s from %s is rejected: %s", error.source, owner, reasons, extra=about(job))
        identity = f"rejected\t{owner}\t{delivery.message_id}\t{digest}"
        rejection = Rejection(
            message_id=None if delivery.message_id is None else printable(delivery.message_id)[:_LONGEST_ID],
            sha256=digest,
            size_bytes=len(delivery.body),
            reasons=tuple(printable(str(problem)) for problem in error.problems),
            excerpt=delivery.body[:_EXCERPT_BYTES].decode("utf-8", "replace"),
        )
        since = self._repeated_since(delivery)
        arrival = Arrival(identity, Change(None, (job,)), since=since, rejection=rejection)
        if delivery.reply_to is not None and _permitted(delivery.reply_to):
            self.store.reply(serial.to_json(status_of(job, self.store.site)), delivery.reply_to)
        return _Taken(delivery, arrival, reasons)

    def _new(self, owner: str, definition: JobDefinition, state: JobState, message: str) -> Job:
        return Job(
            id=self.store.new_id(),
            owner=owner,
            definition=definition,
            state=state,
            sequence=1,
            changed=self.store.now(),
            message=message,
        )

    def _carried_out(
        self,
        asked: Sequence[tuple[Delivery, ControlMessage]],
        reader: Reader,
        failed: list[tuple[Delivery, BaseException]],
    ) -> Sequence[Delivery]:
        """Do what senders ask of their jobs; answers what is durable, and adds what *failed*. What takes long is put back."""
        futures = [(delivery, self._asked(message, delivery, reader)) for delivery, message in asked]
        wait([done for _, done in futures], _DURABLE_S)
        durable, late = [], []
        for delivery, done in futures:
            if not done.done():
                late.append(delivery)
            elif error := done.exception():
                failed.append((delivery, error))
            else:
                durable.append(delivery)
        if late:
            log.warning("%d requests take long to carry out and will come again", len(late))
            self._put_back(late)
        return durable

    def _asked(self, message: ControlMessage, delivery: Delivery, reader: Reader) -> Future[None]:
        """Begin to carry out a request; whatever it meets, the others of its batch are finished."""
        done: Future[None] = Future()
        try:
            begun = self._control(message, delivery, reader)
        except Exception as error:
            done.set_exception(error)
            return done
        if begun is not None:
            return begun
        done.set_result(None)
        return done

    def _control(self, message: ControlMessage, delivery: Delivery, reader: Reader) -> Future[None] | None:
        owner = self._owner(delivery)
        found = reader.find(message.job_id, owner=owner)
        # A resend that was rejected stands beside the job that it was to repeat.
        jobs = [job for job in found if job.state is not JobState.JOB_REJECTED] or found
        if not jobs:
            log.warning(
                "%s asked to %s job %s, of which there is none of theirs",
                owner,
                message.command,
                message.job_id,
                extra={"job_id": message.job_id, "owner": owner},
            )
            return None
        job = jobs[-1]
        return self.control.carry_out(
            message.command,
            self.engine.jobs.get(job.id, job),
            operator=False,
            from_start=message.from_start,
        )


def message_identity(owner: str, message_id: str) -> str:
    """Return the identity by which a delivery with a message id is recognised when it comes again."""
    return f"message\t{owner}\t{message_id}"


def _storable(delivery: Delivery) -> Delivery:
    """Return a delivery whose names the store can hold: one that it could not would come again for ever."""
    message_id, sender = _escaped(delivery.message_id), _escaped(delivery.sender)
    if (message_id, sender) == (delivery.message_id, delivery.sender):
        return delivery
    return evolve(delivery, message_id=message_id, sender=sender)


def _escaped(text: str | None) -> str | None:
    return text if text is None or text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _shown(message_id: str | None) -> str:
    """Return a sender's message id fit for a line of a log."""
    plain = message_id is None or (message_id.isprintable() and len(message_id) <= _LONGEST_ID)
    return str(message_id) if plain else serial.shorten(message_id)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


_REPLY_KEY: Final = RoutingKey.__metadata__[0]  # type: ignore[attr-defined]
_permitted: Final[Callable[[str], bool]] = _REPLY_KEY.accepts
