"""Name the things that travel between the parts: definitions, jobs, submissions, reports.

Everything here is frozen data. What a value must look like stands beside its type as a
`Text` or `Between` rule; `edgecore.serial` reads documents by these rules and reports
every breach at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from attrs import Factory, evolve, field, frozen

__all__ = [
    "Answer",
    "Application",
    "Attempt",
    "BatchWord",
    "Between",
    "Closed",
    "ControlMessage",
    "Count",
    "Declared",
    "Delivery",
    "Demands",
    "Description",
    "Finding",
    "Group",
    "Intent",
    "Job",
    "JobDefinition",
    "JobState",
    "Level",
    "MessagingProfile",
    "Name",
    "NativeState",
    "Observation",
    "Option",
    "OutgoingMessage",
    "Parameter",
    "Pattern",
    "Plan",
    "ProbeReport",
    "Queue",
    "Reference",
    "Refusal",
    "Refused",
    "RelativePath",
    "RoutingKey",
    "SchedulingProfile",
    "SendReport",
    "Settled",
    "SiteContext",
    "StatusMessage",
    "Submission",
    "SubmissionAnswer",
    "Submitted",
    "Text",
    "Topology",
    "TransferProfile",
    "TransferProgress",
    "TransferReport",
    "TransferUpdate",
    "Url",
    "Value",
    "Verdict",
    "WarningMessage",
    "WorkflowDefinition",
    "printable",
]

# ---------------------------------------------------------------------------------- rules


@frozen
class Text:
    """Allow a string that matches *pattern* as a whole; *allowed* says so in words."""

    pattern: str
    allowed: str

    def accepts(self, value: str) -> bool:
        """Tell whether the whole of *value* matches."""
        return re.fullmatch(self.pattern, value, re.ASCII) is not None


@frozen
class Between:
    """Allow a number from *minimum* to *maximum*, both included."""

    minimum: float
    maximum: float


# Beside the controls of ASCII: those of Latin-1, ends of lines, and what turns the direction of writing.
_CONTROLS = r"\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_PLAIN = rf"[^\x00-\x1f{_CONTROLS}]"

Name: TypeAlias = Annotated[str, Text(r"[A-Za-z0-9._-]{1,100}", "1 to 100 characters of A-Z a-z 0-9 . _ -")]
BatchWord: TypeAlias = Annotated[
    str,
    Text(
        r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,99}",
        "a name that the batch system knows: up to 100 characters of A-Z a-z 0-9 . _ @ : + -, "
        "beginning with a letter or digit",
    ),
]
RoutingKey: TypeAlias = Annotated[
    str, Text(r"status\.[A-Za-z0-9._-]{1,100}", "a routing key of the form status.NAME")
]
RelativePath: TypeAlias = Annotated[
    str,
    Text(
        rf"(?!/)(?!(?:[^/]*/)*\.\.?(?:/|\Z)){_PLAIN}{{1,255}}(?<!/)",
        "a relative path of up to 255 characters, without '..', '.' or control characters",
    ),
]
Pattern: TypeAlias = Annotated[
    str,
    Text(
        rf"(?!/)(?!.*//)(?!(?:[^/]*/)*\.\.?(?:/|\Z)){_PLAIN}{{1,255}}(?<!/)",
        "a pattern such as *.root or log/**: relative, up to 255 characters, without '..', '.', empty parts or control "
        "characters",
    ),
]
Url: TypeAlias = Annotated[
    str,
    Text(
        # The host excludes what the path begins with: a choice there would take quadratic time.
        rf"(?=.{{1,4096}}\Z)[a-z][a-z0-9+.-]{{0,30}}://[^/\x00-\x20{_CONTROLS}@]*(?:/[^\x00-\x20{_CONTROLS}]*)?",
        "a URL such as scheme://host/path, without a user name, password, space or control character",
    ),
]
Description: TypeAlias = Annotated[
    str, Text(rf"[^\x00-\x08\x0b-\x1f{_CONTROLS}]{{0,4000}}", "up to 4,000 characters of text")
]
Moment: TypeAlias = Annotated[
    str, Text(r"[0-9TWZ:.,+ -]{8,40}", "a date and time as ISO 8601 has it, such as 2027-03-01T12:00:00Z")
]
Count: TypeAlias = Annotated[int, Between(1, 1_000_000)]
Identifier: TypeAlias = Annotated[int, Between(0, 2**53 - 1)]

Value: TypeAlias = str | int | float | bool
"""One typed value of a parameter or option."""


# ---------------------------------------------------------------------------- definitions


@frozen(kw_only=True)
class JobDefinition:
    """Ask one site to run one registered application once."""

    name: Name
    """What people call the job; need not be unique."""
    application: Name
    """An entry in the site's catalogue."""
    site: Name
    """The site that is to run it."""
    description: Description = ""
    """For people; nothing is done with it."""
    job_id: Name | Identifier | None = None
    """The sender's own id, by which a repeated message is recognised."""
    argo_job_id: Identifier | None = None
    """The workflow that it belongs to; repeated in every status message."""
    queue: BatchWord | None = None
    """The batch system's queue or partition; the site has a default."""
    project: BatchWord | None = None
    """The account to be charged; the site has a default."""
    wall_time_minutes: Count = 60
    """After so many minutes the batch system ends it; the site has a default."""
    num_nodes: Count = 1
    """How many nodes; the site has a default."""
    processes_per_node: Count = 1
    """How many processes on each node; the site has a default."""
    scheduler_config: RelativePath | None = None
    """A file with values for the batch system's options that the site lets users set."""
    config_file: RelativePath | None = None
    """A file with values for the application's parameters."""
    input_url: Url | None = None
    """What is staged in: a file, or the content of a tree."""
    output_url: Url | None = None
    """Where the content of the job's directory is staged out to."""
    retries: Annotated[int, Between(0, 100)] = 0
    """How many further attempts may follow an execution that failed."""
    not_after: Moment | None = None
    """ISO 8601 date and time after which the job must not be submitted any more."""
    needs: tuple[Name, ...] | None = None
    """Within a workflow: names of the sub-jobs that must finish first; default: the one before."""
    sites: tuple[Name, ...] = ()
    """Within a workflow: sites that may run it instead of `site`."""


