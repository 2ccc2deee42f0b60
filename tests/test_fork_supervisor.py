"""Kill the supervisor of the fork batch system, starve it, deceive it: every job keeps its one true end."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fork_helpers import DEADLINE_S, Spool, group_members, wait_for
from threads import first_thread_has_ended, outlived

from edgecore.builtin.fork_spool import log, supervised
from edgecore.models import (
    NativeState,
)
from edgecore.processes import process_start, process_stat


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path)
    yield made
    made.stop()


@pytest.mark.slow
def test_a_killed_supervisor_is_replaced_and_the_next_one_sees_the_end(spool: Spool) -> None:
    (job,) = spool.submit("sleep 100 & while [ ! -e @DIR@/go ]; do sleep 0.02; done; exit 5\n")
    spool.wait_state(NativeState.RUNNING, [job])
    pid = spool.pid(job)
    spool.kill_supervisor()
    assert NativeState.RUNNING is spool.look(job).state
    assert supervised(spool.place)
    assert pid == spool.pid(job)
    (job.directory / "go").touch()
    (seen,) = spool.wait_ended([job])
    assert (seen.exit_code, seen.signal) == (None, None)
    assert "the exit code is not known" in seen.reason
    wait_for(lambda: not group_members(pid), "the end of what the adopted job left behind")


@pytest.mark.slow
def test_a_job_that_ended_while_no_supervisor_lived_has_ended(spool: Spool) -> None:
    (job,) = spool.submit("while [ ! -e @DIR@/go ]; do sleep 0.02; done; touch @DIR@/over\n")
    spool.wait_state(NativeState.RUNNING, [job])
    pid, start = spool.pid(job), process_start(spool.pid(job))
    spool.kill_supervisor()
    (job.directory / "go").touch()
    wait_for(lambda: process_start(pid) != start, "the job's end")
    (seen,) = spool.wait_ended([job])
    assert seen.exit_code is None
    assert (job.directory / "over").exists()


@pytest.mark.slow
def test_an_adopted_job_runs_until_its_last_thread_has_ended(spool: Spool) -> None:
    go = spool.root / "go"
    (job,) = spool.submit(f"exec {shlex.join(outlived(go))}\n")
    spool.wait_state(NativeState.RUNNING, [job])
    pid = spool.pid(job)
    wait_for(lambda: first_thread_has_ended(pid), "the end of the first thread")
    spool.kill_supervisor()
    (other,) = spool.submit("exit 0\n", prefix="other")
    spool.wait_ended([other])  # the next supervisor has had every occasion
    assert NativeState.RUNNING is spool.look(job).state
    go.touch()
    spool.wait_ended([job])


@pytest.mark.slow
def test_what_an_adopted_job_left_behind_is_ended_though_its_first_thread_has_ended(spool: Spool) -> None:
    go = spool.root / "go"
    rest = shlex.join(outlived(spool.root / "never"))
    (job,) = spool.submit(f"{rest} & echo $! >{spool.root}/rest\nwhile [ ! -e {go} ]; do sleep 0.02; done\n")
    spool.wait_state(NativeState.RUNNING, [job])
    wait_for(lambda: (spool.root / "rest").exists() and (spool.root / "rest").read_text(), "the rest")
    pid = int((spool.root / "rest").read_text())
    wait_for(lambda: first_thread_has_ended(pid), "the end of its first thread")
    spool.kill_supervisor()
    go.touch()
    spool.wait_ended([job])
    wait_for(lambda: process_start(pid) is None, "the end of what the adopted job left behind")


@pytest.mark.slow
def test_the_next_supervisor_enforces_walltime_and_cancel_of_adopted_jobs(spool: Spool) -> None:
    spool.driver.close()
    spool.open(minute_s=0.05)
    stubborn = "trap '' TERM; touch @DIR@/begun; while :; do sleep 0.05; done\n"
    (limited,) = spool.submit(stubborn, prefix="limited", wall_time_minutes=20)
    (unwanted,) = spool.submit(stubborn, prefix="unwanted", wall_time_minutes=100_000)
    jobs = [limited, unwanted]
    wait_for(lambda: all((job.directory / "begun").exists() for job in jobs), "both jobs at work")
    spool.kill_supervisor()
    spool.driver.cancel(references=[unwanted])
    assert [seen.reason for seen in spool.wait_ended(jobs)] == ["time limit", "cancelled"]
    wait_for(lambda: not any(group_members(spool.pid(job)) for job in jobs), "the ends of both groups")


@pytest.mark.slow
@pytest.mark.parametrize("boot", ["boot", "'another'"], ids=["same boot", "other boot"])
def test_a_process_that_only_has_the_number_of_a_job_is_never_signalled(spool: Spool, boot: str) -> None:
    (job,) = spool.submit("sleep 100\n")
    spool.wait_state(NativeState.RUNNING, [job])
    spool.kill_supervisor()
    os.killpg(spool.pid(job), signal.SIGKILL)
    with subprocess.Popen(["/bin/sleep", "100"], start_new_session=True) as stranger:
        try:
            start = process_start(stranger.pid)
            assert start is not None
            other_start = start - (boot == "boot")  # the same number, at another time: of this boot or of all
            spool.rows(
                f"UPDATE jobs SET stop = 'cancelled', boot = {boot}, pid = ?, pid_start = ?",
                stranger.pid,
                other_start,
            )
            (seen,) = spool.wait_ended([job])
            assert (boot != "boot") == ("this host restarted" in seen.reason)
            spool.driver.cancel(references=[job])
            spool.wait_ended(spool.submit("exit 0\n", prefix="other"))  # the supervisor had every occasion
            assert stranger.poll() is None
        finally:
            stranger.kill()


SABOTAGED_SUPERVISOR = """
import os, sys
from pathlib import Path
from edgecore.builtin import fork_supervisor
from edgecore.builtin.fork_spool import lock_file
def die(*_, **__): os.kill(os.getpid(), 9)
commit, spawn, waste = fork_supervisor.Supervisor._commit, os.posix_spawn, [1, 2]
def cancel_first(self, *arguments):
    self._database.execute("UPDATE jobs SET state = 'ENDED', reason = 'cancelled' WHERE state = 'QUEUED'")
    return commit(self, *arguments)
