"""Run jobs of the fake batch system, one after the other, and record how each ended.

A runner is a process of its own that outlives whoever started it. It takes the oldest waiting job, starts its script
behind a gate, puts the start on record and opens the gate: one that is killed at any instruction leaves a job that
waits or one that is on record with its process, never one that runs unknown.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Final, NamedTuple

from edgecore.processes import process_start
from edgecore.testing.fake.loading import load_dialect
from edgecore.testing.fake.processes import interpreter, lives, spawn_script
from edgecore.testing.fake.records import Condition, Job
from edgecore.testing.fake.state import State
from edgecore.testing.fake.world import World, seconds_since_boot

__all__ = ["main"]

_LOOK_S: Final = 0.25
"""How often a runner looks whether its job was cancelled, and whether anybody is left whom it runs jobs for."""


class _Started(NamedTuple):
    """A job whose script was started, and the gate in front of it."""

    job: Job
    pid: int
    gate: int
    deadline: float | None
    """When its walltime is over, in seconds since boot."""


class _Ended(NamedTuple):
    exit_code: int | None
    signal: int | None


def main(place: str) -> None:
    """Run what waits until nothing does. A runner that fails closes its gates by ending."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # to be waited for
    state = State(Path(place))
    runner = _Runner(World(state, load_dialect(state)))
    started = runner.take_first()
    while started is not None:
        with contextlib.suppress(BrokenPipeError):  # killed at the gate: its end is seen like any other
            os.write(started.gate, b"\n")
        os.close(started.gate)
        ended = runner.watch(started)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # not reaped yet: the number of its group is still its own
        started = runner.record_and_take(started, ended)
    state.close()


class _Runner:
    def __init__(self, world: World) -> None:
        self.world = world
        self.state = world.state
        self.pid = os.getpid()

    def take_first(self) -> _Started | None:
        """Say that this runner is there, and take a job."""
        with self.state.transaction():
            self.state.connection.execute(
                "INSERT OR IGNORE INTO runners (pid, pid_start) VALUES (?, ?)",
                (self.pid, process_start(self.pid)),
            )
            return self._take()

    def record_and_take(self, started: _Started, ended: _Ended) -> _Started | None:
        """Record the end of a job, and take the next one."""
        with self.state.transaction():
            self._record(started.job, ended)
            os.waitpid(started.pid, 0)
            return self._take()

    def _take(self) -> _Started | None:
        connection = self.state.connection
        connection.execute("UPDATE runners SET busy = 0 WHERE pid = ?", (self.pid,))
        while lives(*self.state.owner) and (job := self.world.next_job()) is not None:
            try:
                pid, gate = self._spawn(job)
            except OSError as error:
                self.state.update(
                    job.row, condition=Condition.FAILED, exit_code=127, ended=time.time(), comment=str(error)
                )
                continue
            self.state.update(
                job.row,
                condition=Condition.RUNNING,
                why="",
                started=time.time(),
                pid=pid,
                pid_start=process_start(pid),
                runner=self.pid,
                executions=job.executions + 1,
            )
            connection.execute("UPDATE runners SET busy = 1 WHERE pid = ?", (self.pid,))
            return _Started(job, pid, gate, self._deadline(job))
        connection.execute("UPDATE runners SET busy = -1 WHERE pid = ?", (self.pid,))
        return None

    def _spawn(self, job: Job) -> tuple[int, int]:
        environment, output = self.state.connection.execute(
            "SELECT environment, output FROM jobs WHERE row = ?", (job.row,)
        ).fetchone()
        variables = {"PATH": os.defpath, **json.loads(environment), **self.world.dialect.variables(job)}
        return spawn_script(
            interpreter(job.script), job.directory, variables, os.path.join(job.directory, output)
        )

    def _deadline(self, job: Job) -> float | None:
        if job.walltime_s is None or not self.world.dialect.enforces_walltime:
            return None
        return seconds_since_boot() + job.walltime_s * float(self.state.setting("minute_s")) / 60

    def watch(self, started: _Started) -> _Ended:
        """Wait for the end of a script, which its walltime or a cancel may bring about; leaves it to be reaped."""
        while (result := os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
            if signal.sigtimedwait({signal.SIGCHLD}, _LOOK_S) is None:
                self._stop_if_due(started)
        if result.si_code == os.CLD_EXITED:
            return _Ended(result.si_status, None)
        return _Ended(None, result.si_status)

    def _stop_if_due(self, started: _Started) -> None:
        if not lives(*self.state.owner):
            os.killpg(started.pid, signal.SIGKILL)
            return
        now = seconds_since_boot()
        stopping, kill_at = self.state.connection.execute(
            "SELECT stopping, kill_at FROM jobs WHERE row = ?", (started.job.row,)
        ).fetchone()
        if stopping:
            if now >= kill_at:
                os.killpg(started.pid, signal.SIGKILL)
        elif started.deadline is not None and now >= started.deadline:
            grace_s = float(self.state.setting("kill_grace_s"))
            with self.state.transaction():
                self.state.update(started.job.row, stopping=Condition.TIME_LIMIT, kill_at=now + grace_s)
            os.killpg(started.pid, signal.SIGTERM)

    def _record(self, job: Job, ended: _Ended) -> None:
        condition, stopping = self.state.connection.execute(
            "SELECT condition, stopping FROM jobs WHERE row = ?", (job.row,)
        ).fetchone()
        self.state.update(job.row, runner=None, stopping="", kill_at=None)
        if condition != Condition.RUNNING:  # it was ended or queued again natively, and its processes killed
            return
        outcome = Condition.COMPLETED if ended.exit_code == 0 else Condition.FAILED
        self.state.update(
            job.row,
            condition=stopping or outcome,
            ended=time.time(),
            exit_code=ended.exit_code,
            signal=ended.signal,
        )
