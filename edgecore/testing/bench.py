"""Run jobs through a whole Balsam on a batch system that is spoiled meanwhile, and close the books afterwards.

A test says which end is the true one. The books are three, kept by parties that do not know each
other: what the service says of its jobs, what the applications noted when they started, and what the
batch system started.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import define

from edgecore import batch
from edgecore.desk import Desk
from edgecore.models import Job, JobState
from edgecore.states import SETTLED
from edgecore.testing.batch_system import BatchSystem, NativeJob
from edgecore.testing.doomed import LOOK_FAILED, LOOKED
from edgecore.testing.site import DEADLINE_S, Site, make_site, wait_for

__all__ = ["PATIENT_S", "Bench"]

PATIENT_S: Final = 3_600.0
"""A time that no test waits for."""

_TIMING: Final = {
    "poll_interval_s": 0.1,
    "grace_s": 0.3,
    "lost_after_s": 0.6,
    "walltime_margin_s": 0,
    "drain_s": 20,
}
_LOOKS: Final = math.ceil(_TIMING["grace_s"] / _TIMING["poll_interval_s"]) + 4
"""From the first listing to the last but two it is longer than the grace; then there is time to write what follows from that."""
_UNEXPECTED: Final = ("Traceback (most recent call last)", "WrongAnswer", "CRITICAL")
"""What no service logs whose driver keeps its contract."""


@define(eq=False)
class Bench:
    """One site on one batch system.

    Its applications are ``quick``, ``fails`` (exit code 3), ``patient`` (ends when it is let), and
    ``restartable`` (patient, and may be started again).
    """

    system: BatchSystem
    site: Site

    @classmethod
    def make(cls, base: Path, driver: str, system: BatchSystem, timing: dict[str, float]) -> Bench:
        """Lay out a site for *driver*; *timing* says what the test needs to be quick or patient about."""
        site = make_site(
            base,
            scheduling={"driver": driver, **system.settings},
            environment=system.environment,
            timing={**_TIMING, **timing},
        )
        site.add_ledger("quick")
        site.add_ledger("fails", code=3)
        site.add_ledger("patient", waits=True)
        site.add_ledger("restartable", waits=True, restartable=True)
        return cls(system, site)

    # --------------------------------------------------------------------------------- acting

    @contextlib.contextmanager
    def service(self, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run the service; drained at the end."""
        with self.site.service(**options) as process:
            yield process
            assert process.poll() is None, f"the service has ended: {self.site.diagnosis()}"

    def submit(self, application: str = "quick", name: str = "job", **more: Any) -> None:
        """Send the definition of a job."""
        self.site.send(self.site.job(name=name, application=application, **more))

    def start(self, application: str = "patient", name: str = "job", **more: Any) -> Job:
        """Send a job and wait until its application runs."""
        self.submit(application, name, **more)
        job = self.wait(name, JobState.RUNNING)
        wait_for(lambda: self.site.starts().get(job.id), DEADLINE_S, self.site.diagnosis)
        return job

    def queue(self, application: str = "quick", name: str = "job", **more: Any) -> Job:
        """Send a job to a batch system that is paused, and wait until it is known to wait there."""
        self.system.pause()
        self.submit(application, name, **more)
        return self.wait(name, JobState.QUEUED)

    def cancel(self, name: str = "job") -> None:
        """Ask for the end of a job, as an operator does."""
        Desk(self.site.config.store).request("cancel", self.job(name).id, asked_by="operator", now=1)

    # -------------------------------------------------------------------------------- looking

    def job(self, name: str = "job") -> Job:
        """Return a job as the service knows it."""
        job = self.site.named(name)
        assert job is not None, f"no job {name}: {self.site.diagnosis()}"
        return job

    def batch_id(self, name: str = "job") -> str:
        """Return the batch id of a job's latest attempt."""
        job = self.job(name)
        assert job.attempt is not None
        assert job.attempt.batch_id is not None
        return job.attempt.batch_id

    def native(self, batch_id: str) -> NativeJob:
        """Return the latest job of ours under *batch_id*, as the batch system itself knows it."""
        return [job for job in self.system.jobs() if job.batch_id == batch_id][-1]

    def states(self, name: str = "job") -> list[str]:
        """Return the states that a job has had."""
        return list(map(str, self.site.states(self.job(name).id)))

    def token(self, attempt: int = 1, name: str = "job") -> str:
        """Return the state of an attempt's token."""
        run = batch.run_directory(self.site.config.work_directory, self.job(name).id, attempt)
        token = run.token()
        return "none" if token is None else str(token.state)

    # -------------------------------------------------------------------------------- waiting

    def wait(self, name: str, state: JobState, times: int = 1) -> Job:
        """Wait until a job has been in *state*, and that often."""

        def reached() -> bool:
            job = self.site.named(name)
            return job is not None and self.site.states(job.id).count(state) >= times

        wait_for(reached, DEADLINE_S, lambda: f"{name} {state}: {self.site.diagnosis()}")
        return self.job(name)

    def wait_token(self, state: str, attempt: int = 1, name: str = "job") -> None:
        """Wait until the token of an attempt is in *state*."""
        wait_for(lambda: self.token(attempt, name) == state, DEADLINE_S, self.site.diagnosis)

    def wait_message(self, words: str, name: str = "job") -> None:
        """Wait until a job's message has these *words*, in whatever case."""
        wait_for(lambda: words in self.job(name).message.lower(), DEADLINE_S, self.site.diagnosis)

    def wait_log(self, words: str, times: int = 1) -> None:
        """Wait until the service has logged *words* so often in all."""
        wait_for(lambda: self.site.log.count(words) >= times, DEADLINE_S, self.site.diagnosis)

    def wait_looks(self) -> None:
        """Wait until so many more listings were answered that an end that was wrongly believed would show, or no job is left."""
        wanted = self.site.log.count(LOOKED) + _LOOKS

        def looked() -> bool:
            settled = all(job.state in SETTLED for job in self.site.jobs())
            return settled or self.site.log.count(LOOKED) >= wanted

        wait_for(looked, DEADLINE_S, self.site.diagnosis)

    def wait_questions(self, more: int = 3) -> None:
        """Wait until so many more listings were asked for, answered or not."""

        def asked() -> int:
            log = self.site.log
            return log.count(LOOKED) + log.count(LOOK_FAILED)

        wanted = asked() + more
        wait_for(lambda: asked() >= wanted, DEADLINE_S, self.site.diagnosis)

    def wait_failed_looks(self, more: int = 1) -> None:
        """Wait until so many more listings were not answered."""
        self.wait_log(LOOK_FAILED, self.site.log.count(LOOK_FAILED) + more)

    # --------------------------------------------------------------------------- the true end

    def end(
        self, name: str, state: JobState, *, exit_code: int | None = 0, attempt: int = 1, words: str = ""
    ) -> Job:
        """Wait until a job is settled; it must be in *state*, of that *attempt*, and its last message say so."""

        def settled() -> bool:
            job = self.site.named(name)
            return job is not None and job.state in SETTLED

        wait_for(settled, DEADLINE_S, self.site.diagnosis)
        job = self.job(name)
        assert job.state is state, self.site.diagnosis()
        assert job.attempt is not None
        assert (job.attempt.number, job.attempt.exit_code) == (attempt, exit_code), self.site.diagnosis()
        assert words in job.message.lower(), self.site.diagnosis()
        return job

    def close_books(self, starts: dict[str, int], *, executions: int | None = None) -> None:
        """Compare what the service says with what applications noted and the batch system started.

        *starts* is how often each job's application started; *executions* how often batch scripts did,
        where some of them found that they may not run.
        """
        assert all(job.state in SETTLED for job in self.site.jobs()), self.site.diagnosis()
        noted = self.site.starts()
        assert starts == {job.name: noted.get(job.id, 0) for job in self.site.jobs()}, self.site.diagnosis()
        natively = sum(job.executions for job in self.system.jobs())
        expected = sum(starts.values()) if executions is None else executions
        assert expected == natively, f"{self.system.jobs()} {self.site.diagnosis()}"
        self.site.check_statuses()
        for words in _UNEXPECTED:
            assert words not in self.site.log, self.site.diagnosis()