def no_more_processes(*arguments, **options):
    if waste: raise BlockingIOError(11, f"no more processes, {waste.pop()}")
    return spawn(*arguments, **options)
flock = fork_supervisor.fcntl.flock
def release_before_unlocking(lock, how):
    if how == fork_supervisor.fcntl.LOCK_UN:
        supervisor._database.execute("UPDATE jobs SET state = 'QUEUED' WHERE state = 'HELD'")
    flock(lock, how)
SABOTAGE
place = Path(sys.argv[1])
lock = os.open(lock_file(place), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
assert fork_supervisor._take(lock)
supervisor = fork_supervisor.Supervisor(place, lock)
supervisor.recover()
supervisor.run()
"""


@contextlib.contextmanager
def sabotaged(spool: Spool, sabotage: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a supervisor with a fault built in."""
    program = SABOTAGED_SUPERVISOR.replace("SABOTAGE", sabotage)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(spool.place)],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "ran", "exit_code"),
    [
        ("fork_supervisor.Supervisor._commit = die", "ran\n", 0),
        ("fork_supervisor._shut = die", "", None),
    ],
    ids=["before the row says running", "before the gate is opened"],
)
def test_a_supervisor_killed_while_it_starts_a_job_never_makes_it_run_twice(
    spool: Spool, sabotage: str, ran: str, exit_code: int | None
) -> None:
    (spool.root / "ran").touch()
    with spool.unattended():
        (job,) = spool.submit(f"echo ran >>{spool.root}/ran\n")
    with sabotaged(spool, sabotage) as process:
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
    (seen,) = spool.wait_ended([job])
    assert seen.exit_code == exit_code
    assert (spool.root / "ran").read_text() == ran


@pytest.mark.slow
def test_a_job_cancelled_while_it_is_being_started_never_runs(tmp_path: Path) -> None:
    spool = Spool(tmp_path, {"idle_s": 0})
    with spool.unattended():
        (job,) = spool.submit(f"touch {spool.root}/ran\n")
    with sabotaged(spool, "fork_supervisor.Supervisor._commit = cancel_first") as process:
        assert process.wait(DEADLINE_S) == 0  # idle: nothing is left at work
    assert spool.look(job).reason == "cancelled"
    assert not (spool.root / "ran").exists()
    spool.stop()


@pytest.mark.slow
def test_a_job_submitted_in_the_moment_in_which_the_supervisor_retires_is_not_forgotten(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path, {"idle_s": 0})
    with spool.unattended():
        (job,) = spool.submit("exit 6\n")
        spool.driver.hold(references=[job])
    with sabotaged(spool, "fork_supervisor.fcntl.flock = release_before_unlocking") as process:
        assert process.wait(DEADLINE_S) == 0
    assert spool.rows("SELECT state, exit_code FROM jobs") == [("ENDED", 6)]
    spool.stop()


