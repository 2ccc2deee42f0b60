"""Measure the way from a message to the native submit on an idle service: sqlite:// and fork, no staging.

The clock starts when the definition is handed to `send`, and stops at the time that the batch system
notes for the submission. The bare way beside it: a process that waits for a message on a queue of the
same kind, and at its arrival does nothing but enter the job into a spool of the same kind.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.common import (
    BenchSite,
    Row,
    Run,
    Service,
    cpu_s,
    make_site,
    pairs,
    place,
    ratio_of,
    show,
    spread,
    wait_for_rest,
    wait_until,
)
from edgecore.builtin.fork_spool import connect

__all__ = ["run"]

_TARGET_MS: Final = 50.0

_BARE: Final = """
import sys
from pathlib import Path
from edgecore.builtin.fork import ForkScheduling
from edgecore.config import read_site
from edgecore.models import Group, Submission, Verdict
from edgecore.partners import open_broker
site = read_site(Path(sys.argv[1]))
site.work_directory.mkdir()
broker, spool = open_broker(site), ForkScheduling(slots=2, idle_s=2.0)
spool.open(site.context)
print("started", flush=True)
while True:
    for number, delivery in enumerate(broker.receive(queue=site.queue, limit=1, timeout_s=60.0)):
        script = Path(sys.argv[2])
        one = Submission(tag="bare", index=None, script=script, directory=script.parent, comment="")
        spool.submit(Group(tag="bare", submissions=(one,), num_nodes=1, processes_per_node=1, wall_time_minutes=1))
        broker.settle(deliveries=[delivery], verdict=Verdict.ACCEPT, reason="")
"""


def run(*, quick: bool) -> bool:
    """Measure and print; tell whether the target was met."""
    rounds = 10 if quick else 40
    with place() as base:
        ours, bare = make_site(base / "ours"), make_site(base / "bare")
        script = bare.base / "script.sh"
        script.write_text("#!/bin/sh\nexit 0\n")
        with Service(ours) as service, _bare_process(bare, script) as other:
            _once(ours, service.process.pid)  # the first message also opens files and starts a supervisor
            _once(bare, other.pid)
            measured = pairs(lambda: _once(ours, service.process.pid), lambda: _once(bare, other.pid), rounds)
            other.kill()
    found = [our.value for our, _ in measured]
    _, ratio = ratio_of(measured)
    cpu, bare_cpu = (statistics.mean(half.cpu_ms for half in h) for h in zip(*measured, strict=True))
    row = Row(
        what="from send() to the native submit, ms",
        found=spread(found),
        bare=spread([other_.value for _, other_ in measured]),
        ratio=ratio,
        cpu=f"{cpu:.1f} / {bare_cpu:.1f} ms each",
        target=f"at most {_TARGET_MS:.0f}",
        met=statistics.median(found) <= _TARGET_MS,
    )
    return show(f"latency: {rounds} single jobs at an idle service", [row])


def _bare_process(site: BenchSite, script: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _BARE, str(site.config.source), str(script)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _once(site: BenchSite, pid: int) -> Run:
    """Send one job and wait until it has ended and its process rests; answers milliseconds."""
    with closing(site.broker()) as broker, closing(connect(_spool(site), 10.0)) as spool:
        before = spool.execute("SELECT ifnull(max(id), 0) FROM jobs").fetchone()[0]
        messages = site.outgoing([site.job()])
        cpu = cpu_s(pid)
        sent_us = time.time_ns() / 1000
        broker.send(messages=messages)
        query = "SELECT queued FROM jobs WHERE id > ? AND state = 'ENDED'"
        wait_until(lambda: spool.execute(query, (before,)).fetchone() is not None, "the job has ended")
        queued_us = spool.execute(query, (before,)).fetchone()[0]
        wait_for_rest(pid)
        return Run((queued_us - sent_us) / 1000, (cpu_s(pid) - cpu) * 1000)


def _spool(site: BenchSite) -> Path:
    return site.config.work_directory / ".fork"
