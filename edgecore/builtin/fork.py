"""Run jobs on this host through a small batch system of our own, for one machine and for tests.

A *spool* directory holds one SQLite file with all jobs; a detached *supervisor* process starts
them when slots are free, enforces walltimes and records ends. The driver only writes rows and
wakes the supervisor, or starts one when none lives, so the service may die and jobs go on: they
start, end and are cut off at their walltime without it.

This host pretends to have `nodes` nodes with `slots` slots each. A job takes num_nodes times
processes_per_node of them until it ends. Jobs start in the order of their submission, except that
one which does not fit at present lets smaller ones pass (first fit, without reservation). A job
is ``/bin/sh <script>`` in a session of its own, with a built environment, in the directory ``/``, its
output in ``batch.out`` of the run directory. At its walltime its process group gets TERM, after
`kill_grace_s` KILL. When its main process has ended, what is left of its process group is killed.

Limits, stated: a process that leaves its session escapes. One spool belongs to one host and one
user, and wants a local file system. Under systemd the service's unit needs ``KillMode=process``, or
stopping the service stops the jobs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from attrs import define, field

from edgecore.builtin.fork_spool import VERSION, bells, connect, has_work, supervised, transaction
from edgecore.clock import Clock
from edgecore.commands import CommandNotFound, run
from edgecore.directories import DirectoryCheck
from edgecore.errors import ConfigurationError, Problem, SchedulerUnavailable
from edgecore.hookspecs import Scheduling, hookimpl
from edgecore.models import (
    Answer,
    Between,
    Closed,
    Finding,
    Group,
    Level,
    NativeState,
    Observation,
    Reference,
    Refusal,
    Refused,
    SchedulingProfile,
    SiteContext,
    Submission,
    SubmissionAnswer,
    Submitted,
)
from edgecore.processes import user_name
from edgecore.wakeup import ring

__all__ = ["ForkScheduling"]

_log = logging.getLogger(__name__)

_CHUNK: Final = 900
"""Values per query; SQLite before 3.32 takes 999."""

_START_TIMEOUT_S: Final = 30.0

_LAUNCH: Final = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from edgecore.builtin.fork_supervisor import main; main(sys.argv[2])"
)
"""Imported by name and not run by path, so that Python keeps it compiled."""

_STATES: Final = {
    "QUEUED": NativeState.QUEUED,
    "HELD": NativeState.HELD,
    "RUNNING": NativeState.RUNNING,
    "ENDED": NativeState.ENDED,
}

_COLUMNS: Final = "id, tag, place, state, slots, queued, started, ended, exit_code, signal, reason, stop"

_Row = tuple[Any, ...]


def _slots() -> int:
    return os.cpu_count() or 1


@define(eq=False)
class ForkScheduling(Scheduling):
    """Run batch jobs on this host; see the module for what it promises."""

    slots: Annotated[int, Between(1, 100_000)] = field(factory=_slots)
    """Processes that one node runs at once; by default this host's processors."""
    nodes: Annotated[int, Between(1, 100_000)] = 1
    """How many nodes this host pretends to have."""
    queues: tuple[str, ...] = ()
    """The queues that a job may name; empty: any. All are served alike."""
    spool: str | None = None
    """Where the jobs are kept; by default ``.fork`` in the site's work directory."""
    kill_grace_s: Annotated[float, Between(0, 86_400)] = 10.0
    """Seconds between TERM and KILL."""
    keep_days: Annotated[float, Between(0, 36_500)] = 14.0
    """How many days an ended job stays listed."""
    poll_interval_s: Annotated[float, Between(0.01, 86_400)] = 1.0
    """Seconds between two listings."""
    idle_s: Annotated[float, Between(0, 86_400)] = 20.0
    """Seconds without work after which the supervisor goes away."""
    busy_timeout_s: Annotated[float, Between(0, 3_600)] = 10.0
    """Seconds to wait for the spool while another process writes."""
    minute_s: Annotated[float, Between(0.001, 60)] = 60.0
    """Length of a minute of walltime in seconds; for tests and demonstrations."""

    _connection: sqlite3.Connection | None = field(init=False, default=None, repr=False)
    _place: Path = field(init=False, default=Path(), repr=False)
    _environment: Mapping[str, str] = field(init=False, factory=dict, repr=False)
    _owner: str = field(init=False, default="", repr=False)
    _using: threading.Lock = field(init=False, factory=threading.Lock, repr=False)
    _starting: threading.Lock = field(init=False, factory=threading.Lock, repr=False)

    @hookimpl
    def open(self, site: SiteContext) -> SchedulingProfile:
        """Make or open the spool, and see to it that a supervisor lives if there is work."""
        self._place = (site.work_directory / (self.spool or ".fork")).absolute()
        self._environment = {"PATH": os.defpath, **site.environment}
        self._owner = user_name()
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._misplaced(f"cannot be made: {error.strerror}") from error
        with self._answering():
            self._connection = connect(self._place, self.busy_timeout_s)
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            self.close()
            raise self._misplaced(f"holds jobs of layout {version}, this edgecore reads {VERSION}")
        # Who only looks must not change what a supervisor works by, nor have waiting jobs start.
        how = "INSERT OR IGNORE" if site.examining else "INSERT OR REPLACE"
        with self._writing() as database:
            values = {"slots": self.slots * self.nodes, "kill_grace_s": self.kill_grace_s}
            values |= {"keep_days": self.keep_days, "idle_s": self.idle_s}
            database.executemany(f"{how} INTO settings VALUES (?, ?)", values.items())
        if not site.examining:
            self._supervise()
        return SchedulingProfile(
            batch_id_text="$EDGECORE_FORK_ID",
            max_group=1000,
            poll_interval_s=self.poll_interval_s,
            parallel_submits=2,
            version=f"fork {VERSION}, {self.nodes} x {self.slots} slots",
        )

    @hookimpl
    def submit(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        """Write all members in one transaction, and wake the supervisor."""
        refusal = self._refusal(group)
        if refusal:
            refused = Refused(kind=Refusal.PERMANENT, reason=refusal)
            return {submission.tag: refused for submission in group.submissions}
        answers: dict[str, SubmissionAnswer] = {}
        now = Clock().now()
        with self._writing() as database:
            for submission in group.submissions:
                batch_id = self._insert(database, group, submission, now)
                answers[submission.tag] = Submitted(batch_id=str(batch_id))
        try:
            self._wake()
        except SchedulerUnavailable:  # the jobs are in the queue all the same; `observe` tries again
            _log.warning("jobs are queued, but nothing will start them yet", exc_info=True)
        return answers

    @hookimpl
    def observe(self, references: Sequence[Reference]) -> Mapping[str, Observation]:
        """Look up all references, each by its id and tag."""
        self._supervise()
        with self._reading() as database:
            found = self._matching(database, references)
        return {row[1]: self._observation(row) for row in found}

    @hookimpl
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        """Look up jobs by their own tag and by that of their group."""
        found: dict[str, dict[int, Observation]] = {}
        with self._reading() as database:
            for column in ("tag", "group_tag"):
                query = f"SELECT {_COLUMNS}, {column} FROM jobs WHERE {column} IN (%s) ORDER BY id"  # noqa: S608
                for row in _by_chunks(database, query, tags):
                    found.setdefault(row[-1], {})[row[0]] = self._observation(row)
        return {tag: tuple(observations.values()) for tag, observations in found.items()}

    @hookimpl
    def cancel(self, references: Sequence[Reference]) -> Answer:
        """End at once what waits; have the supervisor end what runs."""
        now = Clock().now()
        with self._writing() as database:
            for job, _, _, state, *_ in self._matching(database, references):
                if state in ("QUEUED", "HELD"):
                    database.execute(
                        "UPDATE jobs SET state = 'ENDED', ended = ?, reason = 'cancelled' WHERE id = ?",
                        (now, job),
                    )
                elif state == "RUNNING":
                    database.execute("UPDATE jobs SET stop = 'cancelled' WHERE id = ? AND stop = ''", (job,))
        self._wake()
        return Answer(accepted=tuple(reference.tag for reference in references))

    @hookimpl
    def hold(self, references: Sequence[Reference]) -> Answer:
        """Keep waiting jobs from starting; a job that runs is refused."""
        refused = {}
        with self._writing() as database:
            for job, tag, _, state, *_ in self._matching(database, references):
                if state == "QUEUED":
                    database.execute("UPDATE jobs SET state = 'HELD' WHERE id = ?", (job,))
                elif state == "RUNNING":
                    refused[tag] = f"job {job} runs already; only a job that waits can be held"
        accepted = tuple(reference.tag for reference in references if reference.tag not in refused)
        return Answer(accepted=accepted, refused=refused)

    @hookimpl
    def release(self, references: Sequence[Reference]) -> Answer:
        """Put held jobs back into the queue, at the place that they had."""
        with self._writing() as database:
            for job, _, _, state, *_ in self._matching(database, references):
                if state == "HELD":
                    database.execute("UPDATE jobs SET state = 'QUEUED' WHERE id = ?", (job,))
        self._wake()
        return Answer(accepted=tuple(reference.tag for reference in references))

    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        """Compare the slots with this host, look at the spool, and see to it that waiting jobs have a supervisor."""
        with self._reading() as database:
            counted: Mapping[str, int] = dict(
                database.execute("SELECT state, count(*) FROM jobs GROUP BY state")
            )
            work = has_work(database)
            (too_large,) = database.execute(
                "SELECT count(*) FROM jobs WHERE state = 'QUEUED' AND slots > ?", (self.slots * self.nodes,)
            ).fetchone()
        with self._answering():
            lives = supervised(self._place)
        jobs = ", ".join(
            f"{counted.get(state, 0)} {state.lower()}" for state in ("RUNNING", "QUEUED", "HELD")
        )
        return (
            self._slots_finding(),
            *DirectoryCheck(subject="spool", path=self._place, local=True).findings(),
            _supervisor_finding(lives, work, jobs),
            *([_too_large_finding(too_large, self.slots * self.nodes)] if too_large else []),
        )

    def _slots_finding(self) -> Finding:
        total, processors = self.slots * self.nodes, _slots()
        found = f"{total} slots ({self.nodes} x {self.slots}) on a host with {processors} processors"
        if total <= processors:
            return Finding("slots", Level.OK, found)
        return Finding("slots", Level.WARNING, found, "lower slots, or jobs will slow each other down")

    @hookimpl
    def close(self) -> Closed:
        """Close the spool's database; jobs and supervisor live on."""
        with self._using:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        return Closed()

    # ------------------------------------------------------------------- submitting

    def _refusal(self, group: Group) -> str:
        """Say why the group could never run here; nothing when it could."""
        if group.num_nodes > self.nodes:
            return f"num_nodes = {group.num_nodes} is more than this host's nodes = {self.nodes}"
        if group.processes_per_node > self.slots:
            return (
                f"processes_per_node = {group.processes_per_node} is more than slots = {self.slots} per node"
            )
        if self.queues and group.queue is not None and group.queue not in self.queues:
            return f"there is no queue {group.queue!r}; there are: {', '.join(self.queues)}"
        if group.options:
            return f"this batch system has no options, but was given: {', '.join(sorted(group.options))}"
        return ""

    def _insert(self, database: sqlite3.Connection, group: Group, submission: Submission, now: int) -> int:
        request = {
            "script": str(submission.script),
            "directory": str(submission.directory),
            "environment": dict(self._environment),
            "comment": submission.comment,
            "queue": group.queue,
            "project": group.project,
        }
        batch_id = database.execute(
            "INSERT INTO jobs (tag, group_tag, place, state, slots, limit_s, request, queued) "
            "VALUES (?, ?, ?, 'QUEUED', ?, ?, ?, ?)",
            (
                submission.tag,
                group.tag,
                submission.index,
                group.num_nodes * group.processes_per_node,
                group.wall_time_minutes * self.minute_s,
                json.dumps(request),
                now,
            ),
        ).lastrowid
        assert batch_id is not None  # a row was inserted
        return batch_id

    # --------------------------------------------------------------------- observing

    def _matching(self, database: sqlite3.Connection, references: Sequence[Reference]) -> list[_Row]:
        """Return the rows of *references*: by id and tag, by tag alone where the id is not known."""
        known = [(r.batch_id, r.tag) for r in references if r.batch_id is not None]
        wanted = {(int(text), tag) for text, tag in known if text.isdecimal() and len(text) < 19}
        ids = list({job for job, _ in wanted})
        query = f"SELECT {_COLUMNS} FROM jobs WHERE id IN (%s)"  # noqa: S608
        rows = [row for row in _by_chunks(database, query, ids) if row[:2] in wanted]
        nameless = [reference.tag for reference in references if reference.batch_id is None]
        query = f"SELECT {_COLUMNS} FROM jobs WHERE tag IN (%s) ORDER BY id"  # noqa: S608
        return rows + list(_by_chunks(database, query, nameless))

    def _observation(self, row: _Row) -> Observation:
        job, tag, place, state, slots, queued, started, ended, exit_code, signal, reason, stop = row[:12]
        total = self.slots * self.nodes
        too_large = state == "QUEUED" and slots > total
        if too_large:
            reason = f"it wants {slots} slots, and this host has only {total} now"
        return Observation(
            state=_STATES[state],
            native_state=state,
            batch_id=str(job),
            name=tag,
            owner=self._owner,
            index=place,
            exit_code=exit_code,
            signal=signal,
            reason=reason or stop,
            never_starts=too_large,
            queued=queued,
            started=started,
            ended=ended,
            nodes=os.uname().nodename if started is not None else "",
        )

    # -------------------------------------------------------------------- supervisor

    def _wake(self) -> None:
        """Have the supervisor look at what was written."""
        with self._answering():
            ring(bells(self._place))
        self._supervise()

    def _supervise(self) -> None:
        """Start a supervisor if none lives and there is work."""
        with self._answering():
            if supervised(self._place):
                return
            with self._starting:
                for _ in range(3):  # one that found the lock taken for a moment goes away again
                    with self._reading() as database:
                        if supervised(self._place) or not has_work(database):
                            return
                    self._start()

    def _start(self) -> None:
        parent = Path(__file__).parents[2]
        arguments = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _LAUNCH, str(parent), str(self._place)]
        try:
            result = run(arguments, timeout_s=_START_TIMEOUT_S)
        except CommandNotFound as error:
            raise SchedulerUnavailable(f"fork: cannot start the supervisor: {error}") from error
        if result.exit_code != 0:
            raise SchedulerUnavailable(f"fork: cannot start the supervisor: {result.complaint()}")

    # --------------------------------------------------------------------- the spool

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._answering(), self._using:
            if self._connection is None:
                raise SchedulerUnavailable(f"fork: the spool {self._place} is not open")
            yield self._connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database, transaction(database):
            yield database

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what a spool that cannot be used raises into words."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise SchedulerUnavailable(
                f"fork: the spool {self._place} cannot be used: {error}; is its directory there and writable, "
                "is the disk full, does another program hold its database?"
            ) from error

    def _misplaced(self, found: str) -> ConfigurationError:
        problem = Problem(
            "spool", f"{self._place}, which {found}", "name a directory that this user can write"
        )
        return ConfigurationError("scheduling driver fork", [problem])


def _supervisor_finding(lives: bool, work: bool, jobs: str) -> Finding:
    if work and not lives:
        remedy = "run the service: it starts a supervisor, which starts them"
        return Finding("supervisor", Level.WARNING, f"none lives; jobs: {jobs}", remedy)
    return Finding("supervisor", Level.OK, f"{'lives' if lives else 'is not needed'}; jobs: {jobs}")


def _too_large_finding(count: int, total: int) -> Finding:
    found = f"{count} waiting jobs want more than the {total} slots that there are"
    return Finding("waiting jobs", Level.WARNING, found, "cancel them, or raise slots or nodes")


def _by_chunks(database: sqlite3.Connection, query: str, values: Sequence[object]) -> Iterator[_Row]:
    for first in range(0, len(values), _CHUNK):
        chunk = values[first : first + _CHUNK]
        yield from database.execute(query % ",".join("?" * len(chunk)), chunk)
