"""Know what a job has at this site: its application, its directories, its environment, its time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from attrs import frozen

from edgecore import batch
from edgecore.clock import Clock, iso, microseconds
from edgecore.config import SiteConfig
from edgecore.errors import ActionFailed
from edgecore.models import Application, Job

__all__ = ["Workplace", "program_mark", "programs_of", "too_late"]

_PROGRAM_OF: Final = "EDGECORE_PROGRAM_OF"


def programs_of(store: Path) -> tuple[bytes]:
    """Return by what in their environment operators' programs are known that a service with this store has started."""
    return (os.fsencode(f"{_PROGRAM_OF}={store}"),)


def program_mark(store: Path) -> Mapping[str, str]:
    """Return that part of their environment."""
    return {_PROGRAM_OF: str(store)}


def too_late(job: Job, now: int) -> str:
    """Say that a job is not to be submitted any more at a time (microseconds UTC); empty where it still is."""
    if job.definition.not_after is None:
        return ""
    limit = microseconds(datetime.fromisoformat(job.definition.not_after))
    return f"it was not to be submitted after {iso(limit)}" if now > limit else ""


@frozen(kw_only=True)
class Workplace:
    """Answer what every action asks about its job."""

    config: SiteConfig
    catalogue: Callable[[str], Application | None]
    clock: Clock

    def application(self, job: Job) -> Application:
        """Return the job's application. Raises ActionFailed when it is not registered any more."""
        application = self.catalogue(job.definition.application)
        if application is None:
            raise ActionFailed(f"the application {job.definition.application} is not registered any more")
        return application

    def directory(self, job: Job) -> Path:
        """Return the job's own directory, where our notes about it are."""
        return batch.job_directory(self.config.work_directory, job.id)

    def data(self, job: Job) -> Path:
        """Return the job's data directory, made where it was not there."""
        data = batch.data_directory(self.config.work_directory, job.id)
        # Directories that were staged in keep their modes: nobody else may even reach one that is open to all.
        data.parent.mkdir(0o700, parents=True, exist_ok=True)
        data.mkdir(exist_ok=True)
        return data

    def run(self, job: Job, attempt: int | None = None) -> batch.RunDirectory:
        """Return the run directory of that attempt, or of the job's latest."""
        if attempt is None:
            assert job.attempt is not None
            attempt = job.attempt.number
        return batch.run_directory(self.config.work_directory, job.id, attempt)

    def environment(self, job: Job) -> Mapping[str, str]:
        """Return what an operator's program and an application learn of their job."""
        return {
            "EDGECORE_JOB_ID": str(job.id),
            "EDGECORE_JOB_NAME": job.name,
            "EDGECORE_SITE": self.config.site,
            "EDGECORE_NODES": str(job.definition.num_nodes),
            "EDGECORE_PROCESSES_PER_NODE": str(job.definition.processes_per_node),
        }

    def program_environment(self, job: Job) -> Mapping[str, str]:
        """Return the whole environment of an operator's program."""
        mark = program_mark(self.config.store)
        return {**self.config.context.environment, **self.environment(job), **mark}

    def check_in_time(self, job: Job) -> None:
        """Raise ActionFailed when it is too late for the job."""
        if words := too_late(job, self.clock.now()):
            raise ActionFailed(words)
