"""Make throw-away sites and run real services over them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from edgecore.builtin.queue import SqliteMessaging
from edgecore.config import SiteConfig, read_site
from edgecore.desk import Desk
from edgecore.drivers import MessagingRelay
from edgecore.models import Application, Job, JobState, OutgoingMessage, Parameter
from edgecore.reader import Reader
from edgecore.service import topology
from edgecore.states import SETTLED

SITE = """
site = "testsite"
work_directory = "work"
store = "store.sqlite"

[messaging]
url = "sqlite://{base}/queues.sqlite"

[scheduling]
driver = "fork"
slots = {slots}
poll_interval_s = 0.2
idle_s = 3

[[transfer]]
prefix = "file://{base}/data/"

[timing]
poll_interval_s = {poll}
grace_s = {grace}
lost_after_s = {lost_after}
walltime_margin_s = 5
drain_s = 20

[retry]
first_s = 0.2
longest_s = 1.0
tries = 3
{more}
"""

LEDGER = """#!/bin/sh
# Notes each start and end, so that a test can count executions.
printf 'start %s %s\\n' "$EDGECORE_JOB_ID" "$EDGECORE_ATTEMPT" >>"$1"
sleep "$2"
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
        return self.base / "site.toml"

    @property
    def ledger(self) -> Path:
        return self.base / "ledger.txt"

    def add(self, application: Application) -> None:
        Desk(self.config.store).add_application(application, now=1)

    def relay(self) -> MessagingRelay:
        relay = MessagingRelay(SqliteMessaging(url=self.config.messaging.url), self.config.context)
        relay.declare(topology=topology(self.config))
        return relay

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
            from edgecore.models import Verdict

            relay.settle(deliveries=deliveries, verdict=Verdict.ACCEPT, reason="")
        relay.close()
        return found

    def job(self, **more: Any) -> dict[str, Any]:
        """Return a definition of a job that notes itself in the ledger."""
        return {"name": "job", "site": "testsite", "application": "ledger", **more}

    def jobs(self) -> list[Job]:
        with Reader(self.config.store) as reader:
            return list(reader.latest(100_000))

    def states(self, job_id: int) -> list[JobState]:
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

    @contextlib.contextmanager
    def service(self, script: str | None = None, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a real service in a process of its own; drained at the end if it still lives."""
        process = self.start(script, **environment)
        try:
            yield process
        finally:
            stop(process)

    def start(self, script: str | None = None, **environment: str) -> subprocess.Popen[bytes]:
        code = (
            script
            or "import sys, edgecore, logging; logging.basicConfig(level='INFO'); edgecore.run_site(sys.argv[1])"
        )
        with (self.base / "service.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code, str(self.file)],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                cwd=Path(__file__).parent,
            )

    def wait_settled(self, count: int, timeout_s: float = 60) -> list[Job]:
        """Wait until *count* jobs are there and all of them are settled."""

        def settled() -> bool:
            jobs = self.jobs()
            return len(jobs) >= count and all(job.state in SETTLED for job in jobs)

        wait_for(settled, timeout_s, lambda: self.diagnosis())
        return self.jobs()

    def diagnosis(self) -> str:
        log = (
            (self.base / "service.log").read_text(errors="replace")[-3000:]
            if (self.base / "service.log").exists()
            else ""
        )
        return f"{[(job.id, str(job.state), job.message) for job in self.jobs()][:10]}\n{log}"


def make_site(
    base: Path,
    *,
    slots: int = 4,
    poll_s: float = 0.2,
    grace_s: float = 2,
    lost_after_s: float = 4,
    more: str = "",
) -> Site:
    """Lay out a site on the embedded default, with an application ``ledger``."""
    (base / "data").mkdir(parents=True)
    (base / "site.toml").write_text(
        SITE.format(base=base, slots=slots, poll=poll_s, grace=grace_s, lost_after=lost_after_s, more=more)
    )
    program = base / "ledger.sh"
    program.write_text(LEDGER)
    program.chmod(0o755)
    site = Site(base, read_site(base / "site.toml"))
    site.add(
        Application(
            name="ledger",
            executable=str(program),
            arguments=(str(site.ledger), "{seconds}", "{code}"),
            parameters={
                "seconds": Parameter(type="number", default=0, minimum=0),
                "code": Parameter(type="integer", default=0, minimum=0, maximum=255),
            },
        )
    )
    return site


def stop(process: subprocess.Popen[bytes], timeout_s: float = 30) -> int:
    """Ask a service to drain and wait until it has; kill it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float, why: Callable[[], object] = lambda: "") -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {why()}"
        time.sleep(0.05)


__all__: Sequence[str] = ("Site", "make_site", "stop", "wait_for")
