"""Measure a service whose store has 100,000 jobs, of which 10,000 are with the batch system.

The 10,000 are held in a real fork spool, so that every poll lists them and nothing starts. Measured
are memory, the time to start, the CPU of one minute with one poll in it, and ``edgecore jobs``. Bare
values beside them: an interpreter that imports what the service imports, and does nothing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import closing
from typing import Final

from attrs import evolve

from benchmarks.common import BenchSite, Row, Run, Service, make_site, pairs, place, show, spread
from edgecore import batch, serial
from edgecore.builtin.fork_spool import connect, transaction
from edgecore.drivers import open_scheduling
from edgecore.models import Attempt, Job, JobDefinition, JobState
from edgecore.reader import Reader
from edgecore.store import Arrival, Change, Store

__all__ = ["run"]

_DAY_US: Final = 86_400_000_000
_FINISHED: Final = (
    JobState.STAGED_IN,
    JobState.PREPROCESSED,
    JobState.SUBMITTING,
    JobState.SUBMITTED,
    JobState.RUNNING,
    JobState.EXECUTION_FINISHED,
    JobState.POSTPROCESSED,
    JobState.STAGED_OUT,
    JobState.JOB_FINISHED,
)
_QUEUED: Final = (*_FINISHED[:4], JobState.HELD)
_BARE: Final = (
    "import edgecore.service, edgecore.builtin.fork, edgecore.builtin.queue; "
    "print(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])"
)


def run(*, quick: bool) -> bool:
    """Measure and print; tell whether the targets were met."""
    every_s = 15 if quick else 60
    settled, active = (9_000, 1_000) if quick else (90_000, 10_000)
    with place() as base:
        site = make_site(base / "site", more=f"[timing]\npoll_interval_s = {every_s}\n")
        begun = time.perf_counter()
        _fill(site, settled, active)
        built_s = time.perf_counter() - begun
        starts = pairs(lambda: _start(site), _bare_start, 3 if quick else 5)
        commands = pairs(lambda: _command(site), _bare_command, 3 if quick else 5)
        with Service(site) as service:
            time.sleep(5.0)  # what a start begins is over
            before = service.cpu_s
            time.sleep(every_s)
            share = (service.cpu_s - before) / every_s * 100
            _check_that_all_are_listed(site, active)
            rows = [
                _memory(service),
                Row(
                    what=f"CPU of an idle service with a poll every {every_s} s, % of one core",
                    found=f"{share:.2f}",
                    target="at most 1",
                    met=share <= 1,
                ),
                _seconds("start of the service, s", starts, None),
                _seconds("edgecore jobs, s", commands, 0.5),
            ]
    title = f"big_store: {settled + active:,} jobs, {active:,} of them held in the batch system"
    return show(f"{title}; built in {built_s:.0f} s", rows)


def _check_that_all_are_listed(site: BenchSite, active: int) -> None:
    with Reader(site.config.store) as reader:
        listed = [job for job in reader.active() if job.attempt and job.attempt.missed is None]
        assert active == len(listed) == reader.counts()[JobState.HELD]


def _memory(service: Service) -> Row:
    resident, peak = service.memory_mb("VmRSS"), service.memory_mb("VmHWM")
    bare = subprocess.run([sys.executable, "-c", _BARE], check=True, capture_output=True, text=True)
    return Row(
        what="memory of the service, MB: resident (peak)",
        found=f"{resident:.0f} ({peak:.0f})",
        bare=f"{int(bare.stdout) * 1024 / 1e6:.0f}",
        target="at most 150",
        met=peak <= 150,
    )


def _seconds(what: str, measured: list[tuple[Run, Run]], target: float | None) -> Row:
    found = [our.value for our, _ in measured]
    cpu, bare = (statistics.median(half.cpu_ms for half in halves) for halves in zip(*measured, strict=True))
    return Row(
        what=what,
        found=spread(found, ".2f"),
        bare=f"{statistics.median(other.value for _, other in measured):.2f}",
        ratio=spread([our.value / other.value for our, other in measured], ".1f"),
        cpu=f"{cpu:.0f} / {bare:.0f} ms",
        target="" if target is None else f"below {target}",
        met=None if target is None else statistics.median(found) < target,
    )


# ------------------------------------------------------------------------------- the store


def _fill(site: BenchSite, settled: int, active: int) -> None:
    """Write jobs as a service would have: each with its history, in the store and in the spool."""
    config = site.config
    scheduling = open_scheduling(
        config.scheduling.driver, config.scheduling.settings, config.context, source="benchmark"
    )
    scheduling.close()
    store = Store(config.store, site=config.site)
    now = store.now()
    written: list[Future[list[int]]] = []
    for number in range(settled + active):
        path = _path(site, number, now - _DAY_US + number, _FINISHED if number < settled else _QUEUED)
        written.append(store.take([Arrival(str(number), Change(None, path))]))
        if len(written) == 5_000:
            _wait_for(written)
    _wait_for(written)
    store.close()
    with closing(connect(config.work_directory / ".fork", 10.0)) as spool, transaction(spool):
        for number in range(settled, settled + active):
            tag = batch.attempt_tag(now - _DAY_US + number, 1)
            spool.execute(
                "INSERT INTO jobs (id, tag, group_tag, state, slots, limit_s, request, queued)"
                " VALUES (?, ?, ?, 'HELD', 1, 3600, '{}', ?)",
                (number + 1, tag, tag, now - _DAY_US),
            )


def _wait_for(written: list[Future[list[int]]]) -> None:
    for future in written:
        future.result()
    written.clear()


def _path(site: BenchSite, number: int, job_id: int, states: tuple[JobState, ...]) -> tuple[Job, ...]:
    definition = serial.structure(JobDefinition, site.job(name=f"job-{job_id}"), source="benchmark")
    at = Job(
        id=job_id, owner="local", definition=definition, state=JobState.CREATED, sequence=1, changed=job_id
    )
    path = [at]
    for state in states:
        attempt = _attempt(at) if state is JobState.SUBMITTING else None
        if state is JobState.SUBMITTED and at.attempt is not None:
            attempt = evolve(at.attempt, batch_id=str(number + 1), submitted=at.changed)
        at = at.moved(state, at.changed + 1_000_000, attempt=attempt)
        path.append(at)
    return tuple(path)


def _attempt(job: Job) -> Attempt:
    tag = batch.attempt_tag(job.id, 1)
    return Attempt(number=1, tag=tag, group_tag=tag, intended=job.changed)


# ------------------------------------------------------------------------- starts and commands


def _start(site: BenchSite) -> Run:
    with Service(site) as service:
        return Run(service.start_s, service.start_cpu_ms)


def _bare_start() -> Run:
    return _timed([sys.executable, "-c", _BARE])


def _command(site: BenchSite) -> Run:
    return _timed([sys.executable, "-m", "edgecore", "jobs", "--site", str(site.config.source)])


def _bare_command() -> Run:
    return _timed([sys.executable, "-c", "import click, sqlite3"])


def _timed(arguments: list[str]) -> Run:
    begun = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with exit code {process.returncode}")
    return Run(time.perf_counter() - begun, (used.ru_utime + used.ru_stime) * 1000)
