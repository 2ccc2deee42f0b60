"""Say what went wrong in the words of what the caller should do next.

::

    EdgeError
    ├── DefinitionError            the sender must correct the definition (all problems at once)
    ├── ConfigurationError         the operator must correct a file or an installation
    │   ├── DriverNotFound             no installed package offers the driver
    │   ├── DriverConflict             two packages offer the same driver
    │   └── DriverUnusable             the driver's package fails, misses a hook or fits another version
    ├── Unavailable                ask again later; nothing is known to have happened
    │   ├── SchedulerUnavailable
    │   ├── BrokerUnavailable
    │   └── TransferInterrupted
    ├── TransferRefused            give up: asking again will not help
    ├── ActionStopped              nobody wants an action to go on now; it may be done again
    │   └── TransferStopped            a transfer; what arrived can be resumed
    ├── ActionFailed               a step of a job failed for good; the job ends, others go on
    ├── Veto                       a listener forbids a change of state
    ├── ServiceBroken              a service ended because a part of it failed; start it again
    └── StoreError                 the job store cannot be used as it is
        ├── StoreLocked                another service owns it
        └── StoreUnusable              wrong version, wrong place, damaged
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

__all__ = [
    "ActionFailed",
    "ActionStopped",
    "BrokerUnavailable",
    "ConfigurationError",
    "DefinitionError",
    "DriverConflict",
    "DriverNotFound",
    "DriverUnusable",
    "EdgeError",
    "Problem",
    "SchedulerUnavailable",
    "ServiceBroken",
    "StoreError",
    "StoreLocked",
    "StoreUnusable",
    "TransferInterrupted",
    "TransferRefused",
    "TransferStopped",
    "Unavailable",
    "Veto",
]


@frozen
class Problem:
    """Name one thing that is wrong: where, what was found, and what is allowed there."""

    path: str
    """Where: a dotted path such as ``subjobs[2].num_nodes``; empty for the whole."""
    found: str
    """What was found, shortened for people."""
    allowed: str
    """What would be right there."""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        found = f"found {self.found}; " if self.found else ""
        return f"{where}{found}{self.allowed}"


class EdgeError(Exception):
    """Be the base of every error that this library raises on purpose."""


class _ProblemsError(EdgeError):
    """Carry every problem of one document, so that its writer corrects all of them at once."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(f"{source}: " + "; ".join(map(str, self.problems)))


class DefinitionError(_ProblemsError):
    """Refuse a definition or a job's configuration file; nothing of it was taken."""


class ConfigurationError(_ProblemsError):
    """Refuse what the operator configured or installed; nothing was started."""


class DriverNotFound(ConfigurationError):
    """Report that no installed package offers the driver that was asked for."""


class DriverConflict(ConfigurationError):
    """Report that more than one installed package offers the same driver."""


class DriverUnusable(ConfigurationError):
    """Report a driver that is installed and does not work; other drivers are not affected."""


class Unavailable(EdgeError):
    """Ask again later: the question was not answered, which is no evidence of anything."""

    findings: Sequence[object] = ()
    """What a driver found out all the same that was opened only to be examined; `models.Finding`."""


class SchedulerUnavailable(Unavailable):
    """The batch system did not answer."""


class BrokerUnavailable(Unavailable):
    """The message broker did not answer; what was sent may or may not have arrived."""


class TransferInterrupted(Unavailable):
    """A transfer broke off; what arrived stays under temporary names and is resumed."""


class TransferRefused(EdgeError):
    """A transfer can never succeed as asked: no such file, no permission, a forbidden name."""


class ActionStopped(EdgeError):
    """An action was stopped on the way because nobody wants it now; it may be done again."""


class TransferStopped(ActionStopped):
    """Raised by a progress callback to stop a transfer in a state that can be resumed."""


class ActionFailed(EdgeError):
    """A step of a job failed for good; repeating it would fail again."""


class Veto(EdgeError):
    """Raised by a listener's ``job_changing`` to forbid the change; the job stays as it was."""


class ServiceBroken(EdgeError):
    """A part of a service failed for good, and the service ended; starting it again does no harm."""


class StoreError(EdgeError):
    """The job store could not do what was asked; nothing of the change was written."""


class StoreLocked(StoreError):
    """Another process owns the store."""


class StoreUnusable(StoreError):
    """The store's file, place or version cannot be used."""
