"""Make throw-away sites over any batch system, and run real services in processes of their own.

A site here has an embedded broker and store in one directory, and an application ``ledger`` that notes
each start and end in a file: so a test counts executions without asking anybody who might be mistaken.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from edgecore.config import SiteConfig, read_site
from edgecore.desk import Desk
from edgecore.models import Application, Job, JobState, OutgoingMessage, Parameter, Verdict
from edgecore.partners import open_broker
from edgecore.reader import Reader
from edgecore.relays import MessagingRelay
from edgecore.states import SETTLED

__all__ = ["DEADLINE_S", "Site", "make_site", "stop", "wait_for"]

DEADLINE_S: Final = 30.0
"""How long a test waits for what should come soon: a deadline, not a pause."""

_TIMING: Final = {
    "poll_interval_s": 0.2,
    "grace_s": 2,
    "lost_after_s": 4,
    "walltime_margin_s": 5,
    "drain_s": 20,
}

_LEDGER: Final = """#!/bin/sh
# Notes each start and end, so that a test can count executions. Waits for the file $4 where it is given,
# for two minutes at most.
printf 'start %s %s\\n' "$EDGECORE_JOB_ID" "$EDGECORE_ATTEMPT" >>"$1"
tries=0
while [ -n "$4" ] && [ ! -e "$4/$EDGECORE_JOB_NAME" ] && [ $tries -lt 2400 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
[ "$2" = 0 ] || sleep "$2"
printf 'end %s %s\\n' "$EDGECORE_JOB_ID" "$EDGECORE_ATTEMPT" >>"$1"
exit "$3"
"""


@frozen
class Site:
    """A site's files, and what tests do with them."""

    base: Path
    config: SiteConfig

    @property
    def file(self) -> Path:
        """The configuration file."""
        return self.base / "site.toml"

    @property
    def ledger(self) -> Path:
        """Where applications note their starts and ends."""
        return self.base / "ledger.txt"

    @property
    def gates(self) -> Path:
        """The directory in which a file with a job's name lets it end, where it is made to wait."""
        return self.base / "gates"

    @property
    def log(self) -> str:
        """What services have logged so far."""
        path = self.base / "service.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # ------------------------------------------------------------------ applications and jobs

    def add(self, application: Application) -> None:
        """Register an application."""
        Desk(self.config.store).add_application(application, now=1)

    def add_ledger(self, name: str, *, code: int = 0, waits: bool = False, restartable: bool = False) -> None:
        """Register an application that notes itself in the ledger.

        It ends with *code*, where it *waits* not before `let_end`.
        """
        arguments = (str(self.ledger), "{seconds}", "{code}", *((str(self.gates),) if waits else ()))
        self.add(
            Application(
                name=name,
                executable=str(self.base / "ledger.sh"),
                arguments=arguments,
                restartable=restartable,
                parameters={
                    "seconds": Parameter(type="number", default=0, minimum=0),
                    "code": Parameter(type="integer", default=code, minimum=0, maximum=255),
                },
            )
        )

    def let_end(self, *names: str) -> None:
        """Let jobs that wait for it end, those of today and those to come."""
        for name in names:
            (self.gates / name).touch()

    def job(self, **more: Any) -> dict[str, Any]:
        """Return a definition of a job that notes itself in the ledger."""
        return {"name": "job", "site": "testsite", "application": "ledger", **more}

    def files(self, name: str, **settings: object) -> dict[str, str]:
        """Lay input for a job out, with a configuration file; answers the URLs for its definition."""
        place = self.base / "data" / name
        place.mkdir()
        (place / "app.cfg").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        return {
            "input_url": f"file://{place}",
            "output_url": f"file://{self.base}/data/out-{name}",
            "config_file": "app.cfg",
        }

    # ----------------------------------------------------------------------------- the broker

    def relay(self) -> MessagingRelay:
        """Open the broker as somebody outside does."""
        return open_broker(self.config)

    def send(self, *documents: Mapping[str, Any] | bytes, message_ids: bool = True) -> None:
        """Put definitions into the site's queue, as an outside submitter does."""
        relay = self.relay()
        relay.send(
            messages=[
                OutgoingMessage(
                    exchange="hpc",
                    key=self.config.queue,
                    body=document if isinstance(document, bytes) else json.dumps(document).encode(),
                    message_id=uuid.uuid4().hex if message_ids else "",
                )
                for document in documents
            ]
        )
        relay.close()

    def statuses(self) -> list[dict[str, Any]]:
        """Take every status message that has been published so far."""
        relay = self.relay()
        found: list[dict[str, Any]] = []
        while deliveries := relay.receive(queue="balsam_job_status", limit=500, timeout_s=0.0):
            found += [json.loads(delivery.body) for delivery in deliveries]
            relay.settle(deliveries=deliveries, verdict=Verdict.ACCEPT, reason="")
        relay.close()
        return found

    # --------------------------------------------------------------------------------- looking

    def jobs(self) -> list[Job]:
        """Return all jobs, the latest first."""
        with Reader(self.config.store) as reader:
            return list(reader.latest(100_000))

    def named(self, name: str) -> Job | None:
        """Return the one job of that name, None while there is none."""
        return next((job for job in self.jobs() if job.name == name), None)

    def states(self, job_id: int) -> list[JobState]:
        """Return the states that a job has had, in order."""
        with Reader(self.config.store) as reader:
            return [entry.state for entry in reader.history(job_id)]

    def starts(self) -> dict[int, int]:
        """Return job id -> how many times its application started."""
        starts: dict[int, int] = {}
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        for line in lines:
            word, job_id, _ = line.split()
            if word == "start":
                starts[int(job_id)] = starts.get(int(job_id), 0) + 1
        return starts

    def wait_settled(self, count: int, timeout_s: float = 60) -> list[Job]:
        """Wait until *count* jobs are there and all of them are settled."""

        def settled() -> bool:
            jobs = self.jobs()
            return len(jobs) >= count and all(job.state in SETTLED for job in jobs)

        wait_for(settled, timeout_s, self.diagnosis)
        return self.jobs()

    def wait_published(self, timeout_s: float = DEADLINE_S) -> None:
        """Wait until every status has been taken by the broker."""
        wait_for(self._outbox_is_empty, timeout_s, self.diagnosis)

    def _outbox_is_empty(self) -> bool:
        with Reader(self.config.store) as reader:
            return not reader.outbox(0, 1)

    def check_statuses(self) -> None:
        """Check that every status was published, in order per job and without a gap."""
        published: dict[str | int, list[int]] = {}
        for status in self.statuses():
            published.setdefault(status["job_id"], []).append(status["sequence"])
        with Reader(self.config.store) as reader:
            assert reader.outbox(0, 1) == ()
            for job in reader.latest(100_000):
                sequences = [entry.sequence for entry in reader.history(job.id)]
                assert list(range(1, job.sequence + 1)) == sequences
                first_time = list(dict.fromkeys(published[job.public_id]))
                assert sequences == first_time, f"job {job.id} published {published[job.public_id]}"

    def diagnosis(self) -> str:
        """Say how things stand, for the message of a test that failed."""
        jobs = [(job.id, job.name, str(job.state), job.message, job.attempt) for job in self.jobs()]
        log = "\n".join(line for line in self.log.splitlines() if " look was " not in line)
        return f"{jobs[:10]}\nstarts {self.starts()}\n{log[-3000:]}"

    # -------------------------------------------------------------------------------- services

    @contextlib.contextmanager
    def service(self, script: str | None = None, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run a real service in a process of its own; drained at the end if it still lives."""
        process = self.start(script, **options)
        try:
            yield process
        finally:
            stop(process)

    def start(
        self, script: str | None = None, *, ahead_s: float = 0, dies_at: tuple[str, int] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a real service, or *script* instead.

        Its clock goes *ahead_s* seconds before ours; it *dies_at* a point of
        `edgecore.testing.doomed` when that is passed for the so-manieth time.
        """
        doom = ["--die", dies_at[0], str(dies_at[1])] if dies_at else []
        program = (
            ["-c", script] if script else ["-m", "edgecore.testing.doomed", "--ahead", str(ahead_s), *doom]
        )
        with (self.base / "service.log").open("ab") as log:
            return subprocess.Popen([sys.executable, *program, str(self.file)], stdout=log, stderr=log)

    def die(self, point: str, count: int = 1) -> None:
        """Run a service until it dies at *point*."""
        process = self.start(dies_at=(point, count))
        try:
            exit_code = process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the service never came to '{point}': {self.diagnosis()}") from None
        assert exit_code == -signal.SIGKILL, self.diagnosis()


def make_site(
    base: Path,
    *,
    scheduling: Mapping[str, Any],
    messaging: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    timing: Mapping[str, float] | None = None,
    more: str = "",
) -> Site:
    """Lay out a site with an application ``ledger``; *scheduling* and *messaging* are its tables of that name.

    *environment* is what commands and jobs get; *more* is text at the end of the file.
    """
    (base / "data").mkdir(parents=True)
    (base / "gates").mkdir()
    parts = [
        f'site = "testsite"\nwork_directory = "work"\nstore = "store.sqlite"\n'
        f'[[transfer]]\nprefix = "file://{base}/data/"\n',
        _table("messaging", messaging or {"url": f"sqlite://{base}/queues.sqlite"}),
        _table("scheduling", scheduling),
        _table("environment.set", environment or {}),
        _table("timing", {**_TIMING, **(timing or {})}),
        _table("retry", {"first_s": 0.2, "longest_s": 1.0, "tries": 3}),
        more,
    ]
    (base / "site.toml").write_text("\n".join(parts))
    program = base / "ledger.sh"
    program.write_text(_LEDGER)
    program.chmod(0o755)
    site = Site(base, read_site(base / "site.toml"))
    site.add_ledger("ledger")
    return site


def _table(name: str, values: Mapping[str, Any]) -> str:
    """Write one table of a TOML file; JSON's strings, numbers, booleans and lists are TOML's."""
    return f"[{name}]\n" + "".join(
        f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()
    )


def stop(process: subprocess.Popen[bytes], timeout_s: float = DEADLINE_S) -> int:
    """Ask a service to drain and wait until it has; kill it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def wait_for(
    condition: Callable[[], object], timeout_s: float, why: Callable[[], object] = lambda: ""
) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {why()}"
        time.sleep(0.05)
