"""Start, watch and end the jobs of one spool, apart from the service that submitted them.

The supervisor is the daemon of the small batch system in `edgecore.builtin.fork`: one process per
spool, kept single by a file lock. It lives on when the service dies, and goes away by itself when
there is nothing to do. Everything it must remember is in the spool's database, so one that is
killed is replaced by the next, which adopts the running jobs by process id *and* start time.

A job is spawned behind a gate: a shell that waits for one line on its standard input before it
becomes the job. The line is written after the row says RUNNING, durably. So a supervisor that dies
at any instruction leaves either a job that waits in the queue and never ran, or one that is on
record with its process: never one that could run twice.

Only the standard library is imported here, and of edgecore only modules that do the same: the
supervisor is started with ``python -I -S`` and shall cost next to nothing. It needs Linux with /proc and a C library whose
`posix_spawn` can make a session (glibc 2.26); with pidfd_open it learns at once of the end of an
adopted job, without by a look every second.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import select
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from edgecore.builtin.fork_spool import (
    bells,
    connect,
    has_work,
    lock_file,
    log,
    transaction,
)
from edgecore.gates import spawn_gated
from edgecore.processes import carrying, process_start, process_stat
from edgecore.wakeup import Bell

__all__ = ["main"]

_GATE: Final = 'read -r EDGECORE_FORK_GATE && exec /bin/sh "$0" </dev/null'
"""What a job is before it may start; the end of file instead of a line means that it may not."""

_TRY_LATER: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Failures to start that say something about this host and nothing about the job."""

_STARTS_AT_ONCE: Final = 32
_RETRY_S: Final = 1.0
_LOOK_S: Final = 60.0
_PURGE_EVERY_S: Final = 3600.0
_LOG_LIMIT_BYTES: Final = 1_000_000


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _since_boot_s() -> float:
    # The clock that start times in /proc are given in; a correction of the date does not move it.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _now_us() -> int:
    return time.time_ns() // 1000


def _kill_group(leader: int, number: signal.Signals) -> None:
    # PermissionError: all that is left changed its user, and is no longer ours to end.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _kill_marked(leader: int, marks: tuple[bytes, ...]) -> None:
    """Kill what is left of a group whose leader is gone: members that carry all *marks*.

    The number of the group alone proves nothing once its leader was reaped by somebody else.
    """
    for pid in carrying(marks):
        stat = process_stat(pid)
        if stat is not None and int(stat[2]) == leader:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


class _End(NamedTuple):
    """How a job ended."""

    exit_code: int | None
    signal: int | None
    reason: str


class _Running:
    """A job that runs: ours as a child, or adopted from a supervisor that died."""

    def __init__(self, job: int, pid: int, start: int, slots: int, limit_s: float) -> None:
        self.job = job
        self.pid = pid
        self.start = start
        self.slots = slots
        self.deadline = start / os.sysconf("SC_CLK_TCK") + limit_s
        self.own = True
        self.stop = ""  # why TERM was sent
        self.kill_at: float | None = None  # when KILL follows; None until TERM was sent
        self.pidfd: int | None = None

    def adopt(self) -> None:
        """Watch it as somebody else's child."""
        self.own = False
        with contextlib.suppress(AttributeError, OSError):  # an old kernel, or it is gone already
            self.pidfd = os.pidfd_open(self.pid)

    def ended(self) -> _End | None:
        """Tell how it ended, without reaping it; None while it runs."""
        if not self.own:
            unseen = "the exit code is not known: its supervisor died before it"
            return None if process_start(self.pid) == self.start else _End(None, None, self.stop or unseen)
        result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return _End(result.si_status, None, self.stop)
        return _End(None, result.si_status, self.stop or f"killed by signal {result.si_status}")

    def send(self, number: signal.Signals) -> None:
        """Signal the whole process group, if it still is what we started."""
        if self.own or process_start(self.pid) == self.start:
            _kill_group(self.pid, number)

    def forget(self) -> None:
        """Reap it; from now on its process id means nothing."""
        if self.pidfd is not None:
            os.close(self.pidfd)
        if self.own:
            os.waitpid(self.pid, 0)


