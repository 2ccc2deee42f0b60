"""Measure submitting to a real Slurm, and looking at what waits there, beside bare loops of sbatch and squeue.

*Unlike jobs* have a walltime each, so that none can share a submission; beside them, sbatch runs as often, as many
at once as the service runs. *Like jobs* go as arrays; beside them, sbatch runs as often, one after the other, as a
shell loop does. What "from PREPROCESSED on" costs is measured with jobs that wait in the store when the service starts.

On two processors the service, sbatch and the controller take time from each other, so that a ratio says less here
than where they have a processor each; the CPU of the service stands beside it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock

from edgecore_slurm.text import listing_command

from benchmarks.common import (
    BenchSite,
    Row,
    Run,
    Service,
    children_s,
    cpu_s,
    pairs,
    place,
    ratio_of,
    show,
    spread,
    wait_until,
)
from benchmarks.slurm_idle import latency, waiting
from benchmarks.slurm_site import (
    PARALLEL,
    Ground,
    bare_loop,
    ground,
    script,
    wait_until_submitted,
)
from edgecore import commands
from edgecore.config import read_site
from edgecore.drivers import SchedulingRelay, open_scheduling
from edgecore.models import Group, JobState, Reference, Submission, Submitted
from edgecore.processes import user_name
from edgecore.reader import Reader
from edgecore.service import collecting_seldom

__all__ = ["run"]

_FROM_PREPROCESSED: Final = 0.9
_WHOLE_WAY: Final = 0.7
_LIKE: Final = 5.0
_LOOK: Final = 2.0
_CPU_MS: Final = 4.0
_MS: Final = 50.0
_TLS_MS: Final = 100.0
_ARRAY: Final = 1000


def run(*, quick: bool) -> bool:
    """Measure and print; tell whether the targets were met."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the cluster is the test suite's
    from testbed.slurm import missing_slurm

    if missing := missing_slurm():
        print(f"\nslurm: {missing}")
        return True
    jobs, like, listed, rounds = (60, 300, 1000, 3) if quick else (200, 1000, 5000, 7)
    singles, held, every_s = (5, 1000, 15) if quick else (20, 10_000, 60)
    with place() as base, ground(base, broker=True) as on:
        unlike = [
            _against(
                "from PREPROCESSED on",
                _FROM_PREPROCESSED,
                partial(_from_preprocessed, on, jobs),
                on,
                jobs,
                rounds,
            ),
            _against(
                "the whole way from sqlite://", _WHOLE_WAY, partial(_whole_way, on, jobs), on, jobs, rounds
            ),
        ]
        met = show(f"slurm: {jobs} unlike jobs beside {PARALLEL} sbatch at once, jobs per second", unlike)
        ways = [("sqlite://", False), *([("amqps://", True)] if on.broker is not None else [])]
        alike = [
            _against(
                f"the whole way from {way}",
                _LIKE,
                partial(_whole_way, on, like, like=True, tls=tls),
                on,
                like,
                rounds,
                parallel=1,
            )
            for way, tls in ways
        ]
        met &= show(f"slurm: {like:,} like jobs beside one sbatch after the other, jobs per second", alike)
        looks = _looks(on, listed, rounds)
        met &= show(f"slurm: one look at {listed:,} held jobs, ms of CPU", looks)
        single = [latency(on, singles, tls=tls, target_ms=_TLS_MS if tls else _MS) for _, tls in ways]
        met &= show(f"slurm: {singles} single jobs at an idle service", single)
        idle = waiting(on, held, every_s=every_s, polls=1 if quick else 3)
        return met & show(f"slurm: a service with {held:,} held jobs", idle)


# ----------------------------------------------------------------------------- submitting


def _against(
    what: str,
    target: float,
    ours: Callable[[], Run],
    on: Ground,
    jobs: int,
    rounds: int,
    *,
    parallel: int = PARALLEL,
) -> Row:
    def cleared(measure: Callable[[], Run]) -> Run:
        found = measure()
        on.clear()
        return found

    bare = partial(bare_loop, on, jobs, parallel=parallel)
    measured = pairs(lambda: cleared(ours), lambda: cleared(bare), rounds)
    ratio, words = ratio_of(measured)
    cpu, bare_cpu = (
        statistics.median(half.cpu_ms for half in halves) for halves in zip(*measured, strict=True)
    )
    return Row(
        what=what,
        found=spread([our.value for our, _ in measured], ".0f"),
        bare=spread([bare.value for _, bare in measured], ".0f"),
        ratio=words,
        cpu=f"{cpu:.2f} / {bare_cpu:.2f} ms each",
        target=f"{target}, {_CPU_MS:.0f} ms",
        met=ratio >= target and cpu <= _CPU_MS,
    )


def _from_preprocessed(on: Ground, jobs: int) -> Run:
    """Let jobs wait in the store by a limit, lift it, and start the service anew."""
    site = on.site(most=1)
    with Service(site), Reader(site.config.store) as reader:
        site.send([_unlike(site, number) for number in range(jobs + 1)])
        wait_until(lambda: reader.counts().get(JobState.PREPROCESSED, 0) == jobs, "all but one wait")
        wait_until_submitted(reader, 1)
    source = site.config.source
    source.write_text(source.read_text().replace("max_queued = 1\n", "max_queued = 1000000\n"))
    with Service(site) as service, Reader(site.config.store) as reader:
        wait_until_submitted(reader, jobs + 1)
        cpu_ms = service.cpu_s * 1000 / jobs
        attempts = [job.attempt for job in reader.active() if job.attempt is not None]
    intended = sorted(attempt.intended for attempt in attempts)[1]  # the first went before
    return Run(jobs / (max(attempt.submitted or 0 for attempt in attempts) - intended) * 1e6, cpu_ms)


