"""Steer the `fork` batch system by hand: its processes by signals, its memory by SQL.

Triggers in its database count what entered and what started, so that nothing that a test does to the
rows falsifies the count.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from fork_helpers import Spool, wait_for

from edgecore.builtin.fork_spool import bells, lock_file
from edgecore.models import NativeState, Reference
from edgecore.processes import process_start
from edgecore.testing import BatchSystem, Command, Ending, NativeJob, SubmitFault
from edgecore.wakeup import ring

__all__ = ["ForkBatchSystem"]

_COUNTING: Final = (
    "CREATE TABLE entered (number INTEGER PRIMARY KEY, id INTEGER, tag TEXT)",
    "CREATE TABLE starts (id INTEGER)",
    "CREATE TRIGGER on_entry AFTER INSERT ON jobs WHEN NEW.tag <> 'stranger' "
    "BEGIN INSERT INTO entered (id, tag) VALUES (NEW.id, NEW.tag); END",
    "CREATE TRIGGER on_start AFTER UPDATE OF state ON jobs "
    "WHEN NEW.state = 'RUNNING' AND OLD.state = 'QUEUED' AND NEW.tag <> 'stranger' "
    "BEGIN INSERT INTO starts VALUES (NEW.id); END",
)
_PAUSE: Final = """
CREATE TRIGGER paused BEFORE UPDATE OF state ON jobs
    WHEN NEW.state = 'RUNNING' AND NEW.tag <> 'stranger' BEGIN SELECT RAISE(IGNORE); END