class _WatchedBell(Bell):
    """A bell that can be watched together with other files."""

    def fileno(self) -> int:
        return self._fd


class Supervisor:
    """Hold the spool's lock, and turn its queue into processes."""

    def __init__(self, spool: Path, lock: int) -> None:
        self._spool = spool
        self._lock = lock
        self._boot = _boot()
        self._running: dict[int, _Running] = {}
        self._again_s = _LOOK_S
        self._purged_s = -math.inf
        self._database = connect(spool, busy_timeout_s=10.0)
        self._bell = _WatchedBell(bells(spool))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)

    def recover(self) -> None:
        """Adopt what runs, and mark what ended or was lost with the host."""
        rows = self._database.execute(
            "SELECT id, pid, pid_start, slots, limit_s, boot, stop, kill_at FROM jobs WHERE state = 'RUNNING'"
        ).fetchall()
        lost = []
        for job, pid, start, slots, limit_s, boot, stop, kill_at in rows:
            if boot != self._boot:
                lost.append((job, _End(None, None, "node failure: this host restarted")))
                continue
            running = _Running(job, pid, start, slots, limit_s)
            running.adopt()
            running.kill_at = kill_at
            running.stop = stop if kill_at is not None else ""
            self._running[job] = running
        with transaction(self._database):
            self._record(lost)

    def run(self) -> None:
        """Work until there has been nothing to do for the spool's idle time."""
        idle_since = _since_boot_s()
        while True:
            try:
                settings = self._settings()
                self._turn(settings)
                busy = has_work(self._database)
            except sqlite3.OperationalError as error:  # disk full, locked: jobs go on meanwhile
                _say(f"the spool's database cannot be used, trying again: {error}")
                self._bell.wait(_RETRY_S)  # not on the jobs: one that has ended would not let us sleep
                continue
            now = _since_boot_s()
            idle_since = now if busy else idle_since
            left = idle_since + settings["idle_s"] - now
            if not busy and left <= 0:
                if self._retire():
                    return
                idle_since = now
                continue
            self._wait(self._next_s(now) if busy else left)

    def _settings(self) -> dict[str, float]:
        return dict(self._database.execute("SELECT name, value FROM settings").fetchall())

    def _turn(self, settings: dict[str, float]) -> None:
        """Do once what is due: note ends, end what must end, start what fits."""
        self._purge(settings["keep_days"])
        ends = [(running.job, end) for running in self._running.values() if (end := running.ended())]
        for job, _ in ends:
            self._sweep(self._running[job])
        over = {job for job, _ in ends}
        stops = self._stop_due(settings["kill_grace_s"], over)
        taken = sum(running.slots for running in self._running.values() if running.job not in over)
        started, failed, gates = self._spawn(self._choose(round(settings["slots"]) - taken))
        try:
            kept = self._commit(ends, stops, started, failed) if ends or stops or started or failed else []
        except BaseException:
            _shut(started, gates, keep=())
            raise
        for job in over:
            self._running.pop(job).forget()
        _shut(started, gates, keep=kept)
        self._running.update((job, started[job]) for job in kept)

    def _commit(
        self,
        ends: list[tuple[int, _End]],
        stops: list[_Running],
        started: dict[int, _Running],
        failed: list[tuple[int, _End]],
    ) -> list[int]:
        """Write one turn; return which of the started jobs were still ours to start."""
        kept = []
        now = _now_us()
        with transaction(self._database):
            self._record(ends)
            for running in stops:
                self._database.execute(
                    "UPDATE jobs SET stop = ?, kill_at = ? WHERE id = ?",
                    (running.stop, running.kill_at, running.job),
                )
            for job, running in started.items():
                cursor = self._database.execute(
                    "UPDATE jobs SET state = 'RUNNING', started = ?, pid = ?, pid_start = ?, boot = ? "
                    "WHERE id = ? AND state = 'QUEUED'",
                    (now, running.pid, running.start, self._boot, job),
                )
                if cursor.rowcount == 1:  # else it was cancelled or held while we prepared it
                    kept.append(job)
            self._record(failed)
        return kept

    def _record(self, ends: list[tuple[int, _End]]) -> None:
        now = _now_us()
        self._database.executemany(
            "UPDATE jobs SET state = 'ENDED', ended = ?, exit_code = ?, signal = ?, reason = ? "
            "WHERE id = ? AND state IN ('RUNNING', 'QUEUED')",
            [(now, end.exit_code, end.signal, end.reason, job) for job, end in ends],
        )

    def _sweep(self, running: _Running) -> None:
        """Kill what a job that ended left behind in its process group."""
        if running.own:  # it is not reaped yet, so the number of its group is still its own
            _kill_group(running.pid, signal.SIGKILL)
        else:
            _kill_marked(running.pid, tuple(f"{k}={v}".encode() for k, v in self._marks(running.job).items()))

    def _marks(self, job: int) -> dict[str, str]:
        """Return the variables by which a job knows itself, and we know its processes."""
        return {"EDGECORE_FORK_ID": str(job), "EDGECORE_FORK_SPOOL": str(self._spool)}

    def _stop_due(self, grace_s: float, over: set[int]) -> list[_Running]:
        """Send TERM or KILL where it is due; return the jobs whose rows must say so."""
        asked = self._database.execute("SELECT id, stop FROM jobs WHERE state = 'RUNNING' AND stop <> ''")
        wanted: dict[int, str] = dict(asked.fetchall())
        now = _since_boot_s()
        changed = []
        for job, running in self._running.items():
            if job in over:
                continue
            if running.kill_at is None:
                running.stop = wanted.get(job) or ("time limit" if now >= running.deadline else "")
                if not running.stop:
                    continue
                running.send(signal.SIGTERM)
            elif now >= running.kill_at:
                running.send(signal.SIGKILL)
            else:
                continue
            running.kill_at = now + grace_s  # after KILL: look again, it may hang in the kernel
            changed.append(running)
        return changed

    def _choose(self, free: int) -> list[tuple[int, int, float, str]]:
        """Return the oldest waiting jobs that fit into *free* slots (first fit)."""
        self._again_s = _LOOK_S
        chosen: list[tuple[int, int, float, str]] = []
        rows = self._database.execute(
            "SELECT id, slots, limit_s, request FROM jobs WHERE state = 'QUEUED' AND slots <= ? ORDER BY id",
            (free,),
        )
        while free > 0 and (row := rows.fetchone()):
            if len(chosen) == _STARTS_AT_ONCE:  # give ends and stops their turn
                self._again_s = 0.0
                break
            if row[1] <= free:
                free -= row[1]
                chosen.append(row)
        rows.close()
        return chosen

    def _spawn(
        self, chosen: list[tuple[int, int, float, str]]
    ) -> tuple[dict[int, _Running], list[tuple[int, _End]], dict[int, int]]:
        """Spawn the chosen jobs, each behind its gate.

        Returns them, those that cannot be started at all, and the gates: job -> file descriptor.
        """
        started: dict[int, _Running] = {}
        failed: list[tuple[int, _End]] = []
        gates: dict[int, int] = {}
        for job, slots, limit_s, request in chosen:
            try:
                pid, gates[job] = self._spawn_one(job, json.loads(request))
            except (OSError, ValueError, KeyError) as error:
                if isinstance(error, OSError) and error.errno in _TRY_LATER:
                    self._again_s = _RETRY_S
                    break
                failed.append((job, _End(127, None, f"it could not be started: {error}")))
                self._again_s = 0.0  # its slots are free again
                continue
            stat = process_stat(pid)
            assert stat is not None  # a child stays until we reap it
            started[job] = _Running(job, pid, int(stat[19]), slots, limit_s)
        return started, failed, gates

    def _spawn_one(self, job: int, request: dict[str, object]) -> tuple[int, int]:
        """Spawn the gate of a job; return its process id and where to open it."""
        script, directory = str(request["script"]), str(request["directory"])
        given = request["environment"]
        assert isinstance(given, dict)
        with open(script, "rb"):  # a shell's own words and exit code for this differ from shell to shell
            pass
        return spawn_gated([_GATE, script], {**given, **self._marks(job)}, f"{directory}/batch.out")

    def _purge(self, keep_days: float) -> None:
        """Forget, now and then, what ended long ago."""
        now = _since_boot_s()
        if now < self._purged_s + _PURGE_EVERY_S:
            return
        limit = _now_us() - round(keep_days * 86_400e6)
        with transaction(self._database):
            self._database.execute("DELETE FROM jobs WHERE state = 'ENDED' AND ended < ?", (limit,))
        self._purged_s = now

    def _next_s(self, now: float) -> float:
        """Return after how many seconds something is due although nobody wakes us."""
        due = [now + self._again_s]
        for running in self._running.values():
            due.append(running.deadline if running.kill_at is None else running.kill_at)
            if not running.own and running.pidfd is None:
                due.append(now + _RETRY_S)
        return min(due) - now

    def _wait(self, timeout_s: float) -> None:
        """Sleep until a bell, the end of a job, or the time-out."""
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        for running in self._running.values():
            if running.pidfd is not None:
                poller.register(running.pidfd, select.POLLIN)
        poller.poll(max(0, math.ceil(timeout_s * 1000)))
        self._bell.wait(0)

    def _retire(self) -> bool:
        """Give up the lock; return False when work came meanwhile and nobody else took it."""
        # Who submits first commits the row, then looks at the lock; we do it the other way round.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        if has_work(self._database) and _take(self._lock):
            return False
        signal.set_wakeup_fd(-1)
        self._bell.close()
        self._database.close()
        return True


