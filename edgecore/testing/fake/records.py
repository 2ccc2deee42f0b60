"""Name what goes between a dialect and the fake batch system: calls, requests, jobs and answers.

Plain tuples of the standard library, because every command of the fake imports them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from edgecore.testing.words import Command

__all__ = [
    "Act",
    "Call",
    "Condition",
    "Job",
    "Listing",
    "Look",
    "Other",
    "Outcome",
    "Printed",
    "Request",
    "Submit",
    "Usage",
    "Why",
]


class Condition(StrEnum):
    """Where a job is; a dialect has a word of its own for each."""

    WAITING = "waiting"
    HELD = "held"
    RUNNING = "running"
    COMPLETED = "completed"
    """Ended by itself with exit code 0."""
    FAILED = "failed"
    """Ended by itself in another way."""
    CANCELLED = "cancelled"
    NODE_FAILURE = "node failure"
    OUT_OF_MEMORY = "out of memory"
    TIME_LIMIT = "time limit"

    @property
    def ended(self) -> bool:
        """Tell whether nothing comes after it."""
        return self not in (Condition.WAITING, Condition.HELD, Condition.RUNNING)


class Why(StrEnum):
    """Why a job waits; a dialect has words of its own for each."""

    NOTHING = ""
    RESOURCES = "resources"
    """Others run, or the batch system is paused."""
    HELD_BY_USER = "held by its user"
    HELD_BY_ADMINISTRATOR = "held by an administrator"
    NEVER = "can never run"


class Call(NamedTuple):
    """One command as its caller ran it."""

    executable: str
    arguments: tuple[str, ...]
    """Without the executable itself."""
    directory: str
    """The working directory."""
    environment: dict[str, str]
    stdin: bytes


class Usage(Exception):
    """Refuse a call that the real command would not understand."""

    def __init__(self, errors: str, exit_code: int = 2) -> None:
        super().__init__(errors)
        self.exit_code = exit_code


class Submit(NamedTuple):
    """A request to queue a script, once or as an array."""

    script: str
    """Path of the script, absolute or below the caller's directory."""
    name: str
    directory: str
    """Where the script is run."""
    content: bytes | None = None
    """What the script holds, where it is copied when it is submitted; None to run it in its place."""
    indexes: tuple[int, ...] | None = None
    """The members of an array; None for a single job."""
    nodes: int = 1
    processes: int = 1
    """Per node."""
    walltime_s: float | None = None
    """None: no limit."""
    queue: str = ""
    account: str = ""
    comment: str = ""
    options: tuple[tuple[str, str], ...] = ()
    """What else was asked for, for the dialect's own listings."""
    requeue: bool = True
    """Whether it may be started again."""
    hold: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    """Variables that the script gets, beside the batch system's own."""
    output: str = "/dev/null"
    """Where the script's own output goes; ``{id}`` stands for the batch id."""

    @property
    def command(self) -> Command:
        """What the request is for."""
        return Command.SUBMIT


class Look(NamedTuple):
    """A request to list jobs; each thing that is not None narrows the list."""

    command: Command = Command.QUERY
    """QUERY, or ACCOUNTING."""
    ids: tuple[str, ...] | None = None
    """Batch ids; that of an array stands for all its members."""
    names: tuple[str, ...] | None = None
    owner: str | None = None
    since: float | None = None
    """Only what waits or runs, or ended at this time or later: seconds since the epoch."""
    form: object = None
    """How the caller wants it printed; means something to the dialect only."""


class Act(NamedTuple):
    """A request to cancel, hold, release or change the state of jobs."""

    command: Command
    """CANCEL, HOLD or RELEASE."""
    ids: tuple[str, ...] | None = None
    """Batch ids; that of an array stands for all its members. None: whatever the rest says."""
    names: tuple[str | None, ...] | None = None
    """Only jobs with these names: one for each of *ids*, None for any name."""
    owner: str | None = None
    form: object = None
    """How it was asked; means something to the dialect only."""


class Other(NamedTuple):
    """A request that needs nothing of the queue: a version, a list of queues."""

    output: str
    exit_code: int = 0
    command: Command = Command.QUERY
    """With which commands it fails and hangs."""


Request = Submit | Look | Act | Other


class Job(NamedTuple):
    """One job, or one member of an array, as the batch system knows it. Times in seconds since the epoch."""

    row: int
    """The fake's own number, never given again."""
    number: int
    member: int | None
    """Its index in an array."""
    batch_id: str
    owner: str
    name: str
    condition: Condition
    why: Why
    script: str
    directory: str
    nodes: int
    processes: int
    walltime_s: float | None
    queue: str
    account: str
    comment: str
    options: tuple[tuple[str, str], ...]
    requeue: bool
    queued: float
    started: float | None
    ended: float | None
    exit_code: int | None
    signal: int | None
    ended_by: str
    """The user who cancelled it, or nothing."""
    executions: int
    """How often its script was started."""
    word: str = ""
    """How a listing writes the condition; it may have been spoilt."""
    reason: str = ""
    """Why it waits, or why it can never run, in the dialect's words."""


class Outcome(NamedTuple):
    """What became of one job that a request named."""

    batch_id: str
    """As the caller wrote it."""
    job: Job | None
    """The job before the request; None when there is none with this id and name."""
    done: bool
    """Whether it was carried out; not for what had ended, or cannot be held because it runs."""


class Printed(NamedTuple):
    """What a command prints, and how it ends."""

    output: bytes = b""
    errors: bytes = b""
    exit_code: int = 0


class Listing(NamedTuple):
    """A listing in its parts, so that the record of one job can be spoiled."""

    records: tuple[tuple[Job, bytes], ...]
    """Each job with all that is printed of it, line ends included; of one job there may be several."""
    header: bytes = b""
    footer: bytes = b""
    between: bytes = b""
    """What parts two records: a comma in JSON."""
    errors: bytes = b""
    exit_code: int = 0
