"""Let alarms reach people: written into the store for those who look, told to an operator's program for the rest.

Both are listeners like any other, and neither ever makes the service wait.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import define, field, frozen

from edgecore import commands
from edgecore.backoff import Backoff
from edgecore.clock import Clock, iso
from edgecore.config import SiteConfig
from edgecore.errors import ActionStopped, ConfigurationError, EdgeError, Problem
from edgecore.hookspecs import hookimpl
from edgecore.store import Store

__all__ = ["AlarmBook", "AlarmCommand", "open_alarm_command"]

log = logging.getLogger(__name__)

_MOST_WAITING: Final = 500
_TELLING: Final = "alarm program"
"""The subject under which those who look learn that nobody is told."""
_LAST_S: Final = 5.0
"""How long the program may take when the service stops."""


@frozen(eq=False)
class AlarmBook:
    """Keep the alarms of a service in its store, beginning with none."""

    _store: Store

    def __attrs_post_init__(self) -> None:
        self._store.forget_alarms()

    @hookimpl
    def alarm_raised(self, subject: str, message: str) -> None:
        """Write an alarm down."""
        self._store.note_alarm(subject, message)

    @hookimpl
    def alarm_cleared(self, subject: str) -> None:
        """Strike an alarm out."""
        self._store.forget_alarms(subject)

    def not_told(self, words: str) -> None:
        """Write down why people are not told of alarms; strike it out where *words* are empty."""
        if words:
            self._store.note_alarm(_TELLING, words)
        else:
            self._store.forget_alarms(_TELLING)


@frozen
class _Event:
    """An alarm, or its end."""

    event: str
    subject: str
    message: str
    time: str


def open_alarm_command(
    config: SiteConfig, clock: Clock, not_told: Callable[[str], None] = lambda words: None
) -> AlarmCommand | None:
    """Return what tells a site's program of alarms, or None where it has none. Raises ConfigurationError."""
    table, environment = config.alarms, config.context.environment
    if not table.command:
        return None
    program, path = table.command[0], environment.get("PATH", os.defpath)
    if shutil.which(program, path=path) is None:  # better said now than when there is an alarm
        advice = f"there is no such program that the service can execute, on PATH={path} or as a whole path"
        raise ConfigurationError(str(config.source), [Problem("alarms.command", program, advice)])
    return AlarmCommand(
        site=config.site,
        command=table.command,
        interval_s=table.interval_s,
        timeout_s=table.timeout_s,
        environment=environment,
        clock=clock,
        not_told=not_told,
    )


@define(eq=False, kw_only=True)
class AlarmCommand:
    """Run an operator's program with what it is to tell people, as JSON on its standard input.

    The first alarm is told at once, those that follow within *interval_s* together. Where the program fails it
    is run again with the same, ever less often.
    """

    site: str
    command: Sequence[str]
    interval_s: float
    timeout_s: float
    environment: Mapping[str, str]
    clock: Clock = field(factory=Clock)
    backoff: Backoff = field(factory=lambda: Backoff(first_s=10.0, longest_s=600.0))
    not_told: Callable[[str], None] = field(default=lambda words: None)
    """Hears why the program failed, and no words once it has succeeded again."""
    _waiting: deque[_Event] = field(init=False, factory=lambda: deque(maxlen=_MOST_WAITING))
    _lock: threading.Lock = field(init=False, factory=threading.Lock)
    _news: threading.Event = field(init=False, factory=threading.Event)
    _stop: threading.Event = field(init=False, factory=threading.Event)
    _stopped_at: float = field(init=False, default=float("inf"))

    @hookimpl
    def alarm_raised(self, subject: str, message: str) -> None:
        """Have an alarm told."""
        self._put("raised", subject, message)

    @hookimpl
    def alarm_cleared(self, subject: str, message: str) -> None:
        """Have the end of an alarm told."""
        self._put("cleared", subject, message)

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own."""
        thread = threading.Thread(target=self._run, name="edgecore-alarms", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Tell what waits once more, then end."""
        self._stopped_at = time.monotonic()
        self._stop.set()
        self._news.set()

    def _put(self, event: str, subject: str, message: str) -> None:
        with self._lock:
            self._waiting.append(_Event(event, subject, message, iso(self.clock.now())))
        self._news.set()

    def _run(self) -> None:
        failures = 0
        while True:
            self._news.wait()
            self._news.clear()
            last_round = self._stop.is_set()
            with self._lock:
                events = list(self._waiting)
                self._waiting.clear()
            if events and (trouble := self._trouble(events)):
                log.warning("alarms were not told, which is tried again while the service runs: %s", trouble)
                if not failures:
                    self.not_told(trouble)
                failures += 1
                self._give_back(events)
            elif events and failures:
                failures = 0
                self.not_told("")
            if last_round:
                return
            self._stop.wait(max(self.interval_s, self.backoff.after(failures) if failures else 0.0))

    def _give_back(self, events: Sequence[_Event]) -> None:
        """Keep what was not told for the next time; of too many, the oldest go."""
        with self._lock:
            newer = list(self._waiting)
            self._waiting.clear()
            self._waiting.extend([*events, *newer])
        self._news.set()

    def _trouble(self, events: Sequence[_Event]) -> str:
        """Run the program; return why it failed, or nothing."""
        try:
            result = commands.run(
                self.command,
                timeout_s=self.timeout_s,
                environment=self.environment,
                stdin=json.dumps(self._document(events)).encode(),
                unwanted=lambda: time.monotonic() > self._stopped_at + _LAST_S,
            )
        except ActionStopped:
            return f"{self.command[0]} takes too long, and the service stops"
        except (EdgeError, OSError) as error:
            return str(error)
        return result.complaint() if result.exit_code != 0 else ""

    def _document(self, events: Sequence[_Event]) -> dict[str, object]:
        """Return one subject and one message, as for a mail, and the events one by one."""
        lines = [f"{each.time} {each.event}: {each.subject}: {each.message}" for each in events]
        first = events[0]
        subject = f"alarm {first.event}: {first.subject}" if len(events) == 1 else f"{len(events)} alarms"
        return {
            "site": self.site,
            "subject": f"edgecore site {self.site}: {subject}",
            "message": "\n".join(lines),
            "alarms": [
                {"event": e.event, "subject": e.subject, "message": e.message, "time": e.time} for e in events
            ],
        }
