"""Take deliveries from the site's queue into the store; acknowledge them when they are durable there.

A delivery is a job definition or a request about a job. What is wrong with one is told to its
sender as JOB_REJECTED with every reason, kept as a job that an operator can look at, and put among
the dead letters. A delivery that comes again changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from edgecore import serial
from edgecore.admission import Admission
from edgecore.control import Control
from edgecore.drivers import MessagingRelay
from edgecore.engine import Backoff, Engine
from edgecore.errors import DefinitionError, EdgeError
from edgecore.models import ControlMessage, Delivery, Job, JobDefinition, JobState, RoutingKey, Verdict
from edgecore.reader import Reader
from edgecore.store import Change, Store, status_of

__all__ = ["Intake"]

log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 200
_WAIT_S: Final = 1.0


@frozen
class _Taken:
    """A delivery on its way into the store."""

    delivery: Delivery
    job: Job
    written: Future[int]
    refusal: str = ""


@define(eq=False, kw_only=True)
class Intake:
    """Empty the site's queue into the store."""

    queue: str
    messaging: MessagingRelay
    admission: Admission
    store: Store
    store_path: Path
    engine: Engine
    control: Control
    owner: str
    """Who owns what the broker vouches for nobody."""
    backoff: Backoff = field(factory=lambda: Backoff(first_s=1.0, longest_s=60.0))
    _stop: threading.Event = field(init=False, factory=threading.Event)

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own."""
        thread = threading.Thread(target=self._run, name="edgecore-intake", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Take nothing more; what was taken is finished."""
        self._stop.set()

    def _run(self) -> None:
        failures = 0
        with Reader(self.store_path) as reader:
            while not self._stop.is_set():
                try:
                    deliveries = self.messaging.receive(
                        queue=self.queue, limit=_MOST_AT_ONCE, timeout_s=_WAIT_S
                    )
                    if deliveries:
                        self._take(deliveries, reader)
                    failures = 0
                except Exception as error:
                    failures += 1
                    if failures == 1:
                        expected = isinstance(error, EdgeError)
                        log.warning("no job definitions can be taken: %s", error, exc_info=not expected)
                    self._stop.wait(self.backoff.after(failures))

    def _take(self, deliveries: Sequence[Delivery], reader: Reader) -> None:
        accepted: list[Delivery] = []
        taken: list[_Taken] = []
        for delivery in deliveries:
            try:
                read = self.admission.read(delivery.body, self._source(delivery))
            except DefinitionError as error:
                taken.append(self._reject(delivery, error))
                continue
            if isinstance(read, ControlMessage):
                self._control(read, delivery, reader)
                accepted.append(delivery)
            else:
                taken.append(self._create(delivery, read))
        new = [item.job for item in taken if item.written.result() == item.job.id]
        self.engine.on_commit()
        self.engine.add(job for job in new if job.state is JobState.CREATED)
        accepted += [item.delivery for item in taken if not item.refusal]
        if accepted:
            self.messaging.settle(deliveries=accepted, verdict=Verdict.ACCEPT, reason="")
        for item in taken:
            if item.refusal:
                self.messaging.settle(deliveries=[item.delivery], verdict=Verdict.REFUSE, reason=item.refusal)

    def _source(self, delivery: Delivery) -> str:
        return f"message {delivery.message_id}" if delivery.message_id else "message without id"

    def _owner(self, delivery: Delivery) -> str:
        return delivery.sender or self.owner

    def _create(self, delivery: Delivery, definition: JobDefinition) -> _Taken:
        owner = self._owner(delivery)
        again = False
        if definition.job_id is not None:
            identity = f"job\t{owner}\t{definition.job_id}"
        elif delivery.message_id is not None:
            identity = message_identity(owner, delivery.message_id)
        else:
            # Equal bodies may be two jobs; only a delivery known to be a repetition is taken for one.
            identity = f"body\t{owner}\t{_digest(delivery.body)}"
            again = not delivery.redelivered
        job = self._new(owner, definition, JobState.CREATED, "")
        return _Taken(delivery, job, self.store.take(identity, Change(None, (job,)), again=again))

    def _reject(self, delivery: Delivery, error: DefinitionError) -> _Taken:
        owner = self._owner(delivery)
        digest = _digest(delivery.body)
        reasons = "; ".join(map(str, error.problems))
        log.warning("%s from %s is rejected: %s", error.source, owner, reasons)
        message = f"{reasons} (message id {delivery.message_id}, sha256 {digest})"
        job = self._new(owner, self.admission.what_can_be_read(delivery.body), JobState.JOB_REJECTED, message)
        identity = f"rejected\t{owner}\t{delivery.message_id}\t{digest}"
        written = self.store.take(identity, Change(None, (job,)), again=not delivery.redelivered)
        if delivery.reply_to is not None and _permitted(delivery.reply_to):
            self.store.reply(serial.to_json(status_of(job, self.store.site)), delivery.reply_to)
        return _Taken(delivery, job, written, reasons)

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

    def _control(self, message: ControlMessage, delivery: Delivery, reader: Reader) -> None:
        owner = self._owner(delivery)
        jobs = reader.find(message.job_id, owner=owner)
        if not jobs:
            log.warning(
                "%s asked to %s job %s, of which there is none of theirs",
                owner,
                message.command,
                message.job_id,
            )
        for job in jobs[-1:]:
            self.control.carry_out(message.command, self.engine.jobs.get(job.id, job), operator=False)


def message_identity(owner: str, message_id: str) -> str:
    """Return the identity by which a delivery with a message id is recognised when it comes again."""
    return f"message\t{owner}\t{message_id}"


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


_REPLY_KEY: Final = RoutingKey.__metadata__[0]  # type: ignore[attr-defined]
_permitted: Final[Callable[[str], bool]] = _REPLY_KEY.accepts
