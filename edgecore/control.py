"""Carry out what people ask of jobs: cancel, hold, release, retry, report."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import define, frozen

from edgecore.engine import Engine
from edgecore.models import Intent, Job, JobState
from edgecore.reader import Reader, Request
from edgecore.states import SETTLED
from edgecore.store import Change, Store, wake_directory
from edgecore.wakeup import Bell

__all__ = ["Control", "RequestWatch", "objection"]

log = logging.getLogger(__name__)

_LOOK_ANYWAY_S: Final = 30.0
_RETRIED: Final = (JobState.JOB_FAILED, JobState.LOST, JobState.SUBMIT_DISABLED)


def objection(command: str, job: Job) -> str | None:
    """Say why *command* makes no sense for a job as it is; None when it may be carried out."""
    if command == "report":
        return None
    if command == "retry":
        return None if job.state in _RETRIED else f"it is {job.state}; a retry is for {', '.join(_RETRIED)}"
    if job.state in SETTLED and (command, job.state) != ("cancel", JobState.SUBMIT_DISABLED):
        return f"it is {job.state} already"
    if command != "cancel" and job.intent is Intent.CANCELLED:
        return "it is being cancelled"
    return None


@frozen(kw_only=True)
class Control:
    """Do with a job what its owner or an operator asks."""

    engine: Engine
    store: Store
    retry: Callable[[Job], Change | str]
    fence: Callable[[Job], bool]

    def carry_out(self, command: str, job: Job, *, operator: bool) -> None:
        """Do *command* to *job*; what cannot be done is logged and changes nothing."""
        refusal = objection(command, job) or {
            "cancel": self._cancel,
            "hold": self._hold,
            "release": self._release,
            "retry": self._retry,
            "report": self._report,
        }[command](job, operator)
        if refusal:
            log.warning("cannot %s job %d: %s", command, job.id, refusal)
        else:
            log.info("%s job %d, as asked", command, job.id)

    def _cancel(self, job: Job, operator: bool) -> str | None:
        if job.state is JobState.SUBMIT_DISABLED:
            self.engine.submit_change(Change(job, (job.moved(JobState.JOB_CANCELLED, self.store.now()),)))
            return None
        if job.state is JobState.LOST and operator:
            self.fence(job)  # an operator knows that nothing of it lives
        self.engine.want(job.id, Intent.CANCELLED)
        return None

    def _hold(self, job: Job, operator: bool) -> str | None:
        self.engine.want(job.id, Intent.HELD)
        return None

    def _release(self, job: Job, operator: bool) -> str | None:
        self.engine.want(job.id, Intent.RUN)
        return None

    def _retry(self, job: Job, operator: bool) -> str | None:
        outcome = self.retry(job)
        if isinstance(outcome, str):
            return outcome
        self.store.set_intent(job.id, Intent.RUN)
        self.engine.submit_change(outcome)
        return None

    def _report(self, job: Job, operator: bool) -> str | None:
        self.store.report(job)
        self.engine.on_commit()
        return None


@define(eq=False)
class RequestWatch:
    """Wait for requests that operators put into the store, and have them carried out."""

    store_path: Path
    store: Store
    control: Control
    _bell: Bell | None = None
    _stopping: bool = False

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own."""
        self._bell = Bell(wake_directory(self.store_path))
        thread = threading.Thread(target=self._run, name="edgecore-requests", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Make the thread end soon."""
        self._stopping = True
        if self._bell is not None:
            self._bell.ring()

    def _run(self) -> None:
        assert self._bell is not None
        last = 0
        with Reader(self.store_path) as reader:
            while not self._stopping:
                for request in reader.requests(last):
                    last = request.id
                    self._serve(request, reader)
                self._bell.wait(_LOOK_ANYWAY_S)
        self._bell.close()

    def _serve(self, request: Request, reader: Reader) -> None:
        job = self.control.engine.jobs.get(request.job_id) or reader.job(request.job_id)
        asked = f"{request.asked_by} asked to {request.command} job {request.job_id}"
        try:
            if job is None:
                log.warning("%s, which there is not", asked)
            else:
                self.control.carry_out(request.command, job, operator=True)
        except OSError as error:
            log.error("%s, which failed: %s", asked, error)
        self.store.request_done(request.id)
