"""Measure a service on Slurm that has little to do: how soon a message becomes an sbatch, and what waiting costs.

*From a message to sbatch*: the clock starts when the definition is handed to `send`, and stops when a small script
that stands in the place of sbatch notes its start, a millisecond or two late. The bare way beside it: a process that
waits on a queue of the same kind, and at each message runs the same sbatch.

*Waiting*: the CPU of a service between two polls a minute apart, when all of its jobs are held, and have been seen
so before. It is measured in real time, and nothing is extrapolated.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.common import (
    BenchSite,
    Row,
    Run,
    Service,
    cpu_s,
    pairs,
    ratio_of,
    spread,
    wait_for_rest,
    wait_until,
)
from benchmarks.slurm_site import Ground, script, wait_until_submitted
from edgecore.models import JobState
from edgecore.reader import Reader

__all__ = ["latency", "waiting"]

_SHARE: Final = 1.0
_NOTED: Final = '#!/bin/sh\n: >>"{note}.$$"\nexec {command} "$@"\n'

_BARE: Final = """
import subprocess, sys
from pathlib import Path
from edgecore.config import read_site
from edgecore.models import Verdict
from edgecore.partners import open_broker
site = read_site(Path(sys.argv[1]))
broker = open_broker(site)
print("started", flush=True)
while True:
    for delivery in broker.receive(queue=site.queue, limit=1, timeout_s=60.0):
        subprocess.run(sys.argv[2:], check=True, stdout=subprocess.DEVNULL)
        broker.settle(deliveries=[delivery], verdict=Verdict.ACCEPT, reason="")
"""


# --------------------------------------------------------------------- from a message to sbatch


def latency(on: Ground, rounds: int, *, tls: bool, target_ms: float) -> Row:
    """Send single jobs to an idle service, and to an idle bare process."""
    commands, note = _noted(on, "sbatch")
    ours, bare = on.site(tls=tls, commands=str(commands)), on.site(tls=tls, queue="bare")
    with Service(ours) as service, _bare_process(on, bare, commands / "sbatch") as other:
        _once(ours, note, service.process.pid)  # the first message also opens connections
        _once(bare, note, other.pid)
        measured = pairs(
            lambda: _once(ours, note, service.process.pid), lambda: _once(bare, note, other.pid), rounds
        )
    on.clear()
    found = [our.value for our, _ in measured]
    cpu, bare_cpu = (
        statistics.mean(half.cpu_ms for half in halves) for halves in zip(*measured, strict=True)
    )
    return Row(
        what=f"from a message on {'amqps' if tls else 'sqlite'}:// to sbatch, ms",
        found=spread(found),
        bare=spread([other_.value for _, other_ in measured]),
        ratio=ratio_of(measured)[1],
        cpu=f"{cpu:.1f} / {bare_cpu:.1f} ms each",
        target=f"at most {target_ms:.0f}",
        met=statistics.median(found) <= target_ms,
    )


def _noted(on: Ground, name: str) -> tuple[Path, Path]:
    """Make a directory with a command that leaves a file at each start; answers it, and how such files begin."""
    directory = on.base / f"noted{time.time_ns()}"
    directory.mkdir()
    note, command = directory / "noted", directory / name
    real = shutil.which(name, path=on.environment["PATH"])
    command.write_text(_NOTED.format(note=note, command=real))
    command.chmod(0o755)
    return directory, note


def _starts(note: Path) -> list[int]:
    """Return when the command was started, in nanoseconds since the epoch."""
    return sorted(file.stat().st_mtime_ns for file in note.parent.glob(f"{note.name}.*"))


@contextmanager
def _bare_process(on: Ground, site: BenchSite, sbatch: Path) -> Iterator[subprocess.Popen[bytes]]:
    file = script(on.base / "bare")
    arguments = [str(sbatch), "--parsable", "--hold", f"--chdir={file.parent}", "--export=NONE", str(file)]
    process = subprocess.Popen(
        [sys.executable, "-c", _BARE, str(site.config.source), *arguments],
        stdout=subprocess.PIPE,
        env=on.environment,
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        yield process
        process.kill()
        process.wait()


def _once(site: BenchSite, note: Path, pid: int) -> Run:
    """Send one job and wait until its sbatch was started and the process rests; answers milliseconds."""
    with closing(site.broker()) as broker:
        messages = site.outgoing([site.job()])
        before, cpu, sent_ns = len(_starts(note)), cpu_s(pid), time.time_ns()
        broker.send(messages=messages)
        wait_until(lambda: len(_starts(note)) > before, "sbatch was started", every_s=0.01)
    wait_for_rest(pid)
    return Run((_starts(note)[-1] - sent_ns) / 1e6, (cpu_s(pid) - cpu) * 1000)


# ------------------------------------------------------------------------------------- waiting


def waiting(on: Ground, jobs: int, *, every_s: int, polls: int) -> list[Row]:
    """Let a service wait for held jobs; answers its CPU from poll to poll, and its memory."""
    commands, note = _noted(on, "squeue")
    site = on.site(poll_s=every_s, commands=str(commands))
    with Service(site) as service, Reader(site.config.store) as reader:
        site.send([site.job() for _ in range(jobs)])
        wait_until_submitted(reader, jobs)
        wait_until(lambda: reader.counts().get(JobState.HELD, 0) == jobs, "all were seen to be held")
        wait_until(lambda: not reader.outbox(0, 1), "all was reported")
        found = [_until_next_poll(service, note)]
        found += [_until_next_poll(service, note) for _ in range(polls)]
        resident, peak = service.memory_mb("VmRSS"), service.memory_mb("VmHWM")
    on.clear()
    shares = [
        (after[1] - before[1]) / (after[0] - before[0]) * 100 for before, after in itertools.pairwise(found)
    ]
    return [
        Row(
            what=f"CPU of the service with a poll every {every_s} s, % of one core",
            found=spread(shares, ".2f"),
            target=f"at most {_SHARE:.0f}",
            met=statistics.median(shares) <= _SHARE,
        ),
        Row(what="memory of the service, MB: resident (peak)", found=f"{resident:.0f} ({peak:.0f})"),
    ]


def _until_next_poll(service: Service, note: Path) -> tuple[float, float]:
    """Wait until what the next poll begins is over; answers the time, and the CPU of the service so far."""
    before = len(_starts(note))
    wait_until(lambda: len(_starts(note)) > before, "the next poll", every_s=1.0)
    time.sleep(5.0)
    return time.monotonic(), service.cpu_s