def _whole_way(on: Ground, jobs: int, *, like: bool = False, tls: bool = False) -> Run:
    """Send jobs to an idle service, and wait until each has its id from Slurm."""
    site = on.site(tls=tls)
    with Service(site) as service, Reader(site.config.store) as reader:
        definitions = [_unlike(site, 0 if like else number) for number in range(jobs)]
        cpu, begun_us = service.cpu_s, time.time_ns() / 1000
        site.send(definitions)
        wait_until_submitted(reader, jobs)
        cpu_ms = (service.cpu_s - cpu) * 1000 / jobs
        ended_us = max(job.attempt.submitted or 0 for job in reader.active() if job.attempt is not None)
    return Run(jobs / (ended_us - begun_us) * 1e6, cpu_ms)


def _unlike(site: BenchSite, number: int) -> Mapping[str, object]:
    return site.job(wall_time_minutes=number + 1, processes_per_node=1)


# -------------------------------------------------------------------------------- looking


def _looks(on: Ground, jobs: int, rounds: int) -> list[Row]:
    """Look at jobs in arrays; the first look of a service parses every line, later ones what has changed."""
    site = on.site()
    site.config.work_directory.mkdir()
    driver = _driver(site.config.source)
    references = [
        reference
        for first in range(0, jobs, _ARRAY)
        for reference in _array(on, driver, min(_ARRAY, jobs - first))
    ]
    first = pairs(lambda: _first_look(site, references), lambda: _squeue(on, jobs), rounds)
    _look(driver, references)
    later = pairs(lambda: _look(driver, references), lambda: _squeue(on, jobs), rounds)
    driver.close()
    on.clear()
    return [_look_row("the first look of a service", first), _look_row("a look after it", later)]


def _driver(source: Path) -> SchedulingRelay:
    config = read_site(source)
    return open_scheduling(
        config.scheduling.driver, config.scheduling.settings, config.context, source="benchmark"
    )


def _array(on: Ground, driver: SchedulingRelay, jobs: int) -> list[Reference]:
    """Submit held jobs as one array."""
    tag = f"e{time.time_ns()}"
    file = script(on.base / tag)
    submissions = tuple(
        Submission(tag=f"{tag}x{index}", index=index, script=file, directory=file.parent, comment="")
        for index in range(jobs)
    )
    group = Group(
        tag=tag,
        submissions=submissions,
        num_nodes=1,
        processes_per_node=1,
        wall_time_minutes=1,
        options={"hold": True},
    )
    answers = driver.submit(group=group)
    return [
        Reference(
            tag=each.tag,
            group_tag=tag,
            index=each.index,
            batch_id=answer.batch_id,
            directory=each.directory,
            submitted=time.time_ns() // 1000,
        )
        for each in submissions
        if isinstance(answer := answers[each.tag], Submitted)
    ]


def _first_look(site: BenchSite, references: Sequence[Reference]) -> Run:
    """Look once, in a process that has not looked before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_looked_anew, site.config.source, references).result()


def _looked_anew(source: Path, references: Sequence[Reference]) -> Run:
    with collecting_seldom():  # as a service does
        return _look(_driver(source), references)


def _look(driver: SchedulingRelay, references: Sequence[Reference]) -> Run:
    """Look once; answers milliseconds, and the CPU of all, that of the command included."""
    with mock.patch("edgecore_slurm.driver.run", wraps=commands.run) as runs:
        cpu, begun = cpu_s() + children_s(), time.perf_counter()
        seen = driver.observe(references=references)
        found = Run((time.perf_counter() - begun) * 1000, (cpu_s() + children_s() - cpu) * 1000)
    assert len(references) == len(seen)
    assert 1 == runs.call_count
    return found


def _squeue(on: Ground, jobs: int) -> Run:
    """Run the same command, and do nothing with what it prints."""
    cpu, begun = cpu_s() + children_s(), time.perf_counter()
    done = subprocess.run(listing_command(user_name()), env=on.environment, check=True, capture_output=True)
    found = Run((time.perf_counter() - begun) * 1000, (cpu_s() + children_s() - cpu) * 1000)
    assert jobs < len(done.stdout.splitlines())
    return found


def _look_row(what: str, measured: Sequence[tuple[Run, Run]]) -> Row:
    ratios = [our.cpu_ms / bare.cpu_ms for our, bare in measured]
    walls = [statistics.median(half.value for half in halves) for halves in zip(*measured, strict=True)]
    return Row(
        what=what,
        found=spread([our.cpu_ms for our, _ in measured], ".0f"),
        bare=spread([bare.cpu_ms for _, bare in measured], ".0f"),
        ratio=spread(ratios),
        cpu=f"(time: {walls[0]:.0f} / {walls[1]:.0f} ms)",
        target=f"at most {_LOOK:.0f} times",
        met=statistics.median(ratios) <= _LOOK,
    )