@pytest.mark.slow
def test_a_job_waits_while_this_host_has_no_more_processes(tmp_path: Path) -> None:
    spool = Spool(tmp_path, {"idle_s": 0})
    with spool.unattended():
        (job,) = spool.submit("exit 4\n")
    with sabotaged(spool, "os.posix_spawn = no_more_processes") as process:
        assert process.wait(DEADLINE_S) == 0
    assert spool.look(job).exit_code == 4
    spool.stop()


@pytest.mark.slow
def test_the_end_of_an_adopted_job_is_seen_where_the_kernel_has_no_pidfd(spool: Spool) -> None:
    (job,) = spool.submit("while [ ! -e @DIR@/go ]; do sleep 0.02; done\n")
    spool.wait_state(NativeState.RUNNING, [job])
    spool.kill_supervisor()
    with sabotaged(spool, "del os.pidfd_open"):
        wait_for(lambda: supervised(spool.place), "the next supervisor")
        assert spool.look(job).state is NativeState.RUNNING
        (job.directory / "go").touch()
        spool.wait_ended([job])


@pytest.mark.slow
def test_killing_supervisors_again_and_again_runs_no_job_twice_and_forgets_none(spool: Spool) -> None:
    jobs = spool.submit("echo ran >>@DIR@/ran; sleep 0.01\n", count=60)
    for share in range(5, 60, 5):
        wait_for(
            lambda share=share: len(list((spool.root / "run").glob("*/ran"))) >= share,  # type: ignore[misc]
            f"{share} jobs begun",
        )
        if spool.supervisor() is not None:
            spool.kill_supervisor()
        spool.driver.observe(references=jobs[:1])
    for job, end in zip(jobs, spool.wait_ended(jobs), strict=True):
        ran = job.directory / "ran"
        assert ran.read_text().split() == ["ran"] if ran.exists() else end.exit_code is None


@pytest.mark.slow
def test_an_end_is_kept_while_the_database_cannot_be_written(spool: Spool) -> None:
    (job,) = spool.submit("while [ ! -e @DIR@/go ]; do sleep 0.02; done; exit 5\n")
    spool.wait_state(NativeState.RUNNING, [job])
    spool.rows("ALTER TABLE jobs RENAME TO away")
    try:
        (job.directory / "go").touch()
        wait_for(lambda: "trying again" in log(spool.place).read_text(), "the supervisor's trouble")
    finally:
        spool.rows("ALTER TABLE away RENAME TO jobs")
    (seen,) = spool.wait_ended([job])
    assert seen.exit_code == 5


@pytest.mark.slow
def test_the_supervisor_goes_away_when_it_is_idle_and_forgets_no_job_in_going(spool: Spool) -> None:
    spool.driver.close()
    spool.open(idle_s=0)
    for number in range(15):
        (job,) = spool.submit("exit 0\n", prefix=f"a{number}x")
        # No observation here, which would start a supervisor: the submission alone must do.
        ended = partial(spool.rows, "SELECT 1 FROM jobs WHERE state = 'ENDED' AND id = ?", job.batch_id)
        wait_for(ended, "the job's end")
    wait_for(lambda: not supervised(spool.place), "the supervisor to go")
    wait_for(lambda: not list((spool.place / "bells").iterdir()), "its bell to be gone")


@pytest.mark.slow
def test_a_supervisor_that_waits_costs_nothing(spool: Spool) -> None:
    (job,) = spool.submit("sleep 100\n")
    spool.wait_state(NativeState.RUNNING, [job])
    pid = spool.supervisor()
    assert pid is not None
    before = process_stat(pid)
    threading.Event().wait(2.0)  # the span of the measurement
    after = process_stat(pid)
    assert before is not None
    assert after is not None
    ticks = sum(map(int, after[11:13])) - sum(map(int, before[11:13]))
    assert ticks <= 1


@pytest.mark.slow
def test_an_ended_job_stays_listed_for_the_configured_days(spool: Spool) -> None:
    old, recent = spool.submit("exit 0\n", count=2)
    spool.wait_ended([old, recent])
    spool.kill_supervisor()
    spool.rows("UPDATE jobs SET ended = ended - 15 * 86400 * 1000000 WHERE id = ?", old.batch_id)
    assert {old.tag, recent.tag} == set(spool.driver.observe(references=[old, recent]))
    spool.wait_ended(spool.submit("exit 0\n", prefix="later"))
    wait_for(lambda: set(spool.driver.observe(references=[old, recent])) == {recent.tag}, "the purge")