@frozen(kw_only=True)
class WorkflowDefinition:
    """Ask Argo to run sub-jobs, each at some site, in the order of their needs."""

    name: Name
    subjobs: tuple[JobDefinition, ...] = field()
    description: Description = ""
    job_id: Name | Identifier | None = None
    user_id: Description = ""
    group_identifier: Description = ""
    username: Description = ""
    email: Description = ""
    input_url: Url | None = None
    output_url: Url | None = None
    job_status_routing_key: RoutingKey | None = None


@frozen(kw_only=True)
class ControlMessage:
    """Ask a service to do something with a job that it already has."""

    command: Literal["cancel", "hold", "release", "retry", "report"]
    """What to do; ``report`` repeats the latest status."""
    job_id: Name | Identifier
    """The sender's own id of the job, or ours."""
    from_start: bool = False
    """With ``retry``: begin with staging in, so that corrected input is fetched, instead of at the step that failed."""


# --------------------------------------------------------------------------- applications

_ValueType: TypeAlias = Literal["integer", "number", "string", "boolean", "path"]


@frozen(kw_only=True)
class Parameter:
    """Declare one value that a user may set: its type, its range, its default."""

    type: _ValueType
    """What a value must be; a path is relative and stays in the job's directory."""
    description: Description = ""
    """For people."""
    minimum: float | None = None
    """The least number."""
    maximum: float | None = None
    """The greatest number."""
    choices: tuple[Value, ...] = ()
    """The values that are allowed; empty: any of the type."""
    pattern: str | None = None
    """A regular expression that a string must match as a whole."""
    default: Value | tuple[Value, ...] | None = None
    """Used when the user sets nothing; without a default the user must set a value."""
    required: bool = True
    """Whether a parameter without a default must be set; if not, its arguments are left out."""
    list: bool = False
    """Whether several values are allowed; each becomes an argument of its own."""
    flag: str | None = None
    """The argument that comes and goes with the value; for a boolean, it stands for true."""


@frozen(kw_only=True)
class Option(Parameter):
    """Declare one option of the batch system that a site lets its users set."""

    required: bool = False
    """Whether every job must set it where it has no default; if not, the batch system decides."""


