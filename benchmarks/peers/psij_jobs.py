"""Submit with PSI/J's executor for Slurm, as its documentation shows; run by the tools' own interpreter."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from psij import Job, JobAttributes, JobExecutor, JobSpec, ResourceSpecV1
from psij.executors.batch.slurm import SlurmExecutorConfig

from benchmarks.peers.common import Asked, answer


def _work(asked: Asked) -> None:
    config = SlurmExecutorConfig(
        work_directory=Path(asked.directory),
        queue_polling_interval=asked.poll_s,
        initial_queue_polling_delay=asked.poll_s,
    )
    executor = JobExecutor.get_instance("slurm", config=config)
    jobs = [Job(_specification(asked)) for _ in range(asked.jobs)]
    for job in jobs:
        executor.submit(job)
    if asked.ends:
        for job in jobs:
            job.wait()


def _specification(asked: Asked) -> JobSpec:
    return JobSpec(
        executable="/bin/true",
        directory=asked.directory,
        inherit_environment=False,
        resources=ResourceSpecV1(node_count=1, processes_per_node=1, exclusive_node_use=False),
        attributes=JobAttributes(duration=timedelta(minutes=5), queue_name=asked.partition),
    )


answer(_work)
