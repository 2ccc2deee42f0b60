"""Measure what the life of a trivial job costs the service, from message to JOB_FINISHED, no staging.

Beside it runs a bare loop that starts the same script as often and waits for it, with nothing
written down. The service's own CPU decides; that of the fork batch system, which stands for
Slurm or PBS here and would be another machine's there, is shown apart.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from functools import partial
from pathlib import Path

from attrs import frozen

from benchmarks.common import (
    BenchSite,
    Row,
    Run,
    Service,
    children_s,
    cpu_s,
    make_site,
    pairs,
    place,
    show,
    spread,
    wait_until,
)
from edgecore.models import JobState
from edgecore.reader import Reader

__all__ = ["run"]

_TARGET_MS = 5.0


@frozen
class _Life(Run):
    """Jobs per second and CPU milliseconds per job; and what the batch system used."""

    supervisor_ms: float


def run(*, quick: bool) -> bool:
    """Measure and print; tell whether the target was met."""
    jobs, rounds = (60, 3) if quick else (300, 5)
    with place() as base:
        numbers = iter(range(1000))
        measured = pairs(
            lambda: _ours(base / f"site{next(numbers)}", jobs), partial(_bare, base, jobs), rounds
        )
    ours = [our.cpu_ms for our, _ in measured]
    bare = [bare.cpu_ms for _, bare in measured]
    supervisor = [our.supervisor_ms for our, _ in measured if isinstance(our, _Life)]
    speed, bare_speed = ([half.value for half in halves] for halves in zip(*measured, strict=True))
    rows = [
        Row(
            what="CPU of the service per job, ms",
            found=spread(ours, ".2f"),
            bare=f"{statistics.median(bare):.2f} with the script's own",
            ratio=spread([our / other for our, other in zip(ours, bare, strict=True)], ".2f"),
            target=f"at most {_TARGET_MS:.0f}",
            met=statistics.median(ours) <= _TARGET_MS,
        ),
        Row(what="CPU of the fork supervisor per job, ms", found=spread(supervisor, ".2f")),
        Row(
            what="jobs per second, two slots",
            found=spread(speed, ".0f"),
            bare=f"{statistics.median(bare_speed):.0f} one by one",
        ),
    ]
    return show(f"trivial_job: the life of {jobs} trivial jobs, sqlite:// and fork", rows)


def _ours(base: Path, jobs: int) -> _Life:
    site = make_site(base)
    with Service(site) as service:
        begun = time.perf_counter()
        site.send([site.job() for _ in range(jobs)])
        with Reader(site.config.store) as reader:
            wait_until(lambda: _finished(reader, jobs), "all jobs finished and reported")
        wall_s = time.perf_counter() - begun
        supervisor_s = cpu_s(_supervisor(site))
        return _Life(jobs / wall_s, service.cpu_s * 1000 / jobs, supervisor_s * 1000 / jobs)


def _finished(reader: Reader, jobs: int) -> bool:
    return reader.counts().get(JobState.JOB_FINISHED, 0) == jobs and not reader.outbox(0, 1)


def _supervisor(site: BenchSite) -> str:
    return (site.config.work_directory / ".fork" / "lock").read_text().split()[0]


def _bare(base: Path, jobs: int) -> Run:
    script = base / "script.sh"
    script.write_text("#!/bin/sh\nexec /bin/true\n")
    before, begun = cpu_s() + children_s(), time.perf_counter()
    for _ in range(jobs):
        subprocess.run(["/bin/sh", script], check=True)
    return Run(jobs / (time.perf_counter() - begun), (cpu_s() + children_s() - before) * 1000 / jobs)
