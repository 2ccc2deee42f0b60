"""Keep jobs durable: one writer with group commit, and readers that can never block it.

Every change of a job is one transaction: its row, its history and the status message that reports
it. One thread owns the one write connection; whoever has something to write hands it an operation
and gets a future, and whatever is waiting is committed together. Reading is done on
read-only connections of their own, see `edgecore.reader`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from attrs import field, frozen

from edgecore import locks, rows, serial, store_file
from edgecore.clock import Clock, iso
from edgecore.errors import StoreError
from edgecore.models import Intent, Job, StatusMessage, printable
from edgecore.rows import Message, Rejection, TransferRecord

__all__ = [
    "REPEATED_WITHIN_US",
    "Arrival",
    "Change",
    "Route",
    "Store",
    "status_of",
]

T = TypeVar("T")
Operation: TypeAlias = Callable[[sqlite3.Connection], T]

_Item: TypeAlias = tuple[Operation[Any], Future[Any]]

REPEATED_WITHIN_US: Final = 86_400_000_000
"""How long, in microseconds, an equal content without any id can be a repetition: one day."""

_MOST_AT_ONCE: Final = 500
_LONGEST_ALARM: Final = 2_000


@frozen
class Route:
    """Where status messages go."""

    exchange: str
    key: str


@frozen
class Change:
    """Move one job along *path*, all in one transaction, or note something without a new status."""

    before: Job | None
    """The job as it was; None for a new one. If the store knows it otherwise, nothing is written."""
    path: tuple[Job, ...]
    transfer: TransferRecord | None = field(default=None, kw_only=True)

    @property
    def after(self) -> Job:
        """The job as it will be."""
        return self.path[-1]


@frozen
class Arrival:
    """A new job, and the identity by which its message is recognised when it comes again."""

    identity: str
    change: Change
    since: int = field(default=0, kw_only=True)
    """An identity that was taken before that time (microseconds UTC) makes a new job all the same."""
    rejection: Rejection | None = field(default=None, kw_only=True)
    """What is kept of a message that was refused."""


def status_of(job: Job, site: str) -> StatusMessage:
    """Return the message that reports the job's present state."""
    attempt = job.attempt
    return StatusMessage(
        job_id=job.public_id,
        argo_job_id=job.definition.argo_job_id,
        site=site,
        name=job.name,
        owner=job.owner,
        state=job.state,
        previous_state=job.previous_state,
        sequence=job.sequence,
        time=iso(job.changed),
        message=job.message,
        batch_id=attempt.batch_id if attempt else None,
        exit_code=attempt.exit_code if attempt else None,
        attempt=attempt.number if attempt else 0,
    )