@frozen(kw_only=True)
class Application:
    """Register a program that users may run, and the values that they may give it."""

    name: Name
    """The name by which definitions ask for it."""
    executable: str
    """The program, as an absolute path on the execution host."""
    description: Description = ""
    """For people."""
    arguments: tuple[str, ...] = ()
    """Argument list; ``{parameter}`` stands for a value, alone or inside an argument."""
    launcher: Name | None = None
    """One of the site's launchers, or none to run the executable itself."""
    preprocess: str | None = None
    """A program of the operator before the submission; its argument is the path of ``job.json``."""
    postprocess: str | None = None
    """A program of the operator after an execution that succeeded; as `preprocess`."""
    config_script: str | None = None
    """A program that builds the argument list instead: gets file names, prints a JSON array."""
    directory: str | None = None
    """Where configuration files are looked up after the job's data directory."""
    stage_out: tuple[Pattern, ...] = ()
    """What of a job's data is staged out, such as ``*.root`` and ``log/**``, besides what it printed; none for everything."""
    restartable: bool = False
    """Whether the batch system may start the same attempt again after it was interrupted."""
    max_nodes: Count | None = None
    """Nodes that one job of it may ask for."""
    max_wall_time_minutes: Count | None = None
    """Walltime that one job of it may ask for."""
    script_timeout_s: Annotated[float, Between(1, 86_400)] = 600.0
    """Limit in seconds for preprocess, postprocess and config_script, each."""
    parameters: Mapping[Name, Parameter] = Factory(dict)
    """What users may set, by name."""


@frozen
class Plan:
    """Hold what a job's configuration files came to: an argument list and batch options."""

    arguments: tuple[str, ...] = ()
    options: Mapping[str, Value | tuple[Value, ...]] = Factory(dict)


# ----------------------------------------------------------------------------------- jobs


class JobState(StrEnum):
    """Where a job is on its way through one site; `edgecore.states` has the legal moves."""

    CREATED = "CREATED"
    """Taken: it is durable here, and acknowledged to the broker."""
    STAGED_IN = "STAGED_IN"
    """Its input is there, and was compared."""
    STAGE_IN_FAILED = "STAGE_IN_FAILED"
    """Its input could not be brought."""
    PREPROCESSED = "PREPROCESSED"
    """The operator's program has run, if there is one, and the argument list is known."""
    PREPROCESS_FAILED = "PREPROCESS_FAILED"
    """The operator's program failed, or a configuration file holds what is not allowed."""
    SUBMITTING = "SUBMITTING"
    """The intent to submit is durable; the batch system's answer is not."""
    SUBMITTED = "SUBMITTED"
    """The batch system took it."""
    SUBMIT_FAILED = "SUBMIT_FAILED"
    """The batch system will not take it."""
    SUBMIT_DISABLED = "SUBMIT_DISABLED"
    """A dry run ends here: everything was done but the submission."""
    QUEUED = "QUEUED"
    """It waits in the batch system."""
    HELD = "HELD"
    """It is held in the batch system."""
    RUNNING = "RUNNING"
    """It runs."""
    LOST = "LOST"
    """It started, and nobody knows of it any more; alarmed, and reversed by any evidence."""
    EXECUTION_FINISHED = "EXECUTION_FINISHED"
    """It ended with exit code 0."""
    EXECUTION_FAILED = "EXECUTION_FAILED"
    """It ended in any other way."""
    POSTPROCESSED = "POSTPROCESSED"
    """The operator's program has run, if there is one."""
    POSTPROCESS_FAILED = "POSTPROCESS_FAILED"
    """The operator's program failed."""
    STAGED_OUT = "STAGED_OUT"
    """Its output was delivered, and compared."""
    STAGE_OUT_FAILED = "STAGE_OUT_FAILED"
    """Its output could not be delivered."""
    JOB_FINISHED = "JOB_FINISHED"
    """It is done."""
    JOB_FAILED = "JOB_FAILED"
    """It ended without success; it can be resumed at the step that failed."""
    JOB_CANCELLED = "JOB_CANCELLED"
    """It ended because somebody asked for that."""
    JOB_REJECTED = "JOB_REJECTED"
    """Its definition was refused; it never was a job."""


class Intent(StrEnum):
    """What the user wants of a job, whatever state it is in."""

    RUN = "run"
    HELD = "held"
    CANCELLED = "cancelled"


