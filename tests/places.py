"""Make sites with `edgecore init`, and use the command line on them: in this process, or in real ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from edgecore import serial
from edgecore.builtin.fork_spool import lock_file, supervised
from edgecore.cli import cli
from edgecore.config import SiteConfig, read_site
from edgecore.models import Job, JobDefinition, JobState
from edgecore.partners import open_broker
from edgecore.processes import process_start
from edgecore.reader import Reader
from edgecore.store import Arrival, Change, Store

DEADLINE_S = 60.0


def copied(place: Place, base: Path) -> Place:
    """Return a copy of a site, which costs less than a new one: nothing of it is forced to the disk."""
    copy = Place.__new__(Place)
    copy.base = base / place.base.name
    copy.file = copy.base / place.file.name
    shutil.copytree(place.base, copy.base)
    copy.file.write_text(place.file.read_text().replace(str(place.base), str(copy.base)))
    with contextlib.closing(sqlite3.connect(copy.config.store)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "UPDATE applications SET entry = replace(entry, ?, ?)", (str(place.base), str(copy.base))
        )
    return copy


class Place:
    """A site in a directory, the command line on it, and a way to put jobs into its store."""

    def __init__(self, base: Path) -> None:
        self.base = base / "demo"
        assert CliRunner().invoke(cli, ["init", str(self.base)]).exit_code == 0
        self.file = self.base / "site.toml"

    @property
    def config(self) -> SiteConfig:
        return read_site(self.file)

    def run(self, *arguments: str, **more: Any) -> Result:
        """Run a command on this site."""
        return CliRunner().invoke(cli, arguments, env={"EDGECORE_SITE": str(self.file)}, **more)

    def definition(self, **more: Any) -> dict[str, Any]:
        return {"name": "job", "site": "demo", "application": "hello", **more}

    def write(self, **more: Any) -> str:
        """Write a definition to a file."""
        path = self.base / "job.json"
        path.write_text(json.dumps(self.definition(**more)))
        return str(path)

    def store(self) -> Store:
        return Store(self.config.store, site="demo")

    def keep(self, state: JobState = JobState.QUEUED, *, owner: str = "local", **more: Any) -> Job:
        """Put a job into the store as if the service had brought it that far."""
        fields = {
            key: more.pop(key) for key in ("intent", "message", "attempt", "failed_state") if key in more
        }
        definition = serial.structure(JobDefinition, self.definition(**more), source="test")
        store = self.store()
        job = Job(
            id=store.new_id(),
            owner=owner,
            definition=definition,
            state=state,
            sequence=1,
            changed=store.now(),
            **fields,
        )
        store.take([Arrival(str(job.id), Change(None, (job,)))]).result()
        store.close()
        return job

    def requests(self) -> list[tuple[str, int]]:
        with Reader(self.config.store) as reader:
            return [(request.command, request.job_id) for request in reader.requests(0)]

    def queued(self) -> list[bytes]:
        """Take what was sent to the site."""
        relay = open_broker(self.config)
        bodies = [each.body for each in relay.receive(queue="demo", limit=100, timeout_s=0.0)]
        relay.close()
        return bodies


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Come back with what *condition* answers once it holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.05)
    return found


class Live(Place):
    """A site with a real service, and the command line in processes of its own."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        text = self.file.read_text()
        quick = 'driver = "fork"\npoll_interval_s = 0.2\nidle_s = 1\nkill_grace_s = 0.5\nslots = 2'
        text = text.replace('driver = "fork"', quick) + "\n[timing]\ngrace_s = 2\ndrain_s = 20\n"
        self.file.write_text(text)

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "EDGECORE_SITE": str(self.file)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def edgecore(self, *arguments: str, expect: int = 0) -> str:
        """Run a command in a process of its own and return what it wrote to stdout."""
        process = self.start("-m", "edgecore", *arguments)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == expect, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out

    @contextlib.contextmanager
    def service(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Run a service; afterwards neither it nor the batch system nor a job of theirs lives."""
        log = self.base / "service.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=file, stdin=subprocess.DEVNULL, text=True
            )
        try:
            wait_for(
                lambda: process.poll() is not None or "works" in log.read_text(), "the service to be ready"
            )
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.kill()
            process.wait()
            self.end_batch_system()

    def end_batch_system(self) -> None:
        spool = self.base / "jobs" / ".fork"
        if (self.base / "site.sqlite").exists() and supervised(spool):
            pid = int(lock_file(spool).read_text().split()[0])
            for job in self.running_processes(spool):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: process_start(pid) is None, "the supervisor's end")

    def running_processes(self, spool: Path) -> list[int]:
        with contextlib.closing(sqlite3.connect(spool / "jobs.sqlite", timeout=10)) as database:
            rows = database.execute("SELECT pid, pid_start FROM jobs WHERE state = 'RUNNING'").fetchall()
        return [pid for pid, start in rows if pid and process_start(pid) == start]

    def state(self, job_id: str) -> str:
        """Return the state of a job; empty while it is not known."""
        with Reader(read_site(self.file).store) as reader:
            return "".join(job.state for job in reader.find(job_id))

    def add_shell_application(self, name: str, text: str) -> None:
        """Register a program of a line or two."""
        program = self.base / f"{name}.sh"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        entry = self.base / f"{name}.toml"
        entry.write_text(f'name = "{name}"\nexecutable = "{program}"\n')
        self.edgecore("apps", "add", str(entry))
