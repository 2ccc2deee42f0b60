"""Applications that misbehave on a real batch system: the end is told, nothing of them stays, and nobody swells."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define
from sites import Site, make_site, stop, wait_for

from edgecore.desk import Desk
from edgecore.models import Application, Job
from edgecore.models import JobState as S
from edgecore.processes import process_start

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGHUP, signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGXCPU)
"""Not SIGINT and SIGQUIT, which a shell has its background children ignore."""


@define(eq=False)
class World:
    """A site whose service runs."""

    site: Site
    service: subprocess.Popen[bytes]

    def add(self, name: str, text: str) -> None:
        """Register a program; it writes its process ids to the file ``$PIDS``."""
        program = self.site.base / f"{name}.sh"
        program.write_text(f'#!/bin/sh\nulimit -c 0\nPIDS="{self.pids(name)}"\n{text}\n')
        program.chmod(0o755)
        self.site.add(Application(name=name, executable=str(program)))

    def pids(self, name: str) -> Path:
        return self.site.base / f"{name}.pids"

    def send(self, name: str, **more: object) -> None:
        self.site.send(self.site.job(name=name, application=name, **more))

    def settled(self, name: str) -> Job:
        def is_settled() -> bool:
            job = self.site.named(name)
            return job is not None and job.state in (S.JOB_FINISHED, S.JOB_FAILED, S.JOB_CANCELLED)

        wait_for(is_settled, 40, self.site.diagnosis)
        job = self.site.named(name)
        assert job is not None
        return job

    def started(self, name: str, count: int = 1) -> list[int]:
        """Wait until a program has written so many process ids; answers them."""
        file = self.pids(name)
        wait_for(lambda: file.exists() and len(file.read_text().split()) >= count, 40, self.site.diagnosis)
        return [int(word) for word in file.read_text().split()]

    def gone(self, pids: list[int]) -> None:
        wait_for(lambda: all(process_start(pid) is None for pid in pids), 20, lambda: pids)

    def ask(self, command: str, name: str) -> None:
        job = self.site.named(name)
        assert job is not None
        Desk(self.site.config.store).request(command, job.id, asked_by="operator", now=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    site = make_site(tmp_path / "site", slots=8)
    text = site.file.read_text()
    quick = '"idle_s" = 3\n"kill_grace_s" = 0.5\n"minute_s" = 2.0\n'
    assert '"idle_s" = 3\n' in text
    site.file.write_text(text.replace('"idle_s" = 3\n', quick))
    service = site.start()
    world = World(site, service)
    try:
        yield world
    finally:
        stop(service)
        for file in site.base.glob("*.pids"):
            for word in file.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(word), signal.SIGKILL)


def test_a_death_by_each_signal_is_told_with_its_name_and_code(world: World) -> None:
    for number in SIGNALS:
        world.add(number.name, f"kill -{int(number)} $$; sleep 5")
        world.send(number.name)
    for number in SIGNALS:
        job = world.settled(number.name)
        assert job.attempt is not None
        assert (S.JOB_FAILED, 128 + number) == (job.state, job.attempt.exit_code)
        assert f"exit code {128 + number} (as of signal {number.name})" in job.message


def test_what_ignores_a_stop_is_killed_after_a_cancel_and_after_its_walltime(world: World) -> None:
    stubborn = "trap '' TERM INT HUP; echo $$ >>\"$PIDS\"; while :; do sleep 0.1; done"
    for name in ("cancelled", "overtime"):
        world.add(name, stubborn)
        world.send(name, wall_time_minutes=1 if name == "overtime" else 1000)
    pids = world.started("cancelled") + world.started("overtime")
    wait_for(lambda: (job := world.site.named("cancelled")) and job.state is S.RUNNING, 30)
    world.ask("cancel", "cancelled")
    assert S.JOB_CANCELLED is world.settled("cancelled").state
    assert "time limit" in world.settled("overtime").message
    world.gone(pids)


def test_children_are_gone_after_the_end_and_after_a_cancel(world: World) -> None:
    child = "(trap '' TERM; while :; do sleep 0.1; done) & echo $! >>\"$PIDS\"\n"
    world.add("ends", child + "exit 0")
    world.add("is-cancelled", child + "wait")
    world.send("ends")
    world.send("is-cancelled")
    pids = world.started("ends") + world.started("is-cancelled")
    wait_for(lambda: (job := world.site.named("is-cancelled")) and job.state is S.RUNNING, 30)
    world.ask("cancel", "is-cancelled")
    assert S.JOB_FINISHED is world.settled("ends").state
    assert S.JOB_CANCELLED is world.settled("is-cancelled").state
    world.gone(pids)


def test_closed_streams_a_daemon_and_a_disk_that_it_fills_itself_keep_no_job_from_ending(
    world: World,
) -> None:
    world.add("closes", "exec >&- 2>&- <&-; exit 3")
    daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); open(%r, 'a').write(f'{os.getpid()} '); time.sleep(60)"
    command = daemon % str(world.pids("daemon"))
    world.add("daemon", f'{sys.executable} -S -c "{command}"; exit 4')
    world.add(
        "greedy", "ulimit -f 100; head -c 10000000 /dev/zero >large; code=$?; [ $code -ne 0 ] && exit 5"
    )
    for name, code in (("closes", 3), ("daemon", 4), ("greedy", 5)):
        world.send(name)
        job = world.settled(name)
        assert job.attempt is not None
        assert code == job.attempt.exit_code, job
    # It has left its session, so that it escapes, as documented: it keeps nothing from going on.
    assert 1 == len(world.started("daemon"))


def test_a_gigabyte_of_output_makes_neither_the_service_nor_the_command_large(world: World) -> None:
    world.add("talks", "truncate -s 1G /proc/$$/fd/1; echo the end; exit 6")
    begun = time.monotonic()
    world.send("talks")
    job = world.settled("talks")
    (out,) = world.site.config.work_directory.glob(f"*/{job.id}/data/stdout.1.txt")
    assert out.stat().st_size > 1 << 30
    memory = f"/proc/{world.service.pid}/status"
    (peak,) = (line for line in Path(memory).read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 150_000  # kB
    command = [sys.executable, "-m", "edgecore", "job", str(job.id), "--site", str(world.site.file), "--json"]

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))

    answer = subprocess.run(command, capture_output=True, check=True, timeout=60, preexec_fn=bounded)
    assert 6 == json.loads(answer.stdout)["exit_code"]
    assert time.monotonic() - begun < 60
