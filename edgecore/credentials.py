"""Keep a site's credentials usable, and let what needs one wait while it is not.

Each credential of the site's file is looked at now and then, and at every moment at which something about it changes
by the clock. Before it expires, the operator's command is run that puts a new one in its place: one run at a
time, ever less often while it fails, and never because it has just succeeded. Only the file says whether it
did. Transfers that need a credential which cannot be used wait, and nothing else does; they go on
by themselves, and no job is blamed for what failed by it, unless its time is up meanwhile. Outside, people learn
which credential it is and until when it lasts; paths and what the command said stay here.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from attrs import define, field, frozen

from edgecore import commands, serial
from edgecore.alarms import Alarms
from edgecore.backoff import Backoff
from edgecore.certificates import Judgement, judge, utc
from edgecore.clock import Clock, iso
from edgecore.config import CredentialTable, SiteConfig, TransferTable
from edgecore.drivers import Listeners
from edgecore.engine import Engine
from edgecore.errors import (
    ActionStopped,
    ConfigurationError,
    EdgeError,
    Problem,
    StoreError,
    TransferInterrupted,
    TransferRefused,
)
from edgecore.graph import WAITS, Outcome, Postponed
from edgecore.models import Intent, Job, JobState, WarningMessage
from edgecore.processes import end_all
from edgecore.store import Change
from edgecore.warned import Warned
from edgecore.workplace import program_mark, programs_of, too_late

__all__ = ["Credential", "CredentialWatch", "Credentials", "open_credentials", "watch_credentials"]

log = logging.getLogger(__name__)

_MINUTE_US: Final = 60_000_000
_SETTLES_S: Final = 0.5
"""A file that cannot be used is looked at again after so long: somebody may be writing it."""
_LEAST_PAUSE_S: Final = 0.01
_ENDING_S: Final = 5.0
"""How long a command that renews has to put things in order when it is ended."""
_NAME: Final = "EDGECORE_CREDENTIAL"
"""Tells the command which credential it renews; by this its processes are known, too."""


@define(eq=False)
class Credential:
    """One credential, as it was last seen; from any thread."""

    table: CredentialTable
    clock: Clock = field(factory=Clock)
    seen: Judgement = field(init=False, factory=Judgement)
    """Replaced as a whole whenever a file has changed."""
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def look(self) -> Judgement:
        """Look at the files."""
        with self._lock:
            self.seen = judge(self.table.file, self.table.key)
            return self.seen

    def reason(self) -> str:
        """Say why it cannot be used now; empty where it can."""
        return self.seen.reason(self.clock.now())

    def hint(self) -> str:
        """Say why it cannot be used to people outside, who learn of no path here."""
        trouble = bool(self.seen.trouble)
        return "the operators of this site are told why" if trouble else self.seen.reason(self.clock.now())

    def left_s(self) -> float:
        """Return for how many seconds more it can be used; 0 where it cannot."""
        now = self.clock.now()
        return 0.0 if self.seen.reason(now) else (self.seen.expires - now) / 1e6


@frozen(eq=False)
class Credentials:
    """All credentials of a site, and what waits for them."""

    each: Sequence[Credential] = ()
    places: Sequence[TransferTable] = ()

    def missing(self, url: str | None, *, look: bool = False) -> str:
        """Say what a transfer from or to *url* must wait for; empty where it need not.

        Without a *look* it goes by what was seen last, which asks no file system.
        """
        if not self.each or url is None:
            return ""
        prefix = next((place.prefix for place in self.places if place.allows(url)), None)
        for credential in self.each:
            if prefix in credential.table.needed_by:
                if look:
                    credential.look()
                if credential.reason():
                    return f"{_waited_for(credential.table.name)} {credential.hint()}"
        return ""

    def kept_too_long(self, job: Job, now: int) -> str:
        """Say that a job's time is up while it waits to begin; empty where it is not, or waits for something else."""
        if job.state is not JobState.CREATED or job.intent is not Intent.RUN:
            return ""
        words = too_late(job, now)
        return words if words and self.missing(job.definition.input_url) else ""

    def awaited(
        self, action: Callable[[Job], Outcome], url: Callable[[Job], str | None]
    ) -> Callable[[Job], Outcome]:
        """Let a transfer begin only with a usable credential, and try again, uncounted, what failed without one."""

        def checked(job: Job) -> Outcome:
            missing = self.missing(url(job), look=True)
            if not missing:
                try:
                    return action(job)
                except (TransferInterrupted, TransferRefused) as error:
                    missing = self.missing(url(job), look=True)
                    if not missing:
                        raise
                    log.warning("job %d: %s", job.id, error, extra={"job": job.id})
            return Postponed(f"{WAITS}{missing}", job.due)

        return checked


def _waited_for(name: str) -> str:
    """Begin to say what a job waits for that needs a credential."""
    return f"the credential {name}, which cannot be used:"


