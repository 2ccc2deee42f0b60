"""Steer a fake batch system from a test.

Its commands are files in `bin`, to be put first on a driver's PATH. They share one directory with the
control object and nothing else, so that a service in a process of its own meets the same batch system.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from edgecore.models import NativeState, Refusal
from edgecore.processes import process_start
from edgecore.testing.batch_system import BatchSystem, NativeJob
from edgecore.testing.fake.dialect import Dialect
from edgecore.testing.fake.processes import kill, lives
from edgecore.testing.fake.records import Condition, Job, Why
from edgecore.testing.fake.state import State, make_state
from edgecore.testing.fake.world import World
from edgecore.testing.words import Command, Ending, Garbling, SubmitFault, Word

__all__ = ["FakeBatchSystem"]

_COMMAND: Final = """#!{python} -IS
import sys
sys.path[:] = {paths!r}
from edgecore.testing.fake.command import main
main({place!r}, {name!r})
"""
_DYING_S: Final = 20.0
_STRANGER: Final = "stranger"
_OPERATOR: Final = "operator"
"""Who holds and ends jobs by hand; the tests themselves may well run as root."""

_STATES: Final = {
    Condition.WAITING: NativeState.QUEUED,
    Condition.HELD: NativeState.HELD,
    Condition.RUNNING: NativeState.RUNNING,
}
_ENDINGS: Final = {
    Ending.CANCELLED: Condition.CANCELLED,
    Ending.NODE_FAILURE: Condition.NODE_FAILURE,
    Ending.OUT_OF_MEMORY: Condition.OUT_OF_MEMORY,
    Ending.TIME_LIMIT: Condition.TIME_LIMIT,
}


class FakeBatchSystem(BatchSystem):
    """Be the batch system whose commands *dialect* describes, in the directory *place*.

    *slots* jobs run at once. *settings* are what the driver gets as its own keys. *minute_s* is the length of a
    minute of walltime. To be used in a with statement, or closed: that kills every process of it, and so does the end
    of the process that made it, in whatever way. May be used by several threads. What leaves the session of its script escapes, as it does where there are no control groups.
    """

    def __init__(
        self,
        place: Path,
        dialect: type[Dialect],
        *,
        slots: int = 4,
        settings: Mapping[str, Any] | None = None,
        minute_s: float = 60.0,
        kill_grace_s: float = 2.0,
        first_number: int = 1,
    ) -> None:
        self.place = place.absolute()
        self.bin = self.place / "bin"
        self.settings = dict(settings or {})
        self.environment = {"PATH": f"{self.bin}:{os.defpath}"}
        (self.place / "scripts").mkdir(parents=True)
        paths = [path for path in sys.path if path]
        make_state(
            self.place,
            {
                "dialect": f"{dialect.__module__}:{dialect.__name__}",
                "paths": paths,
                "slots": slots,
                "minute_s": minute_s,
                "kill_grace_s": kill_grace_s,
                "next_number": first_number,
                "paused": False,
                "closed": False,
                "owner": [os.getpid(), process_start(os.getpid())],
            },
        )
        self._make_commands(dialect.executables, paths)
        self._world = World(State(self.place), dialect())
        self._state = self._world.state
        self._using = threading.RLock()
        self._open = True

    def _make_commands(self, names: Sequence[str], paths: Sequence[str]) -> None:
        self.bin.mkdir()
        for name in names:
            file = self.bin / name
            place = str(self.place)
            file.write_text(_COMMAND.format(python=sys.executable, paths=list(paths), place=place, name=name))
            file.chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every process of this batch system; its commands answer as if the server were down."""
        with self._using:
            if not self._open:
                return
            self._open = False
            with self._state.transaction():
                self._state.set("closed", value=True)
                self._state.set("paused", value=True)
            self._kill_all()
            self._state.close()

    def _kill_all(self) -> None:
        deadline = time.monotonic() + _DYING_S
        while left := [each for each in self._processes() if lives(*each)]:
            for each in left:
                kill(*each)
            self._reap()
            if time.monotonic() > deadline:
                raise TimeoutError(f"these processes of the fake batch system do not die: {left}")
            time.sleep(0.01)
        self._reap()

    def _processes(self) -> list[tuple[int, int]]:
        """Return process id and start time of all that may live; runners first, lest they start more."""
        tables = ("runners", "hanging", "jobs")
        return [
            row
            for table in tables
            for row in self._state.connection.execute(
                f"SELECT pid, pid_start FROM {table} WHERE pid IS NOT NULL"  # noqa: S608 - only our own words
            ).fetchall()
        ]

    def _reap(self) -> None:
        """Let the runners go that this process started and that have ended."""
        for pid in list(self._world.children):
            try:
                gone, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else reaped it
                gone = pid
            if gone:
                self._world.children.remove(pid)

    @contextlib.contextmanager
    def _acting(self) -> Iterator[World]:
        """Act in one transaction, and move the world on."""
        with self._using:
            self._reap()
            with self._state.transaction():
                yield self._world
                self._world.advance()

    def _job(self, batch_id: str) -> Job:
        """Return the job of ours that has, or had, an id. Raises LookupError."""
        jobs = self._state.jobs("batch_id = ? AND foreigner = 0", batch_id)
        if not jobs:
            known = ", ".join(job.batch_id for job in self._state.jobs("foreigner = 0")[-20:])
            raise LookupError(f"the fake batch system has no job {batch_id}; it has: {known or 'none'}")
        return jobs[-1]

    # ------------------------------------------------------------------------------- looking

    def jobs(self) -> Sequence[NativeJob]:
        """Return every job of ours that ever entered, in order; also those that no command shows."""
        with self._acting():
            found = self._state.jobs("foreigner = 0")
        return [
            NativeJob(
                batch_id=job.batch_id,
                name=job.name,
                state=_STATES.get(job.condition, NativeState.ENDED),
                executions=job.executions,
                request=_request(job),
            )
            for job in found
        ]

    def records(self) -> Sequence[Job]:
        """Return every job of ours with all that was asked for it, in order."""
        with self._acting():
            return self._state.jobs("foreigner = 0")

    # ------------------------------------------------------------------------------ steering

    def pause(self) -> None:
        """Start nothing more until `resume`; what runs goes on."""
        with self._acting():
            self._state.set("paused", value=True)

    def resume(self) -> None:
        """Start what waits."""
        with self._acting():
            self._state.set("paused", value=False)

    def interrupt(self, batch_id: str, ending: Ending) -> None:
        """End a waiting or running job natively; its processes are killed without a word."""
        with self._acting() as world:
            job = self._job(batch_id)
            if job.condition.ended:
                raise LookupError(f"job {batch_id} cannot be interrupted: it has ended, {job.condition}")
            world.kill(job)
            self._state.update(
                job.row,
                condition=_ENDINGS[ending],
                why="",
                ended=time.time(),
                signal=9 if job.condition is Condition.RUNNING else None,
                ended_by=_OPERATOR if ending is Ending.CANCELLED else "",
            )

    def requeue(self, batch_id: str) -> None:
        """Queue a running job, whose processes are killed, or an ended one again under the same id."""
        with self._acting() as world:
            self._requeue(world, batch_id)

    def _requeue(self, world: World, batch_id: str) -> None:
        job = self._job(batch_id)
        if job.condition in (Condition.WAITING, Condition.HELD):
            raise LookupError(f"job {batch_id} is in the queue already: it is {job.condition}")
        world.kill(job)
        nothing = dict.fromkeys(("started", "ended", "exit_code", "signal"))
        again = {"condition": Condition.WAITING, "why": Why.RESOURCES, "stopping": "", "ended_by": ""}
        self._state.update(job.row, **nothing, **again)

    def preempt(self, batch_id: str) -> None:
        """Tell a running job to stop, kill what is left after `kill_grace_s`, and queue it under the same id."""
        with self._acting() as world:
            process = world.process(self._job(batch_id))
            kill(*process, signal.SIGTERM)
            deadline = time.monotonic() + float(self._state.setting("kill_grace_s"))
            while lives(*process) and time.monotonic() < deadline:
                time.sleep(0.005)
            self._requeue(world, batch_id)

    def hold(self, batch_id: str) -> None:
        """Hold a waiting job, as an administrator does."""
        with self._acting() as world:
            if not world.hold(self._job(batch_id), by=_OPERATOR):
                raise LookupError(f"job {batch_id} does not wait, and cannot be held")

    def release(self, batch_id: str) -> None:
        """Release what `hold` held."""
        with self._acting() as world:
            world.release(self._job(batch_id), by=_OPERATOR)

    def forget(self, batch_id: str) -> None:
        """Purge a job from every list and from accounting; what runs of it goes on unlisted, what waits is gone."""
        with self._acting():
            self._forget(self._job(batch_id))

    def _forget(self, job: Job) -> None:
        self._state.update(job.row, listed=0)
        if job.condition in (Condition.WAITING, Condition.HELD):
            self._state.update(job.row, condition=Condition.CANCELLED, ended=time.time())

    def lose(self, batch_id: str) -> None:
        """Be a batch system that crashed: a waiting job never was, and its id is free again."""
        with self._acting():
            job = self._job(batch_id)
            if job.condition not in (Condition.WAITING, Condition.HELD):
                raise LookupError(f"job {batch_id} does not wait, and is not lost: it is {job.condition}")
            self._forget(job)

    def give_away(self, batch_id: str) -> None:
        """Let a later job of another user have *batch_id*; it runs, under another name."""
        with self._acting() as world:
            job = self._job(batch_id)
            self._forget(job)
            now = time.time()
            world.insert(
                number=job.number,
                member=job.member,
                batch_id=batch_id,
                owner=_STRANGER,
                name="analysis",
                condition=Condition.RUNNING,
                why="",
                script="/home/stranger/analysis.sh",
                directory="/home/stranger",
                nodes=1,
                processes=1,
                queue="",
                account="",
                comment="",
                options="[]",
                requeue=1,
                queued=now,
                started=now,
                foreigner=1,
                executions=1,
            )

    def stranger_is_alive(self, batch_id: str) -> bool:
        """Tell whether the job of another user that got *batch_id* still waits or runs."""
        with self._acting():
            found = self._state.jobs("batch_id = ? AND foreigner = 1", batch_id)
        if not found:
            raise LookupError(f"no job of another user has the id {batch_id}")
        return not found[-1].condition.ended

    # ------------------------------------------------------------------------------ spoiling

    @contextlib.contextmanager
    def _spoiling(
        self, kind: str, *subjects: str, detail: str = "", times: int | None = None
    ) -> Iterator[None]:
        with self._using:
            spoilers = [self._state.spoil(kind, subject, detail, times) for subject in subjects]
        try:
            yield
        finally:
            with self._using:
                if self._open:
                    self._state.mend(*spoilers)

    def failing(
        self, *commands: Command, times: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Let *commands* fail as with a server that is down, so many times or all the while."""
        return self._spoiling("failing", *commands, times=times)

    def hanging(self, *commands: Command) -> contextlib.AbstractContextManager[None]:
        """Let *commands* not come back; a child of theirs keeps their output open, too."""
        return self._spoiling("hanging", *commands)

    def asked(self, command: Command) -> int:
        """Tell how often a command was run so far."""
        with self._using:
            row = self._state.connection.execute(
                "SELECT times FROM asked WHERE command = ?", (command,)
            ).fetchone()
        return int(row[0]) if row else 0

    def without_accounting(self) -> contextlib.AbstractContextManager[None]:
        """Let accounting be switched off: its command says so and fails."""
        return self._spoiling("accounting off", "")

    @contextlib.contextmanager
    def accounting_behind(self) -> Iterator[None]:
        """Let accounting know of nothing that happens from now on."""
        with self._acting():
            self._state.connection.execute("DELETE FROM frozen")
            self._state.connection.execute("INSERT INTO frozen SELECT * FROM jobs")
        with self._spoiling("accounting behind", ""):
            yield

    def unlisted(self, batch_id: str) -> contextlib.AbstractContextManager[None]:
        """Leave one job out of every answer."""
        return self._spoiling("unlisted", batch_id)

    def showing(self, batch_id: str, word: Word) -> contextlib.AbstractContextManager[None]:
        """Write the state of one job in another way."""
        return self._spoiling("showing", batch_id, detail=word)

    def garbling(self, batch_id: str, how: Garbling) -> contextlib.AbstractContextManager[None]:
        """Spoil what listings say about one job."""
        return self._spoiling("garbling", batch_id, detail=how)

    def noisy(self) -> contextlib.AbstractContextManager[None]:
        """Let every command write to its standard error, before its answer, more than a pipe holds."""
        return self._spoiling("noisy", "")

    def spoil_submit(self, fault: SubmitFault) -> contextlib.AbstractContextManager[None]:
        """Accept every submission meanwhile, and let the answer go wrong."""
        return self._spoiling("submit", fault)

    @contextlib.contextmanager
    def refusing(self, kind: Refusal) -> Iterator[str]:
        """Refuse every submission meanwhile; gives a part of the words that it is refused with."""
        first = self._world.dialect.refusals[kind].strip().splitlines()[0]
        with self._spoiling("refusing", kind):
            yield first


def _request(job: Job) -> Mapping[str, Any]:
    """Return what was asked for a job, in the words of a `Group`."""
    return {
        "num_nodes": job.nodes,
        "processes_per_node": job.processes,
        "wall_time_minutes": None if job.walltime_s is None else round(job.walltime_s / 60),
        "queue": job.queue,
        "project": job.account,
        "comment": job.comment,
        "restartable": job.requeue,
        "options": dict(job.options),
    }
