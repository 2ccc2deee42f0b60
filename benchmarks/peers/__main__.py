"""Measure in interleaved rounds, whose order turns, and print the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.common import BenchSite, Row, Service, place, show, spread, wait_until
from benchmarks.peers.common import Asked, Measured
from benchmarks.slurm_site import Ground, ground, wait_until_submitted
from edgecore.models import JobState
from edgecore.reader import Reader

__all__ = ["main"]

_HERE: Final = Path(__file__).parent
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_WAITS, _RUNS = "down", "batch"
"""Partitions of the cluster: the nodes of the first start nothing."""
_POLL_S: Final = 2

Way = Callable[[Asked], Measured]


def main() -> None:
    """Measure all tools, or say what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs and rounds; for a first look")
    parser.add_argument("--environment", type=Path, default=_cache(), help="where the tools are installed")
    chosen = parser.parse_args()
    sys.path.append(str(_HERE.parents[1] / "tests"))  # the cluster is the test suite's
    from testbed.slurm import missing_slurm

    if missing := missing_slurm():
        print(missing)
        return
    python = _interpreter(chosen.environment)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, load {load} before the start")
    print(f"with {_versions(python)}")
    waiting, running, rounds = (50, 20, 3) if chosen.quick else (200, 100, 5)
    with place() as base, ground(base, min_job_age_s=300) as on:
        print(on.slurm.run("sbatch", "--version"))
        _compare(on, python, Asked(waiting, _WAITS, "", ends=False, poll_s=3600), rounds)
        _compare(on, python, Asked(running, _RUNS, "", ends=True, poll_s=_POLL_S), rounds)


# ------------------------------------------------------------------------------ the tools


def _cache() -> Path:
    place_ = os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache"
    return Path(place_) / "edgecore" / "benchmarks-peers"


def _interpreter(environment: Path) -> Path:
    """Return the tools' interpreter; installs them where that was not done with these versions."""
    python, note = environment / "bin" / "python", environment / "requirements.txt"
    wanted = (_HERE / "requirements.txt").read_text()
    if not note.is_file() or note.read_text() != wanted:
        print(f"installing PSI/J and Parsl into {environment}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(_HERE / "requirements.txt")]
        subprocess.run(install, check=True)
        note.write_text(wanted)
    return python


def _versions(python: Path) -> str:
    listed = subprocess.run([str(python), "-m", "pip", "list"], check=True, capture_output=True, text=True)
    lines = [line.split() for line in listed.stdout.splitlines()]
    return ", ".join(" ".join(line) for line in lines if line and line[0] in ("parsl", "psij-python"))


# -------------------------------------------------------------------------------- measuring


def _compare(on: Ground, python: Path, asked: Asked, rounds: int) -> None:
    ways: Mapping[str, Way] = {
        "edgecore, like jobs": partial(_ours, on, like=True),
        "edgecore, unlike jobs": partial(_ours, on, like=False),
        "PSI/J": partial(_theirs, on, python, "psij_jobs.py"),
        "Parsl's SlurmProvider": partial(_theirs, on, python, "parsl_jobs.py"),
    }
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(ways[name](asked))
            on.clear()
    rows = [_row(name, measured, found["PSI/J"], asked) for name, measured in found.items()]
    until = f"until all ends are known, a poll every {asked.poll_s} s" if asked.ends else "until all have ids"
    show(f"{asked.jobs} jobs, {until}; jobs per second; ratio to PSI/J", rows)


def _row(name: str, measured: list[Measured], others: list[Measured], asked: Asked) -> Row:
    own, commands = (
        statistics.median(getattr(each, field) for each in measured) * 1000 / asked.jobs
        for field in ("cpu_s", "commands_s")
    )
    ratios = [other.seconds / each.seconds for each, other in zip(measured, others, strict=True)]
    return Row(
        what=name,
        found=spread([asked.jobs / each.seconds for each in measured], ".0f"),
        ratio=spread(ratios),
        cpu=f"{own:.1f} + {commands:.1f} of commands, ms each",
    )


def _theirs(on: Ground, python: Path, program: str, asked: Asked) -> Measured:
    directory = on.base / f"theirs{time.time_ns()}"
    directory.mkdir()
    order = json.dumps({**asdict(asked), "directory": str(directory)})
    done = subprocess.run(
        [str(python), str(_HERE / program), order],
        env={**on.environment, "PYTHONPATH": str(_HERE.parents[1])},
        cwd=directory,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _ours(on: Ground, asked: Asked, *, like: bool) -> Measured:
    """Send the same jobs to an idle service."""
    site = on.site(poll_s=asked.poll_s, held=False)
    jobs = [
        site.job(queue=asked.partition, processes_per_node=1, wall_time_minutes=5 if like else number + 1)
        for number in range(asked.jobs)
    ]
    with Service(site) as service, Reader(site.config.store) as reader:
        before, begun = _used(service.process.pid), time.perf_counter()
        site.send(jobs)
        _wait(site, reader, asked)
        seconds, after = time.perf_counter() - begun, _used(service.process.pid)
    return Measured(seconds, after[0] - before[0], after[1] - before[1])


def _wait(site: BenchSite, reader: Reader, asked: Asked) -> None:
    if not asked.ends:
        wait_until_submitted(reader, asked.jobs)
        return
    finished = JobState.JOB_FINISHED
    wait_until(lambda: reader.counts().get(finished, 0) == asked.jobs, "all have ended", every_s=0.05)
    wait_until(lambda: not reader.outbox(0, 1), "all was reported", every_s=0.05)


def _used(pid: int) -> tuple[float, float]:
    """Return the CPU of a process, and that of the commands that it waited for, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    own, commands = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return own / _TICKS_PER_S, commands / _TICKS_PER_S


if __name__ == "__main__":
    main()