def open_credentials(
    config: SiteConfig, clock: Clock, count: Callable[[str, Callable[[], float]], None] | None = None
) -> Credentials:
    """Return a site's credentials, looked at once. Raises ConfigurationError for what no renewal mends.

    *count* is told of each by its name, with what answers for how many seconds more it can be used.
    """
    credentials = [Credential(table, clock) for table in config.credential]
    problems: list[Problem] = []
    for number, credential in enumerate(credentials):
        problems += _program_problems(number, credential.table.renew, config.context.environment)
        try:
            credential.look()
        except ImportError as error:
            advice = f"cryptography cannot be imported ({error}): pip install 'edgecore[credentials]'"
            problems.append(Problem(f"credential[{number}]", credential.table.name, advice))
    if problems:
        raise ConfigurationError(str(config.source), problems)
    if count is not None:
        for credential in credentials:
            count(credential.table.name, credential.left_s)
    return Credentials(credentials, config.transfer)


def _program_problems(
    number: int, command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Problem]:
    """Find a program that is not there: better said at the start than when a credential expires."""
    path = environment.get("PATH", os.defpath)
    if command and shutil.which(command[0], path=path) is None:
        advice = f"there is no such program that the service can execute, on PATH={path} or as a whole path"
        yield Problem(f"credential[{number}].renew", command[0], advice)


@define(eq=False, kw_only=True)
class CredentialWatch:
    """Watch one credential on a thread of its own: have it renewed, tell people, let go on who waits."""

    credential: Credential
    alarms: Alarms
    environment: Mapping[str, str]
    """Of the command that renews."""
    marks: Collection[bytes]
    """What of it only such commands of this service carry, besides the credential's name."""
    expiring: Callable[[Credential, str, str], None]
    """Hears, once, that it expires soon and has not been renewed: in words for us, and in words for outside.

    Raises StoreError where that is to be told again at the next look.
    """
    usable: Callable[[], None]
    """Called at every look that finds it usable, so that nobody waits in vain."""
    unusable: Callable[[], None]
    """Called at every look that finds it unusable, so that nobody waits for too long."""
    backoff: Backoff = field(factory=Backoff)
    _failures: int = field(init=False, default=0)
    _complaint: str = field(init=False, default="")
    """Why the last renewal failed."""
    _not_before: float = field(init=False, default=0.0)
    """No renewal begins earlier, on the monotonic clock."""
    _announced: int = field(init=False, default=0)
    """The end that was announced as near."""
    _stop: threading.Event = field(init=False, factory=threading.Event)

    @property
    def _table(self) -> CredentialTable:
        return self.credential.table

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own."""
        thread = threading.Thread(
            target=self._run, name=f"edgecore-credential-{self._table.name}", daemon=True
        )
        thread.start()
        return thread

    def stop(self) -> None:
        """End; a renewal that runs is ended."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._turn()
            self._stop.wait(self._pause_s())

    def _turn(self) -> None:
        before = self.credential.seen
        if self.credential.look().trouble and not before.trouble:
            self._stop.wait(_SETTLES_S)
            self.credential.look()
        if self._is_due():
            self._renew()
        elif self._failures and not self._wants_renewal():
            self._forget_failures()  # somebody else put a good one there
        if not self._stop.is_set():
            self._tell()

    # ----------------------------------------------------------------------------- renewing

    def _wants_renewal(self) -> bool:
        left_us = self.credential.left_s() * 1e6
        return bool(self._table.renew) and left_us <= self._table.renew_before_minutes * _MINUTE_US

    def _is_due(self) -> bool:
        return self._wants_renewal() and self.credential.clock.monotonic() >= self._not_before

    def _renew(self) -> None:
        """Run the command once, see what became of the file, and say when it may be run again."""
        before, usable = self.credential.seen, not self.credential.reason()
        try:
            complaint = self._run_command()
        except ActionStopped:
            return
        after = self.credential.look()
        if reason := self.credential.reason():
            trouble = f"{complaint or self._table.renew[0] + ' ended well'}; the credential cannot be used: {reason}"
        elif usable and after.expires <= before.expires:
            trouble = (
                complaint
                or f"{self._table.renew[0]} ended well, and the credential expires no later than before"
            )
        else:
            trouble = ""
        now = self.credential.clock.monotonic()
        if trouble:
            self._failures += 1
            self._complaint = trouble
            wait_s = self.backoff.after(self._failures)
            log.warning(
                "credential %s was not renewed, which is tried again in %.0f s: %s",
                self._table.name,
                wait_s,
                trouble,
            )
        else:
            self._forget_failures()
            log.info("credential %s was renewed: it expires at %s", self._table.name, utc(after.expires))
            wait_s = self._after_success_s()
        self._not_before = now + wait_s

    def _after_success_s(self) -> float:
        """Wait for the half of what is left where even a new one lives too short: never renew in a loop."""
        if not self._wants_renewal():
            return 0.0
        left_s = self.credential.left_s()
        log.warning(
            "credential %s lives %.0f s when it is new, which is less than its renew_before_minutes",
            self._table.name,
            left_s,
        )
        return max(self.backoff.first_s, left_s / 2)

    def _forget_failures(self) -> None:
        self._failures, self._complaint, self._not_before = 0, "", 0.0

    def _run_command(self) -> str:
        """Run the operator's command; return its complaint, or nothing. Raises ActionStopped."""
        table = self._table
        named = {
            _NAME: table.name,
            "EDGECORE_CREDENTIAL_FILE": str(table.file),
            "EDGECORE_CREDENTIAL_KEY": str(table.key or table.file),
        }
        try:
            result = commands.run(
                table.renew,
                timeout_s=table.renew_timeout_s,
                environment={**self.environment, **named},
                unwanted=self._stop.is_set,
                ending_s=_ENDING_S,
            )
        except ActionStopped:
            self._end_rest()
            raise
        except (EdgeError, OSError) as error:
            return str(error)
        if result.timed_out:
            self._end_rest()
        return result.complaint() if result.exit_code != 0 else ""

    def _end_rest(self) -> None:
        """End what a command that was ended has started in process groups of their own."""
        end_all([*self.marks, os.fsencode(f"{_NAME}={self._table.name}")])

    # ------------------------------------------------------------------------------ telling

    def _tell(self) -> None:
        """Tell people what needs them, and who waits that it may go on."""
        name, now = self._table.name, self.credential.clock.now()
        seen = self.credential.seen
        unusable, expiry = f"credential {name}", f"expiry of credential {name}"
        last = f"; the last renewal: {self._complaint}" if self._complaint else ""
        if reason := seen.reason(now):
            who = ", ".join(self._table.needed_by)
            waits = f"; what needs it waits ({who})" if who else ""
            self.alarms.raise_once(unusable, f"it cannot be used: {reason}{waits}{last}")
            self.unusable()
            return
        self.alarms.clear(unusable, f"it can be used again, until {utc(seen.expires)}")
        self.usable()
        if seen.expires - now > self._table.warn_minutes * _MINUTE_US:
            self.alarms.clear(expiry, f"it now expires at {utc(seen.expires)}")
            return
        not_renewed = f"expires at {utc(seen.expires)} and was not renewed"
        words = f"{self._table.file} {not_renewed}{last}"
        self.alarms.raise_once(expiry, words)
        if self._announced != seen.expires:
            tried = "; the last renewal failed" if self._complaint else ""
            try:
                self.expiring(self.credential, words, f"the credential {name} {not_renewed}{tried}")
            except StoreError as error:
                log.warning("credential %s: nobody outside could be told that it expires: %s", name, error)
            else:
                self._announced = seen.expires

    def _pause_s(self) -> float:
        """Return seconds until something can change by the clock, or the files are to be looked at again."""
        table, seen = self._table, self.credential.seen
        now, monotonic = self.credential.clock.now(), self.credential.clock.monotonic()
        moments = [
            seen.begins,
            seen.expires,
            seen.expires - round(table.warn_minutes * _MINUTE_US),
            seen.expires - round(table.renew_before_minutes * _MINUTE_US),
        ]
        pauses = [(each - now) / 1e6 for each in moments if each > now]
        if self._not_before > monotonic and self._wants_renewal():
            pauses.append(self._not_before - monotonic)
        return max(_LEAST_PAUSE_S, min([table.look_s, *pauses]))


