"""Let the fake batch system do its work: take, list, start, cancel and hold jobs.

There is no daemon. Every command, and every call of a test, moves the world on: `World.advance` notes what ended
with nobody to see it, and starts a *runner* for each job that waits while a slot is free. A runner
(`edgecore.testing.fake.runner`) runs one job after the other, records each end, and goes away when nothing waits.

Every method is to be called inside of a transaction of the state.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final

from edgecore.processes import process_start, user_name
from edgecore.testing.fake.dialect import Dialect
from edgecore.testing.fake.processes import kill, lives, spawn_runner
from edgecore.testing.fake.records import Act, Condition, Job, Look, Outcome, Submit, Why
from edgecore.testing.fake.state import State
from edgecore.testing.words import Command, Word

__all__ = ["World", "seconds_since_boot"]

_ALIVE: Final = "condition IN ('waiting', 'held', 'running')"
_STARTABLE: Final = "condition = 'waiting' AND why <> 'can never run' AND foreigner = 0 AND runner IS NULL"


class World:
    """Carry out requests on the state, in the terms of a dialect."""

    def __init__(self, state: State, dialect: Dialect) -> None:
        self.state = state
        self.dialect = dialect
        self.children: list[int] = []
        """Runners that this process started, and must reap if it lives longer than they."""

    # ------------------------------------------------------------------------ moving on

    def advance(self) -> None:
        """Note what ended unseen, and start what waits while there are slots."""
        connection = self.state.connection
        for pid, start in connection.execute("SELECT pid, pid_start FROM runners").fetchall():
            if not lives(pid, start):
                connection.execute("DELETE FROM runners WHERE pid = ?", (pid,))
                self._orphaned(pid)
        if self.state.setting("paused"):
            return
        (waiting,) = connection.execute(f"SELECT count(*) FROM jobs WHERE {_STARTABLE}").fetchone()  # noqa: S608
        (idle,) = connection.execute("SELECT count(*) FROM runners WHERE busy = 0").fetchone()
        (busy,) = connection.execute("SELECT count(*) FROM runners WHERE busy = 1").fetchone()
        for _ in range(min(waiting, self.state.setting("slots") - busy) - idle):
            pid = spawn_runner(self.state.place, self.state.setting("paths"))
            self.children.append(pid)
            start = process_start(pid)
            if start is not None:
                connection.execute("INSERT INTO runners (pid, pid_start) VALUES (?, ?)", (pid, start))

    def next_job(self) -> Job | None:
        """Return the job that comes to its turn now, if any; for a runner, of which there is one per slot."""
        if self.state.setting("paused"):
            return None
        found = self.state.jobs(f"row = (SELECT min(row) FROM jobs WHERE {_STARTABLE})")  # noqa: S608
        return found[0] if found else None

    def _orphaned(self, runner: int) -> None:
        """End the job of a runner that died: nobody will ever know its exit code."""
        rows = self.state.connection.execute(
            "SELECT row, pid, pid_start, condition FROM jobs WHERE runner = ?", (runner,)
        ).fetchall()
        for row, pid, start, condition in rows:
            kill(pid, start)
            self.state.update(row, runner=None)
            if condition == Condition.RUNNING:
                self.state.update(row, condition=Condition.NODE_FAILURE, ended=time.time())

    # ------------------------------------------------------------------------- submitting

    def submit(self, request: Submit, *, never: bool) -> int:
        """Queue a job or an array; returns its number. *never*: it will wait for ever."""
        number = int(self.state.setting("next_number"))
        self.state.set("next_number", number + 1)
        script = self._script(request, number)
        condition = self.dialect.stuck if never else Condition.HELD if request.hold else Condition.WAITING
        why = Why.NEVER if never else Why.HELD_BY_USER if request.hold else Why.RESOURCES
        now = time.time()
        for index in (None,) if request.indexes is None else request.indexes:
            batch_id = self.dialect.batch_id(number, index)
            self.insert(
                number=number,
                member=index,
                batch_id=batch_id,
                owner=user_name(),
                name=request.name,
                condition=condition,
                why=why,
                script=script,
                directory=request.directory,
                nodes=request.nodes,
                processes=request.processes,
                walltime_s=request.walltime_s,
                queue=request.queue,
                account=request.account,
                comment=request.comment,
                options=json.dumps(request.options),
                requeue=int(request.requeue),
                queued=now,
                environment=json.dumps(dict(request.environment)),
                output=request.output.replace("{id}", batch_id),
            )
        return number

    def insert(self, **values: object) -> int:
        """Put a job on record; returns its row."""
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        query = f"INSERT INTO jobs ({names}) VALUES ({marks})"  # noqa: S608 - only our own words
        row = self.state.connection.execute(query, tuple(values.values())).lastrowid
        assert row is not None  # a row was inserted
        return row

    def _script(self, request: Submit, number: int) -> str:
        if request.content is None:
            return request.script
        copy = self.state.place / "scripts" / f"{number}.sh"
        copy.write_bytes(request.content)
        copy.chmod(0o700)
        return str(copy)

    # ---------------------------------------------------------------------------- listing

    def look(self, request: Look) -> tuple[list[Job], list[str]]:
        """Return the jobs that a listing shows, and the ids asked for that nobody knows."""
        frozen = request.command is Command.ACCOUNTING and self.state.spoilers("accounting behind")
        table = "frozen" if frozen else "jobs"
        shown = "listed = 1"
        if request.command is Command.QUERY and not self.dialect.keeps_ended:
            shown += f" AND {_ALIVE}"
        jobs, missing = self._named(shown, request.ids, request.names, table)
        if request.owner is not None:
            jobs = [job for job in jobs if job.owner == request.owner]
        if request.since is not None:
            jobs = [job for job in jobs if job.ended is None or job.ended >= request.since]
        hidden = self.state.spoilers("unlisted")
        spoilt = self.state.spoilers("showing")
        return [self._worded(job, spoilt) for job in jobs if job.batch_id not in hidden], missing

    def _named(
        self, shown: str, ids: Sequence[str] | None, names: Sequence[str] | None, table: str = "jobs"
    ) -> tuple[list[Job], list[str]]:
        if ids is None and names is None:
            return self.state.jobs(shown, table=table), []
        if ids is None:
            return self.state.jobs_among(shown, "name", list(names or ()), table), []
        jobs: dict[int, Job] = {}
        missing = []
        for batch_id in ids:
            found = self.known(batch_id, shown, table)
            if not found:
                missing.append(batch_id)
            jobs.update((job.row, job) for job in found if names is None or job.name in names)
        return list(jobs.values()), missing

    def known(self, batch_id: str, shown: str = "listed = 1", table: str = "jobs") -> list[Job]:
        """Return the jobs under an id: one, or all members of an array."""
        return self.state.jobs(f"{shown} AND batch_id = ?", batch_id, table=table) or [
            job
            for job in self.state.jobs(
                f"{shown} AND member IS NOT NULL AND number = ?", _number(batch_id), table=table
            )
            if self.dialect.batch_id(job.number, None) == batch_id
        ]

    def _worded(self, job: Job, spoilt: Mapping[str, str]) -> Job:
        how = spoilt.get(job.batch_id)
        word = self.dialect.words[job.condition]
        if how == Word.UNKNOWN:
            word = self.dialect.unknown_word
        elif how == Word.DECORATED:
            word = self.dialect.decorated(job)
        return job._replace(word=word, reason=self.dialect.reasons.get(job.why, ""))

    # ----------------------------------------------------------------------------- acting

    def act(self, request: Act) -> list[Outcome]:
        """Cancel, hold or release; says of each id what became of it."""
        if request.ids is None:
            names = [name for name in request.names or () if name is not None]
            jobs, _ = self._named(f"listed = 1 AND {_ALIVE}", None, names)
            return [self._act(request, job.batch_id, job) for job in jobs]
        outcomes = []
        wanted = request.names or (None,) * len(request.ids)
        for batch_id, name in zip(request.ids, wanted, strict=True):
            jobs = [job for job in self.known(batch_id) if name is None or job.name == name]
            outcomes += [self._act(request, batch_id, job) for job in jobs]
            if not jobs:
                outcomes.append(Outcome(batch_id, None, done=False))
        return outcomes

    def _act(self, request: Act, batch_id: str, job: Job) -> Outcome:
        if request.owner is not None and job.owner != request.owner:
            return Outcome(batch_id, None, done=False)
        doing = {Command.CANCEL: self.cancel, Command.HOLD: self.hold, Command.RELEASE: self.release}
        return Outcome(batch_id, job, done=doing[request.command](job, by=user_name()))

    def cancel(self, job: Job, *, by: str) -> bool:
        """End a job as its user asks: what runs gets TERM, and KILL from its runner when it does not heed."""
        if job.condition.ended:
            return False
        if job.condition is Condition.RUNNING and not self._foreign(job):
            self.state.update(
                job.row,
                stopping=Condition.CANCELLED,
                ended_by=by,
                kill_at=seconds_since_boot() + float(self.state.setting("kill_grace_s")),
            )
            kill(*self.process(job), signal.SIGTERM)
        else:
            self.state.update(job.row, condition=Condition.CANCELLED, why="", ended=time.time(), ended_by=by)
        return True

    def hold(self, job: Job, *, by: str) -> bool:
        """Keep a waiting job from starting."""
        if job.condition is Condition.WAITING:
            why = Why.HELD_BY_USER if by == job.owner else Why.HELD_BY_ADMINISTRATOR
            why = job.why if job.why is Why.NEVER else why
            self.state.update(job.row, condition=Condition.HELD, why=why)
        return job.condition in (Condition.WAITING, Condition.HELD)

    def release(self, job: Job, *, by: str) -> bool:
        """Let a held job start."""
        if job.condition is Condition.HELD and job.why is Why.NEVER:
            self.state.update(job.row, condition=self.dialect.stuck)
        elif job.condition is Condition.HELD:
            self.state.update(job.row, condition=Condition.WAITING, why=Why.RESOURCES)
        return job.condition in (Condition.WAITING, Condition.HELD)

    def kill(self, job: Job) -> None:
        """Kill the processes of a job without a word; its row is the caller's to change."""
        kill(*self.process(job))

    def process(self, job: Job) -> tuple[int | None, int | None]:
        """Return process id and start time of a job's script."""
        row = self.state.connection.execute(
            "SELECT pid, pid_start FROM jobs WHERE row = ? AND runner IS NOT NULL", (job.row,)
        ).fetchone()
        return row or (None, None)

    def _foreign(self, job: Job) -> bool:
        (found,) = self.state.connection.execute(
            "SELECT foreigner FROM jobs WHERE row = ?", (job.row,)
        ).fetchone()
        return bool(found)


def _number(batch_id: str) -> int:
    """Return the number that an id begins with; -1 where it does not."""
    digits = batch_id[: len(batch_id) - len(batch_id.lstrip("0123456789"))]
    return int(digits[:18]) if digits else -1


def seconds_since_boot() -> float:
    """Return the time by a clock that a correction of the date does not move."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