@frozen(kw_only=True)
class Attempt:
    """One submission of a job, as far as we know it."""

    number: int
    """Counted from 1."""
    tag: str
    """The unique name under which it is submitted."""
    group_tag: str
    """The tag of the group that it was submitted in; its own tag when it went alone."""
    index: int | None = None
    """Its place in that group, from 0; None when it went alone."""
    intended: int
    """When the intent was made, microseconds UTC."""
    batch_id: str | None = None
    submitted: int | None = None
    started: int | None = None
    ended: int | None = None
    exit_code: int | None = None
    reason: str = ""
    """Why it ended, in the batch system's words."""
    missed: int | None = None
    """Since when no listing shows it alive, microseconds UTC; None while one does."""
    held: bool = False
    """Whether we asked the batch system to hold it and have not released it since."""
    waiting: int | None = None
    """Since when listings show it waiting for anything but us, microseconds UTC; None while it does not."""
    stuck: int | None = None
    """Since when the batch system says that it will never start it as it is, microseconds UTC."""
    given_up: str = ""
    """Why it is taken back from the batch system after waiting too long; empty while it is not."""


@frozen(kw_only=True)
class Job:
    """One job as the store knows it."""

    id: int
    """Our own id: unique, microseconds since the epoch, below 2**53."""
    owner: str
    """The user that the broker vouched for, or the site's default owner."""
    definition: JobDefinition
    state: JobState
    previous_state: JobState | None = None
    intent: Intent = Intent.RUN
    sequence: int = 0
    """How many status messages the job has had."""
    changed: int = 0
    """When the state last changed, microseconds UTC."""
    message: str = ""
    """What happened last, or why the job waits."""
    attempt: Attempt | None = None
    """The latest attempt."""
    retries_used: int = 0
    failures: int = 0
    """Consecutive passing failures of the present step."""
    due: int = 0
    """The next action is not before this time, microseconds UTC."""
    failed_state: JobState | None = None
    """The ``*_FAILED`` state that ended the job, which says where a retry resumes."""
    plan: Plan | None = None

    @property
    def name(self) -> str:
        """The name that the sender gave it."""
        return self.definition.name

    @property
    def public_id(self) -> str | int:
        """The id by which the sender knows the job: its own, or ours where it gave none."""
        return self.id if self.definition.job_id is None else self.definition.job_id

    def moved(
        self,
        state: JobState,
        now: int,
        message: str = "",
        *,
        attempt: Attempt | None = None,
        plan: Plan | None = None,
        failed_state: JobState | None = None,
        retries_used: int | None = None,
    ) -> Job:
        """Return the job one status further, in *state*, its step's failures forgotten."""
        return evolve(
            self,
            state=state,
            previous_state=self.state,
            sequence=self.sequence + 1,
            changed=now,
            message=printable(message),
            failures=0,
            due=0,
            attempt=attempt or self.attempt,
            plan=plan or self.plan,
            failed_state=failed_state or self.failed_state,
            retries_used=self.retries_used if retries_used is None else retries_used,
        )


@frozen(kw_only=True)
class StatusMessage:
    """Report one change of state; `sequence` counts up by one per job."""

    job_id: str | int
    """The sender's own id of the job where it gave one, else ours."""
    argo_job_id: int | None
    """As in the definition."""
    site: str
    """The site that reports."""
    name: str
    """As in the definition."""
    owner: str
    """The user that the broker vouched for, or the site's default owner."""
    state: JobState
    """Where the job is now."""
    previous_state: JobState | None
    """Where it was before; null for its first status."""
    sequence: int
    """Counts up by one per job, from 1."""
    time: str
    """ISO 8601, UTC."""
    message: str
    """What happened, or why the job waits or failed."""
    batch_id: str | None
    """The batch system's id of the latest attempt."""
    exit_code: int | None
    """Of the latest attempt, once it has ended."""
    attempt: int
    """The number of the latest attempt; 0 before the first."""


@frozen(kw_only=True)
class WarningMessage:
    """Warn of something at a site that is no job's; goes where status goes."""

    warning: Literal["credential_expiring"]
    """What it is about."""
    site: str
    """The site that warns."""
    name: str
    """The credential, as the site's file calls it."""
    expires: str
    """When it ends; ISO 8601, UTC."""
    time: str
    """ISO 8601, UTC."""
    message: str
    """The same in words, and whether its renewal failed."""


