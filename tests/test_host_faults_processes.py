"""Signals, terminals, limits and leftovers: what a host does to the processes of a site."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import DEADLINE_S, Live, wait_for
from sites import Site, make_site, stop

from edgecore.models import Application
from edgecore.models import JobState as S
from edgecore.processes import carrying, process_start
from edgecore.workplace import programs_of

pytestmark = pytest.mark.slow


@pytest.fixture
def live(tmp_path: Path) -> Live:
    made = Live(tmp_path)
    made.add_shell_application("plain", "sleep 0.2")
    return made


# ---------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_service_finish_what_was_begun_and_end_in_good_order(
    live: Live, number: signal.Signals
) -> None:
    with live.service("-m", "edgecore", "run", str(live.file)) as service:
        live.edgecore("submit", live.write(job_id="one", application="plain"))
        service.send_signal(number)
        assert 0 == service.wait(DEADLINE_S)
        assert f"{number.name}: finishing what was begun; once more to stop at once" in log(live)
    assert "Traceback" not in log(live)
    with live.service("-m", "edgecore", "run", str(live.file)):
        wait_for(lambda: finished(live, "one"), "the job's end")


def test_a_second_signal_ends_the_service_at_once_and_nothing_is_lost(live: Live) -> None:
    live.add_shell_application("sleeper", "exec sleep 600")
    slow = live.base / "slow.sh"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    entry = live.base / "slow.toml"
    entry.write_text(f'name = "slow"\nexecutable = "/bin/true"\npreprocess = "{slow}"\n')
    live.edgecore("apps", "add", str(entry))
    with live.service("-m", "edgecore", "run", str(live.file)) as service:
        live.edgecore("submit", live.write(job_id="one", application="slow"))
        wait_for(lambda: '"STAGED_IN"' in live.edgecore("jobs", "--json"), "preprocessing")
        service.send_signal(signal.SIGSTOP)  # so that both come while it is at work
        service.send_signal(signal.SIGTERM)
        service.send_signal(signal.SIGINT)
        service.send_signal(signal.SIGCONT)
        assert service.wait(DEADLINE_S) in (-signal.SIGINT, -signal.SIGTERM)
    assert "Traceback" not in log(live)
    slow.write_text("#!/bin/sh\nexit 0\n")
    with live.service("-m", "edgecore", "run", str(live.file)):
        wait_for(lambda: finished(live, "one"), "the job's end")


def test_under_nohup_a_service_outlives_its_terminal(live: Live) -> None:
    ignoring = "import signal, runpy, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    ignoring += f"sys.argv = ['edgecore', 'run', {str(live.file)!r}]; runpy.run_module('edgecore', run_name='__main__')"
    with live.service("-c", ignoring) as service:
        service.send_signal(signal.SIGHUP)
        live.edgecore("submit", live.write(job_id="one", application="plain"), "--wait")
        assert service.poll() is None


def test_a_service_whose_terminal_is_closed_drains_and_loses_nothing(live: Live) -> None:
    master, slave = pty.openpty()
    service = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, str(live.file)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        seen = b""
        while b"works" not in seen:
            seen += os.read(master, 65536)
        live.edgecore("submit", live.write(job_id="one", application="plain"))
        os.close(master)
        assert 0 == service.wait(DEADLINE_S)
    finally:
        service.kill()
        service.wait()
        live.end_batch_system()
    with live.service("-m", "edgecore", "run", str(live.file)):
        wait_for(lambda: finished(live, "one"), "the job's end")


IN_A_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv = ["edgecore", "run", sys.argv[1]]
runpy.run_module("edgecore", run_name="__main__")
"""


def log(live: Live) -> str:
    return (live.base / "service.log").read_text()


def finished(live: Live, job_id: str) -> bool:
    jobs = json.loads(live.edgecore("jobs", "--json"))
    return any(job["job_id"] == job_id and job["state"] == "JOB_FINISHED" for job in jobs)


@pytest.mark.parametrize(
    "command",
    [
        ("submit", "JOB", "--wait"),
        ("cancel", "held", "--wait"),
        ("jobs", "--watch"),
        ("doctor", "SITE"),
    ],
    ids=lambda command: str(command[0]),
)
def test_control_c_ends_a_command_with_130_and_no_traceback(live: Live, command: tuple[str, ...]) -> None:
    live.keep(S.RUNNING, job_id="held")
    named = {"JOB": live.write(job_id="held"), "SITE": str(live.file)}
    arguments = [named.get(word, word) for word in command]
    code = ""
    if command[0] == "doctor":  # which is soon done: the signal comes where it has just begun
        code = "import edgecore.doctor as d, os, signal; d.diagnose = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT); "
        code += "import edgecore.cli.doctor as e; e.diagnose = d.diagnose; "
    code += f"import sys; sys.argv = {['edgecore', *arguments]!r}; from edgecore.cli import main; main()"
    process = live.start("-c", code)
    assert process.stderr is not None
    if command[0] != "doctor":
        process.stderr.readline()  # it has begun, and waits
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert (130, False) == (process.returncode, "Traceback" in err), err