"""
_TOO_LARGE: Final = """
CREATE TRIGGER too_large AFTER INSERT ON jobs BEGIN UPDATE jobs SET slots = 1000000 WHERE id = NEW.id; END
"""
_AS_NEW: Final = (
    "UPDATE jobs SET state = 'QUEUED', started = NULL, ended = NULL, pid = NULL, pid_start = NULL, boot = NULL, "
    "stop = '', kill_at = NULL, exit_code = NULL, signal = NULL, reason = '' WHERE id = ?"
)


class ForkBatchSystem(BatchSystem):
    """One spool below *root*, with the real supervisor."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self._root = root
        self.settings: Mapping[str, Any] = {
            "slots": 4,
            "kill_grace_s": 0.2,
            "poll_interval_s": 0.1,
            "idle_s": 3,
            "spool": str(root / ".fork"),
            "busy_timeout_s": 0.5,
        }
        self.environment: Mapping[str, str] = {}
        self._spool = Spool(root, dict(self.settings))
        self._orphans: list[tuple[int, int]] = []
        for statement in _COUNTING:
            self._ask(statement)

    def close(self) -> None:
        """Leave no process behind."""
        self._spool.stop()
        for pid, start in self._orphans:
            if process_start(pid) == start:
                os.killpg(pid, signal.SIGKILL)

    # ---------------------------------------------------------------------------- looking

    def jobs(self) -> Sequence[NativeJob]:
        """Return what the triggers wrote down."""
        rows = self._ask(
            "SELECT id, tag, (SELECT state FROM jobs WHERE jobs.id = entered.id AND jobs.tag <> 'stranger'), "
            "(SELECT count(*) FROM starts WHERE starts.id = entered.id) FROM entered ORDER BY number"
        )
        return [
            NativeJob(
                batch_id=str(job),
                name=tag,
                state=NativeState(state.lower()) if state else NativeState.UNKNOWN,
                executions=executions,
            )
            for job, tag, state, executions in rows
        ]

    def asked(self, command: Command) -> int:
        """Tell that no command is ever run."""
        return 0

    # --------------------------------------------------------------------------- steering

    def pause(self) -> None:
        """Let no job become running: the supervisor finds that it was not to start it."""
        self._ask(_PAUSE)

    def resume(self) -> None:
        """Start what waits."""
        self._ask("DROP TRIGGER paused")
        self._kick()

    def interrupt(self, batch_id: str, ending: Ending) -> None:
        """Cancel by hand, shorten the walltime, or let the host have restarted."""
        if ending is Ending.CANCELLED:
            ((tag,),) = self._ask("SELECT tag FROM jobs WHERE id = ?", batch_id)
            reference = Reference(
                tag=tag, group_tag=tag, index=None, batch_id=batch_id, directory=self._root, submitted=0
            )
            self._spool.driver.cancel(references=[reference])
        elif ending is Ending.TIME_LIMIT:
            with self._unsupervised():
                self._ask("UPDATE jobs SET limit_s = 0 WHERE id = ?", batch_id)
        elif ending is Ending.NODE_FAILURE:
            with self._unsupervised():
                self._kill(batch_id)
                self._ask("UPDATE jobs SET boot = 'the one before' WHERE id = ?", batch_id)
        else:
            raise NotImplementedError(ending)

    def requeue(self, batch_id: str) -> None:
        """Make a job as new behind everybody's back."""
        with self._unsupervised():
            self._kill(batch_id)
            self._ask(_AS_NEW, batch_id)

    def preempt(self, batch_id: str) -> None:
        """Let a job end on a TERM, and make it as new behind everybody's back."""
        with self._unsupervised():
            self._kill(batch_id, signal.SIGTERM)
            wait_for(lambda: not self._processes(batch_id), "the end of the job")
            self._ask(_AS_NEW, batch_id)

    def hold(self, batch_id: str) -> None:
        """Hold a waiting job."""
        self._ask("UPDATE jobs SET state = 'HELD' WHERE id = ? AND state = 'QUEUED'", batch_id)

    def release(self, batch_id: str) -> None:
        """Release a held one."""
        self._ask("UPDATE jobs SET state = 'QUEUED' WHERE id = ? AND state = 'HELD'", batch_id)
        self._kick()

    def forget(self, batch_id: str) -> None:
        """Delete its row; the supervisor watches its process on."""
        self._orphans += self._ask(
            "SELECT pid, pid_start FROM jobs WHERE id = ? AND state = 'RUNNING'", batch_id
        )
        self._ask("DELETE FROM jobs WHERE id = ?", batch_id)

    def lose(self, batch_id: str) -> None:
        """Delete the row of a waiting job, which no supervisor is just about to start."""
        with self._unsupervised():
            self.forget(batch_id)

    def give_away(self, batch_id: str) -> None:
        """Insert another user's job under the id, which really runs."""
        script = self._root / "stranger.sh"
        script.write_text("sleep 600\n")
        request = f'{{"script": "{script}", "directory": "{self._root}", "environment": {{}}}}'
        row = "INSERT INTO jobs (id, tag, group_tag, state, slots, limit_s, request, queued) "
        with self._unsupervised():
            self._ask(f"{row} VALUES (?, 'stranger', 'stranger', 'QUEUED', 1, 3600, ?, 1)", batch_id, request)

    def stranger_is_alive(self, batch_id: str) -> bool:
        """Tell whether the stranger waits or runs."""
        rows = self._ask("SELECT state FROM jobs WHERE id = ? AND tag = 'stranger'", batch_id)
        return rows in ([("QUEUED",)], [("RUNNING",)])

    # --------------------------------------------------------------------------- spoiling

    @contextlib.contextmanager
    def failing(self, *commands: Command, times: int | None = None) -> Iterator[None]:
        """Take the table of jobs away, whatever is asked."""
        if times is not None:
            raise NotImplementedError("a table is away as long as it is")
        self._ask("ALTER TABLE jobs RENAME TO jobs_away")
        try:
            yield
        finally:
            self._ask("ALTER TABLE jobs_away RENAME TO jobs")

    def without_accounting(self) -> AbstractContextManager[None]:
        """Do nothing: there never is any."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def unlisted(self, batch_id: str) -> Iterator[None]:
        """Let it go by another name meanwhile."""
        self._ask("UPDATE jobs SET tag = '~' || tag, group_tag = '~' || group_tag WHERE id = ?", batch_id)
        try:
            yield
        finally:
            self._ask(
                "UPDATE jobs SET tag = ltrim(tag, '~'), group_tag = ltrim(group_tag, '~') WHERE id = ?",
                batch_id,
            )

    @contextlib.contextmanager
    def spoil_submit(self, fault: SubmitFault) -> Iterator[None]:
        """Make every job too large for this host once it is accepted."""
        if fault is not SubmitFault.NEVER_RUNS:
            raise NotImplementedError(fault)
        self._ask(_TOO_LARGE)
        try:
            yield
        finally:
            self._ask("DROP TRIGGER too_large")

    # ---------------------------------------------------------------------------- beneath

    def _ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._spool.rows(query, *values)

    def _kick(self) -> None:
        """Have a supervisor look at what was written."""
        ring(bells(self._spool.place))
        self._spool.driver.observe(references=[])

    @contextlib.contextmanager
    def _unsupervised(self) -> Iterator[None]:
        """Act while no supervisor lives; the next one finds what it finds."""
        with open(lock_file(self._spool.place), "a") as lock:
            wait_for(lambda: self._alone(lock.fileno()), "the supervisor's lock")
            yield
        self._kick()

    def _alone(self, lock: int) -> bool:
        """Kill the supervisor that lives, and tell whether its lock is ours."""
        if (pid := self._spool.supervisor()) is not None:
            os.kill(pid, signal.SIGKILL)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _kill(self, batch_id: str, number: int = signal.SIGKILL) -> None:
        for pid in self._processes(batch_id):
            os.killpg(pid, number)

    def _processes(self, batch_id: str) -> list[int]:
        """Return the process id of a job's script while it lives."""
        rows = self._ask("SELECT pid, pid_start FROM jobs WHERE id = ? AND state = 'RUNNING'", batch_id)
        return [pid for pid, start in rows if process_start(pid) == start]
