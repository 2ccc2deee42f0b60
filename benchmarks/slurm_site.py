"""Lay out sites on a private Slurm, and do by hand there what a service does: submit, list, wait.

The cluster is the test suite's, on this machine, so that its controller takes processor time from both halves of a
pair. Jobs are held, so that none starts; what their scripts would do is not measured here.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from benchmarks.common import BenchSite, Run, cpu_s, make_site, wait_until
from edgecore.batch import ScriptValues, render_script
from edgecore.models import JobState
from edgecore.processes import user_name
from edgecore.reader import Reader

__all__ = ["WITH_SLURM", "Ground", "bare_command", "bare_loop", "ground", "submitted", "wait_until_submitted"]

PARALLEL: Final = 4
"""How many sbatch a service runs at once, and the bare loop beside it."""
WITH_SLURM: Final = (JobState.SUBMITTED, JobState.QUEUED, JobState.HELD, JobState.RUNNING)

_SCHEDULING: Final = """
driver = "slurm"
accounting = false
poll_interval_s = {poll_s}
commands_directory = "{commands}"
[scheduling.options.hold]
type = "boolean"
default = {held}
"""
_MAX_JOBS: Final = 50_000
_MORE: Final = """
[environment.set]
SLURM_CONF = "{conf}"
[limits]
max_queued = {most}
"""


@frozen
class Ground:
    """A cluster, perhaps a broker, and a directory for sites."""

    base: Path
    slurm: Any
    """The test suite's `Slurm`."""
    broker: Any = None
    """The test suite's `RabbitMQ`."""
    _numbers: Iterator[int] = field(factory=lambda: iter(range(10_000)))

    @property
    def environment(self) -> Mapping[str, str]:
        """What Slurm's commands need."""
        return {**os.environ, **self.slurm.environment, "LC_ALL": "C", "TZ": "UTC"}

    def site(
        self,
        *,
        most: int = 1_000_000,
        poll_s: float = 3600,
        tls: bool = False,
        queue: str = "bench",
        commands: str = "",
        held: bool = True,
    ) -> BenchSite:
        """Lay out a fresh site whose jobs are *held*; at most so many are with Slurm at any time."""
        base = self.base / f"site{next(self._numbers)}"
        broker = self.broker.settings() if tls else {"url": f"sqlite://{base}/queues.sqlite"}
        return make_site(
            base,
            messaging="\n".join(
                f"{key} = {json.dumps(value)}" for key, value in {**broker, "queue": queue}.items()
            ),
            scheduling=_SCHEDULING.format(poll_s=poll_s, commands=commands, held=json.dumps(held)),
            more=_MORE.format(conf=self.slurm.environment["SLURM_CONF"], most=most),
        )

    def clear(self) -> None:
        """Remove every job from the cluster."""
        subprocess.run(["scancel", "-u", user_name()], env=self.environment, check=True)
        wait_until(lambda: not self.waiting(), "no job is left", timeout_s=120)

    def waiting(self) -> Sequence[str]:
        """Return the ids of all jobs that wait."""
        command = ["squeue", "-h", "-r", "-t", "PENDING", "-o", "%i"]
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True)
        return done.stdout.split()


@contextmanager
def ground(base: Path, *, broker: bool = False, min_job_age_s: int = 2) -> Iterator[Ground]:
    """Run a cluster that forgets ended jobs after a time, and a broker where one is wanted and can be had."""
    from testbed.rabbitmq import RabbitMQ, why_missing
    from testbed.slurm import running_slurm

    settings = {"MaxJobCount": _MAX_JOBS, "MinJobAge": min_job_age_s}
    with running_slurm(base / "slurm", settings=settings) as slurm:
        if not broker or why_missing():
            yield Ground(base, slurm)
            return
        server = RabbitMQ(base / "broker")
        try:
            server.start()
            yield Ground(base, slurm, server)
        finally:
            server.close()


# ------------------------------------------------------------------------------- by hand


def script(place: Path) -> Path:
    """Write a batch script as a service writes them, without its token: it would abstain."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / "batch.sh"
    values = ScriptValues(
        title="site bench, job 1 (job), attempt 1",
        run=place,
        data=place,
        attempt=1,
        batch_id_text="$SLURM_JOB_ID",
        restartable=False,
        command=["/bin/true"],
        environment={"EDGECORE_JOB_ID": "1", "EDGECORE_JOB_NAME": "job", "EDGECORE_SITE": "bench"},
    )
    file.write_bytes(render_script(values))
    return file


def bare_command(file: Path, number: int, *more: str) -> Sequence[str]:
    """Return the command that submits a job as the driver does, of a shape that no other number has."""
    return [
        *("sbatch", "--parsable", f"--job-name=bare{number}", f"--chdir={file.parent}"),
        *("--output=slurm-%j.out", "--nodes=1", "--ntasks-per-node=1", f"--time={number + 1}"),
        *("--comment=edgecore site=bench job=1 attempt=1", "--export=NONE", "--no-requeue", *more, str(file)),
    ]


def bare_loop(on: Ground, count: int, *, parallel: int) -> Run:
    """Submit jobs by nothing but sbatch, so many at once; answers jobs per second and the loop's own CPU."""
    file = script(on.base / "bare")

    def submit(number: int) -> None:
        command = bare_command(file, number, "--hold")
        subprocess.run(command, env=on.environment, check=True, capture_output=True)

    cpu, begun = cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(parallel) as threads:
        list(threads.map(submit, range(count)))
    return Run(count / (time.perf_counter() - begun), (cpu_s() - cpu) * 1000 / count)


# -------------------------------------------------------------------------------- waiting


def submitted(reader: Reader) -> int:
    """Return how many jobs have a batch id."""
    counts = reader.counts()
    return sum(counts.get(state, 0) for state in WITH_SLURM)


def wait_until_submitted(reader: Reader, count: int) -> None:
    """Wait until so many jobs have a batch id, and all that is known was told to the sender."""
    wait_until(lambda: submitted(reader) == count, f"{count} jobs are with Slurm", every_s=0.05)
    wait_until(lambda: not reader.outbox(0, 1), "all was reported", every_s=0.05)
