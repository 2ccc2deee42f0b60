"""State what a driver promises: the three roles and the events of a service.

A driver subclasses one role, marks its methods with `hookimpl`, and is found through an entry
point in the role's group. Arguments are always given by name. Every hook answers with a report
or a mapping and never with None, which would mean "not me". A driver keeps nothing in memory that
it needs after a restart. Its attrs fields are its configuration.

One hook of each role may be left out: `diagnose`, with which a driver looks for trouble in what only it
knows, such as a credential that expires. Whoever examines a site asks for it once, after `open`.

Hooks may be called from several threads at once, except `Messaging.receive` and
`Messaging.settle`, which one thread calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pluggy

from edgecore.models import (
    Answer,
    Closed,
    Declared,
    Delivery,
    Finding,
    Group,
    Job,
    MessagingProfile,
    Observation,
    OutgoingMessage,
    ProbeReport,
    Reference,
    SchedulingProfile,
    SendReport,
    Settled,
    SiteContext,
    SubmissionAnswer,
    Topology,
    TransferProfile,
    TransferProgress,
    TransferReport,
    Verdict,
)
from edgecore.selection import Selection

__all__ = ["OPTIONAL", "ROLES", "Lifecycle", "Messaging", "Scheduling", "Transfer", "hookimpl", "hookspec"]

PROJECT: Final = "edgecore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Scheduling:
    """Speak to one batch system: text in, text out."""

    @hookspec(firstresult=True)
    def open(self, site: SiteContext) -> SchedulingProfile:
        """Learn where we work and say what the batch system can do; called once, first.

        Raises SchedulerUnavailable when the batch system must answer for this and does not;
        ConfigurationError when its commands are missing.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def submit(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        """Queue every member of *group*; answer tag -> Submitted or Refused.

        An id that the batch system printed counts, whatever the exit code. A member that is
        missing from the answer has an unknown outcome and will be looked for by its tag.
        Raises only SchedulerUnavailable: the outcome is unknown for all members.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def observe(self, references: Sequence[Reference]) -> Mapping[str, Observation]:
        """Look once at all *references*, with a bounded number of commands; answer by tag.

        A tag that is not in the answer was not listed, which is no evidence of anything. An id
        that now belongs to another job (by name, owner, time) counts as not listed. What waits for what will not
        come says so (`Observation.never_starts`): it is taken back after a time. Raises
        SchedulerUnavailable when the question was not answered.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        """Tell what the batch system knows under these tags or group tags, running or ended.

        A tag without any is left out. Members of an array are observations with an `index`.
        Raises SchedulerUnavailable when the question was not answered.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def cancel(self, references: Sequence[Reference]) -> Answer:
        """Ask to end these attempts, by id and name where the command can; gone is no error.

        Raises SchedulerUnavailable when the batch system did not answer.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def hold(self, references: Sequence[Reference]) -> Answer:
        """Keep queued attempts from starting; refused where there is no such thing.

        Raises SchedulerUnavailable when the batch system did not answer.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def release(self, references: Sequence[Reference]) -> Answer:
        """Let held attempts start again.

        Raises SchedulerUnavailable when the batch system did not answer.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def diagnose(self) -> Sequence[Finding]:
        """Look for trouble with the batch system, changing nothing; may be left out.

        Answers what is right, too. What is wrong is a finding with a remedy, not an error.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def close(self) -> Closed:
        """Give back connections; submitted attempts live on."""
        raise NotImplementedError


class Transfer:
    """Move files between a directory of this site and URLs of one scheme."""

    @hookspec(firstresult=True)
    def open(self, site: SiteContext) -> TransferProfile:
        """Learn where we work; called once, first. Raises ConfigurationError."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def fetch(self, url: str, directory: Path, progress: TransferProgress) -> TransferReport:
        """Bring the file at *url*, or the content of the tree there, into *directory*.

        On return every file is there under its final name with its size and, where the peer can
        tell, its checksum compared; before, only under temporary names. A repeated call skips
        what is right and resumes what is partial. Raises TransferRefused (never works),
        TransferInterrupted (try again), and lets TransferStopped from *progress* pass.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def deliver(
        self, directory: Path, url: str, progress: TransferProgress, selection: Selection
    ) -> TransferReport:
        """Bring what *selection* takes of *directory* to *url*, making directories; else as `fetch`.

        What is not taken is no reason to refuse. A driver that has no such argument is only asked for whole directories.
        Raises TransferRefused, TransferInterrupted, and lets TransferStopped pass.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def copy(self, source: str, target: str, progress: TransferProgress) -> TransferReport:
        """Bring the file or the content of the tree at the URL *source* to the URL *target*, as `deliver` does.

        Both have the driver's scheme, and the content goes from server to server, without passing through this site. May
        be left out where a protocol has no such way. Raises TransferRefused, TransferInterrupted, and lets TransferStopped pass.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def probe(self, url: str) -> ProbeReport:
        """Tell whether *url* can be reached and read, moving nothing."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def diagnose(self) -> Sequence[Finding]:
        """Look for trouble with what transfers need, changing nothing; may be left out.

        Answers what is right, too. What is wrong is a finding with a remedy, not an error.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def close(self) -> Closed:
        """Give back connections."""
        raise NotImplementedError


class Messaging:
    """Speak to one message broker."""

    @hookspec(firstresult=True)
    def open(self, site: SiteContext) -> MessagingProfile:
        """Connect; called once, first. Raises BrokerUnavailable, ConfigurationError."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def declare(self, topology: Topology) -> Declared:
        """Make sure that exchanges, queues and bindings exist, durable. Raises BrokerUnavailable."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def send(self, messages: Sequence[OutgoingMessage]) -> SendReport:
        """Return when the broker has taken responsibility for all messages, in order.

        A message that no queue takes is reported as unroutable and does not stop the others.
        Raises BrokerUnavailable: some may have arrived; all may be sent again.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def receive(self, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        """Return up to *limit* deliveries; nothing when *timeout_s* seconds have passed.

        Raises BrokerUnavailable.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def settle(self, deliveries: Sequence[Delivery], verdict: Verdict, reason: str) -> Settled:
        """Accept, put back, or refuse with the *reason*; a former connection's are a no-op.

        Raises BrokerUnavailable: the deliveries will come again.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def diagnose(self) -> Sequence[Finding]:
        """Look for trouble with the broker, changing nothing; may be left out.

        Answers what is right, too. What is wrong is a finding with a remedy, not an error.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def close(self) -> Closed:
        """Give back the connection; what was not settled is delivered again to somebody."""
        raise NotImplementedError


class Lifecycle:
    """Hear what happens in a service. A listener that fails is logged; the job goes on."""

    @hookspec
    def job_changing(self, before: Job, after: Job) -> None:
        """Look at a change before it is made; raising Veto forbids it, and it is tried again later.

        Not asked about a new job: whether a definition is taken is the site's configuration's to say.
        """

    @hookspec
    def job_changed(self, job: Job) -> None:
        """Hear of a change that is durable. Called once per status, in order per job."""

    @hookspec
    def alarm_raised(self, subject: str, message: str) -> None:
        """Hear that something needs a person: a lost job, a batch system that stays silent."""

    @hookspec
    def alarm_cleared(self, subject: str, message: str) -> None:
        """Hear that the reason for an alarm is gone."""

    @hookspec
    def credential_expiring(self, name: str, expires: int, message: str) -> None:
        """Hear that a credential of the site expires soon, at *expires* (microseconds UTC), and was not renewed."""

    @hookspec
    def service_started(self, site: str) -> None:
        """Hear that a service works."""

    @hookspec
    def service_stopped(self, site: str) -> None:
        """Hear that a service has stopped in good order."""


ROLES: Final[Mapping[str, type]] = {
    "messaging": Messaging,
    "transfer": Transfer,
    "scheduling": Scheduling,
}
"""Role -> its specification; the entry-point group is ``edgecore.<role>``."""

OPTIONAL: Final = frozenset({"copy", "diagnose"})
"""Hooks that a driver may leave unanswered."""
