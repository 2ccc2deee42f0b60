"""Name what the model remembers: the service, its store, the tokens and the batch system's entries.

Tokens have the very names that their files have, and are read by the product's own parser.
"""

from __future__ import annotations

from typing import NamedTuple

from attrs import frozen

__all__ = ["IDLE", "TERMINAL", "Answer", "Bounds", "Entry", "Memory", "Rules", "Script", "State", "Store"]

TERMINAL = frozenset({"JOB_FINISHED", "JOB_FAILED", "JOB_CANCELLED"})


@frozen(kw_only=True)
class Bounds:
    """Say how far to explore, and which faults may happen."""

    attempts: int = 2
    submissions: int = 2
    """Entries of the batch system in all, those that a submit command made twice included."""
    starts: int = 2
    """How often the batch system starts one entry."""
    retries: int = 0
    """Whether a failed execution is followed by another attempt (0 or 1)."""
    restartable: bool = False
    walltime: bool = True
    """Whether the batch system ends an execution at its walltime, so that it cannot live for ever."""
    cancel: bool = False
    """The user may cancel at any moment."""
    give_up: bool = False
    """The service may give up what waits in the batch system, at any moment."""
    lost_replies: bool = False
    """A rename that worked may be answered with "no such file"."""
    stale_directory: bool = False
    """A look at the directory may show a former token, or none."""
    stale_end: bool = False
    """A listing may show the end of an execution before the present one."""
    submitted_twice: bool = False
    """A submit command may repeat itself and make two entries of one attempt."""
    ids_again: bool = False
    """The batch system may give the id of an entry that it lost to a later one."""
    look_first: bool = False
    """The service looks at the token before it asks the batch system, not after."""


@frozen(kw_only=True)
class Rules:
    """Switch single rules of the protocol off, to see that the exploration misses them."""

    revokes: bool = True
    """An attempt is given up by a rename of its token."""
    fences: bool = True
    """An execution is called over only after a rename of its token."""
    new_attempt: bool = True
    """What was not found is submitted again under a new attempt."""
    restarts_by_rename: bool = True
    """A second start goes on by a rename, not by what it read."""
    heeds_ends: bool = True
    """A script that finds ``ended`` does not start."""
    heeds_batch_id: bool = True
    """A script does not take the token of another batch id."""
    tells_batch_ids_apart: bool = True
    """An answer about another batch id is not believed."""
    tells_executions_apart: bool = True
    """An answer about a former execution of the same batch id is not believed."""


class Store(NamedTuple):
    """What the service committed."""

    state: str
    """PREPROCESSED, SUBMITTING, SUBMITTED, BOUND (no attempt left to explore) or a terminal state."""
    attempt: int
    cancelled: bool
    given_up: bool = False
    """Whether the attempt is to be taken back from the batch system."""


class Answer(NamedTuple):
    """What a listing shows about an attempt."""

    ended: bool
    batch_id: int
    execution: int
    """Number of the last execution that the listing knows of."""
    waits: bool = False
    """Whether it waits in the queue; told apart only where the service may give up what does."""


class Memory(NamedTuple):
    """What the service has in mind; gone with a crash."""

    doing: str
    answer: Answer | None = None
    token: str = ""
    exit_code: int | None = None


IDLE = Memory("idle")


class Script(NamedTuple):
    """One execution of a batch script."""

    doing: str
    token: str = ""
    """The token that it means to take over."""
    exit_code: int = -1


class Entry(NamedTuple):
    """One submission in the batch system."""

    attempt: int
    number: int
    """Counted from 1, for people and to keep executions apart."""
    batch_id: int
    phase: str = "on its way"
    """on its way, queued, running, ended, refused"""
    known: bool = False
    """Whether the batch system still knows of it; what it has lost may start all the same."""
    starts: int = 0
    told_to_end: bool = False
    script: Script | None = None
    ran: bool = False
    """Whether it ever started the application."""
    exit_code: int | None = None
    """How its application really ended."""

    def execution(self, start: int) -> int:
        """Return a number that is unique to the given start of this entry."""
        return 10 * self.number + start

    @property
    def mine(self) -> str:
        """The token by which its present execution owns the attempt."""
        return f"running.{self.batch_id}.{self.execution(self.starts)}"


class State(NamedTuple):
    """The whole."""

    memory: Memory
    store: Store
    tokens: tuple[tuple[str, ...], ...]
    """Per attempt: the names that its token had, the present one last."""
    entries: tuple[Entry, ...]

    def token(self, attempt: int) -> str:
        """Return the present token of *attempt*."""
        return self.tokens[attempt - 1][-1]

    def of_attempt(self, attempt: int) -> list[Entry]:
        """Return the entries of *attempt*."""
        return [entry for entry in self.entries if entry.attempt == attempt]

    def application_lives(self) -> bool:
        """Tell whether any application runs now."""
        return any(entry.script is not None and entry.script.doing == "application" for entry in self.entries)
