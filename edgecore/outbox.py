"""Send committed status messages, in order, until the broker has them.

A message that no queue takes is set apart, with all that follow for the same job, and tried again
later, so that it never delays another job's. A broker that is away is waited for; meanwhile
everything else goes on, and nothing is forgotten before the broker has confirmed it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field

from edgecore.alarms import Silence
from edgecore.backoff import Backoff
from edgecore.broker import Broker
from edgecore.drivers import MessagingRelay
from edgecore.engine import Engine
from edgecore.errors import BrokerUnavailable
from edgecore.models import OutgoingMessage
from edgecore.reader import OutboxEntry, Reader
from edgecore.store import Store

__all__ = ["Outbox"]

log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 500
_GATHER_S: Final = 0.05
"""What becomes durable so soon after a sending goes together: each sending costs the disk as much as a change does."""
_MOST_APART: Final = 1_000
_UNROUTABLE: Final = "status messages"


@define(eq=False, kw_only=True)
class Outbox:
    """Empty the store's outbox into the broker."""

    store: Store
    store_path: Path
    messaging: Broker | MessagingRelay
    engine: Engine
    alarm_after_s: float
    backoff: Backoff = field(factory=lambda: Backoff(first_s=1.0, longest_s=60.0))
    _news: threading.Event = field(init=False, factory=threading.Event)
    _stop: threading.Event = field(init=False, factory=threading.Event)
    _apart: dict[int, list[OutboxEntry]] = field(init=False, factory=dict)
    """What leads nowhere, and what must follow it, by line."""
    _last: int = field(init=False, default=0)
    _silence: Silence = field(init=False)
    """Of the broker."""

    @_silence.default
    def _make_silence(self) -> Silence:
        return Silence(
            subject="message broker",
            begins="the broker takes no messages, which are kept",
            ends="it takes messages again",
            alarms=self.engine.alarms,
            alarm_after_s=self.alarm_after_s,
            clock=self.engine.clock,
        )

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own. Raises StoreUnusable."""
        reader = Reader(self.store_path)
        thread = threading.Thread(target=self._run, args=(reader,), name="edgecore-outbox", daemon=True)
        thread.start()
        return thread

    def ring(self) -> None:
        """Say that there are new messages."""
        self._news.set()

    def stop(self) -> None:
        """Send what is there once more, then end; what the broker does not take stays in the store."""
        self._stop.set()
        self._news.set()

    def _run(self, reader: Reader) -> None:
        with reader:
            while True:
                last_round = self._stop.is_set()
                self._news.clear()
                try:
                    self._empty(reader)
                except Exception as error:
                    self._silence.failed(error)
                else:
                    self._silence.answered()
                if last_round:
                    return
                if self._silence.failures:
                    self._stop.wait(self.backoff.after(self._silence.failures))
                else:
                    self._stop.wait(_GATHER_S)
                    self._news.wait(self.backoff.longest_s)

    def _empty(self, reader: Reader) -> None:
        self._try_apart()
        while entries := reader.outbox(self._last, _MOST_AT_ONCE):
            now = [entry for entry in entries if _line(entry) not in self._apart]
            unroutable = self._send(now)
            if unroutable:
                reason = next(iter(unroutable.values()))
                self.engine.alarms.raise_once(_UNROUTABLE, reason)
                several = len({_line(entry) for entry in now}) > 1
                if (several and len(unroutable) == len(now)) or len(self._apart) >= _MOST_APART:
                    # Not one job's trouble: nothing leads anywhere. Wait, and begin here again.
                    raise BrokerUnavailable(reason)
            for entry in entries:
                if str(entry.id) in unroutable or _line(entry) in self._apart:
                    self._apart.setdefault(_line(entry), []).append(entry)
            self._last = entries[-1].id

    def _try_apart(self) -> None:
        for line, entries in list(self._apart.items()):
            if self._send(entries[:1]):
                continue
            unroutable = self._send(entries[1:])
            self._apart[line] = [entry for entry in entries[1:] if str(entry.id) in unroutable]
            if not self._apart[line]:
                del self._apart[line]
        if not self._apart:
            self.engine.alarms.clear(_UNROUTABLE, "all are on their way")

    def _send(self, entries: Sequence[OutboxEntry]) -> Mapping[str, str]:
        """Send and forget *entries*; answers which of them, by id, lead nowhere and why.

        An answer about no job that leads nowhere is forgotten: its asker named a place that is not there.
        """
        if not entries:
            return {}
        report = self.messaging.send(
            messages=[
                OutgoingMessage(
                    exchange=entry.exchange, key=entry.key, body=entry.body.encode(), message_id=str(entry.id)
                )
                for entry in entries
            ]
        )
        gone = [
            entry.id for entry in entries if entry.job_id is None or str(entry.id) not in report.unroutable
        ]
        self.store.confirm(gone)
        return {number: why for number, why in report.unroutable.items() if int(number) not in gone}


def _line(entry: OutboxEntry) -> int:
    """Return what a message keeps its order with: its job; an answer about none goes by itself."""
    return -entry.id if entry.job_id is None else entry.job_id