def printable(text: str) -> str:
    """Return *text* without what UTF-8, and so the store and a message, cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


# -------------------------------------------------------------------------------- drivers


@frozen(kw_only=True)
class Demands:
    """Tell a driver that is examined what jobs of the site may ask of the batch system."""

    queue: str | None = None
    """What a job gets that names none; None for the batch system's own default."""
    project: str | None = None
    """As `queue`."""
    num_nodes: Mapping[str, int] = Factory(dict)
    """What the operator wrote, such as ``[limits] max_nodes``, and how many nodes a job may ask for by that."""
    wall_time_minutes: Mapping[str, int] = Factory(dict)
    """As `num_nodes`."""


@frozen(kw_only=True)
class SiteContext:
    """Tell a driver where it works; given once, before anything else is asked of it."""

    site: str
    work_directory: Path
    """Jobs live below it; a driver may keep files of its own in ``.<driver name>`` there."""
    environment: Mapping[str, str] = Factory(dict)
    """The whole environment for every command that the driver runs."""
    examining: bool = False
    """Whether the driver is opened only to be examined, perhaps beside a service that works: then it
    starts nothing, and changes nothing that a service set."""
    demands: Demands = Demands()
    """What jobs may ask for; told only where `examining`."""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and somebody should look."""
    FAILURE = "failure"
    """Something that a service needs will fail."""


@frozen
class Finding:
    """Say what somebody who looked for trouble found in one place."""

    subject: str
    """What was looked at, in a few words: ``credential``, ``queue directory``."""
    level: Level
    message: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty where all is right."""


@frozen(kw_only=True)
class Closed:
    """Confirm that a driver gave back its connections and files."""

    message: str = ""


# ----------------------------------------------------------------------------- scheduling


@frozen(kw_only=True)
class SchedulingProfile:
    """Say what a batch system can do and how a batch script knows its own batch id."""

    batch_id_text: str
    """POSIX shell text, fit for double quotes, equal to what `submit` returned: ``$PBS_JOBID``."""
    can_hold: bool = True
    max_group: int = 1
    """How many like submissions `submit` takes at once; 1 where there are no arrays."""
    poll_interval_s: float = 60.0
    """How often a listing is kind to this batch system, in seconds."""
    parallel_submits: int = 4
    """How many `submit` calls may run at the same time."""
    enforces_walltime: bool = True
    """Whether it ends what runs longer than asked for; if not, an execution that is lost stays lost."""
    version: str = ""


@frozen(kw_only=True)
class Submission:
    """One attempt to be submitted."""

    tag: str
    index: int | None = None
    """Its place in the group, by which `find` names it; None when it goes alone."""
    script: Path
    """The batch script, absolute, executable by /bin/sh."""
    directory: Path
    """Our run directory of this attempt, absolute; batch system logs may go there."""
    comment: str
    """Site, job and attempt in full, for where the batch system keeps a comment."""


@frozen(kw_only=True)
class Group:
    """Like submissions, to be queued as one array where the batch system has arrays."""

    tag: str
    """The group's own tag: that of its only member, or of its first."""
    submissions: tuple[Submission, ...]
    num_nodes: int
    processes_per_node: int
    wall_time_minutes: int
    queue: str | None = None
    project: str | None = None
    options: Mapping[str, Value | tuple[Value, ...]] = Factory(dict)
    restartable: bool = False
    """Whether the batch system may start a member again by itself; if not, submit it so."""


@frozen(kw_only=True)
class Submitted:
    """The batch system took an attempt under this batch id."""

    batch_id: str


class Refusal(StrEnum):
    """What the caller of a refused submission should do."""

    PERMANENT = "permanent"
    """Give up: the request itself is wrong (queue, account, shape)."""
    TRANSIENT = "transient"
    """Try again later: limits, load."""
    DISABLED = "disabled"
    """A layer withheld it: a dry run."""


@frozen(kw_only=True)
class Refused:
    """The batch system did not take an attempt, and will never start it."""

    kind: Refusal
    reason: str
    """The batch system's own words."""


SubmissionAnswer: TypeAlias = Submitted | Refused


@frozen(kw_only=True)
class Reference:
    """What a driver gets to speak about a submitted attempt."""

    tag: str
    group_tag: str
    index: int | None
    batch_id: str | None
    """None when the outcome of the submission is not known."""
    directory: Path
    submitted: int
    """When it was submitted, microseconds UTC; tells a re-used batch id apart."""


class NativeState(StrEnum):
    """The state of an attempt in the batch system, reduced to what we act on."""

    QUEUED = "queued"
    HELD = "held"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@frozen(kw_only=True)