# ------------------------------------------------------------------------- odd surroundings


@pytest.mark.parametrize("umask", ["0777", "0", "022"])
def test_a_service_works_under_any_umask_without_a_home_and_where_its_directory_was_removed(
    live: Live, umask: str, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        f"import os, sys; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); os.umask(0o{umask}); "
        "[os.environ.pop(name, None) for name in ('HOME', 'USER', 'LOGNAME')]; "
        f"sys.argv = ['edgecore', 'run', {str(live.file)!r}]; from edgecore.cli import main; main()"
    )
    with live.service("-c", code):
        live.edgecore("submit", live.write(job_id="one", application="plain"), "--wait")
    assert "Traceback" not in log(live)
    if umask != "022":
        assert "the umask was" in log(live)
    (out,) = live.base.glob("jobs/*/*/data")
    assert 0o700 == out.stat().st_mode & 0o700
    assert not out.stat().st_mode & 0o002


def test_a_command_in_a_directory_that_was_removed_says_so_in_words(live: Live, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    for arguments in (["jobs"], ["jobs", "--site", str(live.file)], ["run", "site.toml"]):
        code = (
            f"import os, sys; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); os.environ.pop('EDGECORE_SITE', None); "
            f"sys.argv = {['edgecore', *arguments]!r}; from edgecore.cli import main; main()"
        )
        process = live.start("-c", code)
        _, err = process.communicate(timeout=DEADLINE_S)
        assert "Traceback" not in err, err
        assert (0 if len(arguments) == 3 else 2) == process.returncode, err
        gone.mkdir()


def test_a_service_that_runs_out_of_open_files_says_so_and_goes_on_when_it_may_open_more(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path / "site")
    with site.service() as service:
        wait_for(lambda: "works" in site.log, "the service")
        site.send(site.job(name="before"))
        site.wait_settled(1)
        used = len(os.listdir(f"/proc/{service.pid}/fd"))
        _, most = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (used, most))
        site.send(site.job(name="meanwhile"))
        wait_for(lambda: "ulimit -n" in site.log, "the advice")
        assert service.poll() is None
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (most, most))
        jobs = site.wait_settled(2)
    assert {S.JOB_FINISHED} == {job.state for job in jobs}
    assert dict.fromkeys((job.id for job in jobs), 1) == site.starts()


# ---------------------------------------------------------------------------------- leftovers


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path / "site")
    yield made
    for pid in carrying(programs_of(made.config.store)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_program_that_a_killed_service_left_running_is_ended_before_it_runs_again(site: Site) -> None:
    """It notes when it begins and when it ends: never does one begin while another lives."""
    notes, free = site.base / "notes", site.base / "free"
    program = site.base / "slow.sh"
    program.write_text(
        f'#!/bin/sh\n(while :; do sleep 0.1; done) &\necho "begin $$ $!" >>"{notes}"\n'
        f'while [ ! -e "{free}" ]; do sleep 0.05; done\nkill $!\necho "end $$ 0" >>"{notes}"\n'
    )
    program.chmod(0o755)
    site.add(Application(name="prepared", executable="/bin/true", preprocess=str(program)))
    service = site.start()
    site.send(site.job(application="prepared"))
    wait_for(lambda: notes.exists() and notes.read_text(), "the program's beginning")
    _, first, child = notes.read_text().split()
    service.send_signal(signal.SIGKILL)
    service.wait()
    assert process_start(int(first)) is not None  # it has outlived its service
    service = site.start()
    try:
        wait_for(lambda: len(notes.read_text().splitlines()) == 2, "its second beginning")
        assert (None, None) == (process_start(int(first)), process_start(int(child)))
        free.touch()
        (job,) = site.wait_settled(1)
    finally:
        stop(service)
    assert S.JOB_FINISHED is job.state
    assert ["begin", "begin", "end"] == [line.split()[0] for line in notes.read_text().splitlines()]
    assert "processes of a former service's programs were still there and have been ended" in site.log