def watch_credentials(
    credentials: Credentials, config: SiteConfig, engine: Engine, listeners: Listeners
) -> Iterator[CredentialWatch]:
    """Return what watches each credential of a service; listeners and the status queue hear of what expires."""
    warned = Warned(config.store.with_name(f"{config.store.name}.warned"))
    heard: dict[str, int] = {}  # by listeners, who do not wait for the store

    def expiring(credential: Credential, words: str, outside: str) -> None:
        name, expires = credential.table.name, credential.seen.expires
        if warned.of(name) == expires:
            return  # a former service has said so
        if heard.get(name) != expires:
            heard[name] = expires
            listeners.credential_expiring(name=name, expires=expires, message=words)
        warning = WarningMessage(
            warning="credential_expiring",
            site=config.site,
            name=name,
            expires=iso(expires),
            time=iso(credential.clock.now()),
            message=outside,
        )
        engine.store.reply(serial.to_json(warning), None).result()
        engine.on_commit()
        warned.note(name, expires)

    def unusable() -> None:
        for job in list(engine.jobs.values()):
            if credentials.kept_too_long(job, engine.clock.now()):
                engine.change(job, give_up)

    def give_up(job: Job) -> Change | None:
        words = credentials.kept_too_long(job, engine.clock.now())
        return engine.graph.give_up(job, engine.graph.steps[job.state].failed, words) if words else None

    # A service that was killed leaves its command behind; the next one knows it by this mark, and ends it.
    environment = {**config.context.environment, **program_mark(config.store)}
    for credential in credentials.each:
        yield CredentialWatch(
            credential=credential,
            alarms=engine.alarms,
            environment=environment,
            marks=programs_of(config.store),
            expiring=expiring,
            usable=partial(engine.reconsider, _waited_for(credential.table.name)),
            unusable=unusable,
            backoff=engine.backoff,
        )