class Observation:
    """What a listing showed about one attempt."""

    state: NativeState
    native_state: str
    """The batch system's own word."""
    batch_id: str
    name: str = ""
    owner: str = ""
    index: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    """In the batch system's words: why it waits, or why it ended."""
    never_starts: bool = False
    """Whether it waits for what will not come by itself, whatever else ends: Slurm's `PartitionNodeLimit`,
    `BadConstraints`, `InvalidAccount`; HTCondor's hold after an error. Neither for a hold that a person asked for,
    nor for limits that others' jobs use up (`AssocGrpCpuLimit`), nor for a dependency or a reservation."""
    queued: int | None = None
    started: int | None = None
    ended: int | None = None
    """Times in microseconds UTC."""
    nodes: str = ""


@frozen(kw_only=True)
class Answer:
    """Say which references a request to cancel, hold or release was accepted for."""

    accepted: tuple[str, ...] = ()
    """Tags; an attempt that is already gone counts as accepted."""
    refused: Mapping[str, str] = Factory(dict)
    """Tag -> the batch system's words."""


# ------------------------------------------------------------------------------- transfer


@frozen(kw_only=True)
class TransferProfile:
    """Say what a transfer driver can carry."""

    keeps_modes: bool = True
    keeps_times: bool = True
    version: str = ""


@frozen(kw_only=True)
class TransferUpdate:
    """Say how far a transfer is."""

    files: int
    size_bytes: int
    total_bytes: int | None = None
    """None while it is not known."""
    current: str = ""


TransferProgress: TypeAlias = Callable[[TransferUpdate], None]
"""Called at least every second; may raise TransferStopped."""


@frozen(kw_only=True)
class TransferReport:
    """Confirm that everything arrived and was compared."""

    files: int
    size_bytes: int
    skipped_files: int = 0
    """Of these, how many were already right and were not moved again."""
    verified: str = ""
    """How content was compared: ``sha256``, ``size``, ..."""
    checksums: Mapping[str, str] = Factory(dict)
    """Of files whose checksum the driver learnt anyway: path below the directory (names as `os.fsdecode` gives them,
    with / between them) -> ``sha256:`` or another algorithm and the value in hexadecimal."""


@frozen(kw_only=True)
class ProbeReport:
    """Say whether a place can be reached and read."""

    ok: bool
    message: str


# ------------------------------------------------------------------------------ messaging


@frozen(kw_only=True)
class MessagingProfile:
    """Say what a message driver connected to."""

    broker: str
    validates_sender: bool = False
    """Whether `Delivery.sender` is vouched for by the broker."""
    version: str = ""


@frozen(kw_only=True)
class Queue:
    """A durable queue and the routing keys that lead to it."""

    name: str
    exchange: str
    keys: tuple[str, ...]


@frozen(kw_only=True)
class Topology:
    """Exchanges and queues that must exist; refused messages go to ``<queue>.rejected``."""

    exchanges: tuple[str, ...]
    """Durable topic exchanges."""
    queues: tuple[Queue, ...]


@frozen(kw_only=True)
class Declared:
    """Confirm that a topology exists."""

    queues: tuple[str, ...]


@frozen(kw_only=True)
class OutgoingMessage:
    """A message to be sent, durable and mandatory."""

    exchange: str
    key: str
    body: bytes
    message_id: str
    reply_to: str | None = None


@frozen(kw_only=True)
class SendReport:
    """Confirm that the broker took responsibility for all messages but the unroutable ones."""

    sent: int
    unroutable: Mapping[str, str] = Factory(dict)
    """message_id -> why no queue took it."""


@frozen(kw_only=True)
class Delivery:
    """A message that the broker handed to us and that we must settle."""

    token: str
    """The driver's own handle; means nothing in a later connection."""
    queue: str
    body: bytes
    message_id: str | None = None
    sender: str | None = None
    """The user that the broker validated, else None."""
    reply_to: str | None = None
    redelivered: bool = False
    reason: str = ""
    """Why it was refused, when it comes from a queue of dead letters."""


class Verdict(StrEnum):
    """What becomes of a delivery."""

    ACCEPT = "accept"
    PUT_BACK = "put back"
    REFUSE = "refuse"
    """Dead letter, with the reason."""


@frozen(kw_only=True)
class Settled:
    """Say how many deliveries were settled; those of a former connection are not counted."""

    count: int