class Store:
    """Own a site's jobs for as long as the service runs.

    Raises StoreLocked when another service has it, StoreUnusable when it cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        site: str,
        route: Route | None = None,
        mode: str = "wal",
        clock: Clock | None = None,
        committed: Callable[[int], None] = lambda operations: None,
    ) -> None:
        self.path = path
        self.site = site
        self._route = route
        self._clock = clock or Clock()
        self._committed = committed
        """Hears how many operations each transaction has made durable."""
        store_file.check_place(path, mode)
        self._lock = store_file.lock(path)
        try:
            self._connection = store_file.open_for_writing(path, mode)
            store_file.check_sound(self._connection, path)
            with store_file.usable(self._connection, path):
                row = self._connection.execute("SELECT max(id) FROM jobs").fetchone()
        except BaseException:
            os.close(self._lock)
            raise
        self._last_id: int = row[0] or 0
        self._damage: StoreError | None = None
        """Why nothing more is written: what was found damaged once is not trusted again."""
        self._id_lock = threading.Lock()
        self._waiting: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._gathering = threading.local()
        self._passed: list[Job] = []
        self._said: list[Message] = []
        """Statuses and messages of the present transaction, not written yet."""
        self._writer = threading.Thread(target=self._write_all, name="edgecore-store", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what is waiting, then give the store up."""
        self._waiting.put(None)
        self._writer.join()
        self._connection.close()
        os.close(self._lock)

    def beat(self) -> None:
        """Show to those who look that the service moves."""
        locks.beat(self._lock)

    def now(self) -> int:
        """Return the time by the clock of this store, microseconds UTC."""
        return self._clock.now()

    def new_id(self) -> int:
        """Return an id for a new job: the time in microseconds, or the last one plus 1."""
        with self._id_lock:
            self._last_id = max(self._last_id + 1, self._clock.now())
            return self._last_id

    # ------------------------------------------------------------------------- writing

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Hand over what this thread writes in the block at its end, all at once, or nothing if it fails.

        Inside the block, wait for none of it.
        """
        items: list[_Item] = []
        self._gathering.items = items
        try:
            yield
        finally:
            self._gathering.items = None
        if items:
            self._waiting.put(items)

    def apply(self, changes: Sequence[Change]) -> Future[list[bool]]:
        """Write changes together; answers for each whether it was written or was stale."""
        return self._hand(lambda connection: [self._change(connection, change) for change in changes])

    def take(self, arrivals: Sequence[Arrival]) -> Future[list[int]]:
        """Write new jobs, all or none, but those whose identity was taken; answers their ids, old or new."""
        now = self._clock.now()
        return self._hand(lambda connection: self._take(connection, arrivals, now))

    def set_intent(self, job_id: int, intent: Intent, *, revive: bool = False) -> Future[None]:
        """Write what the user wants of a job; a cancel is never taken back, but to *revive* it."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE jobs SET intent = ? WHERE id = ? AND (intent <> ? OR ?)",
                (intent, job_id, Intent.CANCELLED, revive),
            )

        return self._hand(write)

    def note(self, job: Job, message: str) -> Future[None]:
        """Note for people what a job is doing, if it is still where it was."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE jobs SET message = ? WHERE id = ? AND sequence = ?", (message, job.id, job.sequence)
            )

        return self._hand(write)

    def report(self, job: Job) -> Future[None]:
        """Send the job's present status again, under its present sequence number."""
        return self._hand(lambda connection: self._report(job))

    def reply(self, body: str, key: str | None) -> Future[None]:
        """Send a message that belongs to no job, to *key* or else where status goes."""

        def write(connection: sqlite3.Connection) -> None:
            if self._route is not None:
                self._said.append((None, self._route.exchange, key or self._route.key, body))

        return self._hand(write)

    def confirm(self, outbox_ids: Sequence[int]) -> Future[None]:
        """Forget status messages that the broker has."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM outbox WHERE id = ?", [(number,) for number in outbox_ids])

        return self._hand(write)

    def note_alarm(self, subject: str, message: str) -> Future[None]:
        """Write that something needs a person, for those who look later."""
        row = (printable(subject), printable(message)[:_LONGEST_ALARM], self._clock.now())

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO alarms VALUES (?, ?, ?)", row)

        return self._hand(write)

    def forget_alarms(self, subject: str | None = None) -> Future[None]:
        """Forget the alarm about *subject*, whose reason is gone, or all of them."""
        subject = None if subject is None else printable(subject)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM alarms WHERE ? IS NULL OR subject = ?", (subject, subject))

        return self._hand(write)

    def request_done(self, request_id: int) -> Future[None]:
        """Forget a request that was carried out or refused."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM requests WHERE id = ?", (request_id,))

        return self._hand(write)

    def forget_identities(self, before: int) -> Future[None]:
        """Forget contents of messages that were taken before that time; ids are never forgotten."""

        def write(connection: sqlite3.Connection) -> None:
            for kind in ("body", "rejected"):  # ranges of the key: LIKE would look at every other one, too
                connection.execute(
                    "DELETE FROM inbox WHERE identity >= ? AND identity < ? AND taken < ?",
                    (f"{kind}\t", f"{kind}\n", before),
                )

        return self._hand(write)

    def forget_directories(self, job_ids: Sequence[int]) -> Future[None]:
        """Note that these jobs' directories were removed."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE jobs SET kept = 0 WHERE id = ? AND settled = 1", [(number,) for number in job_ids]
            )

        return self._hand(write)

    # ------------------------------------------------------------------------ the rows

    def _take(self, connection: sqlite3.Connection, arrivals: Sequence[Arrival], now: int) -> list[int]:
        known = rows.identities(connection, [arrival.identity for arrival in arrivals])
        new = []
        ids = []
        for arrival in arrivals:
            job_id, taken = known.get(arrival.identity, (0, -1))
            if job_id == 0 or taken < arrival.since:
                job_id = arrival.change.after.id
                known[arrival.identity] = job_id, now
                new.append(arrival)
            ids.append(job_id)
        rows.write_identities(connection, [(each.identity, each.change.after.id, now) for each in new])
        rows.insert_jobs(connection, [each.change.after for each in new])
        for each in new:
            self._beside(connection, each.change)
            if each.rejection is not None:
                rows.write_rejection(connection, each.change.after.id, each.rejection)
        return ids

    def _change(self, connection: sqlite3.Connection, change: Change) -> bool:
        before, after = change.before, change.after
        if before is None:
            rows.insert_jobs(connection, [after])
        elif not rows.update_job(connection, before, after):
            return False
        self._beside(connection, change)
        return True

    def _beside(self, connection: sqlite3.Connection, change: Change) -> None:
        """Write what goes with the row of a job."""
        before, after = change.before, change.after
        if after.attempt is not None and (before is None or after.attempt != before.attempt):
            rows.write_attempt(connection, after.id, after.attempt)
        sequence = before.sequence if before else 0
        for job in change.path:
            if job.sequence > sequence:
                sequence = job.sequence
                self._passed.append(job)
                self._report(job)
        if change.transfer is not None:
            rows.write_transfer(connection, after.id, change.transfer)

    def _report(self, job: Job) -> None:
        if self._route is not None:
            body = serial.to_json(status_of(job, self.site))
            self._said.append((job.id, self._route.exchange, self._route.key, body))

    # ---------------------------------------------------------------------- the writer

    def _hand(self, operation: Operation[T]) -> Future[T]:
        future: Future[T] = Future()
        gathered: list[_Item] | None = getattr(self._gathering, "items", None)
        if gathered is None:
            self._waiting.put([(operation, future)])
        else:
            gathered.append((operation, future))
        return future

    def _write_all(self) -> None:
        handed = self._waiting.get()
        while handed is not None:
            items = handed
            with contextlib.suppress(queue.Empty):
                while len(items) < _MOST_AT_ONCE and (handed := self._waiting.get_nowait()) is not None:
                    items += handed
            self._write_together(items)
            if handed is not None:
                handed = self._waiting.get()

    def _write_together(self, items: list[_Item]) -> None:
        """Commit all in one transaction; where that fails, each in one of its own."""
        if not items:
            return
        if self._damage is not None:
            for _, future in items:
                future.set_exception(self._damage)
            return
        try:
            with store_file.transaction(self._connection):
                results = self._carry_out(items)
        except Exception as error:
            if len(items) > 1:
                for item in items:
                    self._write_together([item])
                return
            said = store_file.explained(error, self.path)
            if isinstance(said, StoreError) and store_file.is_damage(error):
                self._damage = said
            items[0][1].set_exception(said)
            return
        self._committed(len(items))
        for (_, future), result in zip(items, results, strict=True):
            future.set_result(result)

    def _carry_out(self, items: Sequence[_Item]) -> list[Any]:
        """Write what was handed over; what nobody looks at before the transaction ends comes last, gathered."""
        self._passed.clear()
        self._said.clear()
        results = [operation(self._connection) for operation, _ in items]
        rows.write_history(self._connection, self._passed)
        rows.write_messages(self._connection, self._said)
        return results