def _shut(started: dict[int, _Running], gates: dict[int, int], keep: list[int] | tuple[()]) -> None:
    """Open the gates of the jobs to *keep*, and let the others go without ever running."""
    for job, gate in gates.items():
        if job in keep:
            with contextlib.suppress(BrokenPipeError):  # killed at the gate; its end is seen as any other
                os.write(gate, b"\n")
        os.close(gate)
    for job, running in started.items():
        if job not in keep:
            running.forget()


def main(spool: str) -> None:
    """Become the supervisor of *spool*, in the background; return in the first process only.

    The first process ends when the supervisor works (or found another at work), with an exit
    code of 1 when it could not start; the log says why.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        if os.read(reading, 1):
            return
        sys.exit(f"the supervisor did not start; {log(Path(spool))} says why")
    os.setsid()
    if os.fork():
        os._exit(0)
    _detach(Path(spool), keep=writing)
    _supervise(Path(spool), ready=writing)


def _supervise(spool: Path, ready: int) -> None:
    lock = os.open(lock_file(spool), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _take(lock):
        os.write(ready, b"!")
        return
    supervisor = Supervisor(spool, lock)
    supervisor.recover()
    os.write(ready, b"!")
    os.close(ready)
    supervisor.run()


def _take(lock: int) -> bool:
    """Take the lock and leave word who holds it; tell whether it was free."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()} {process_start(os.getpid())}\n".encode(), 0)
    return True


def _detach(spool: Path, keep: int) -> None:
    """Leave nothing behind that ties us to who started us: directory, files, signals."""
    os.chdir("/")
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):  # the descriptor that listed them
                os.close(int(name))
    nothing = os.open("/dev/null", os.O_RDONLY)
    words = os.open(log(spool), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if os.fstat(words).st_size > _LOG_LIMIT_BYTES:
        os.ftruncate(words, 0)
    for fd, number in ((nothing, 0), (words, 1), (words, 2)):
        os.dup2(fd, number)
    os.close(nothing)
    os.close(words)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _say(words: str) -> None:
    """Write a line into the log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {words}\n")
    sys.stderr.flush()
