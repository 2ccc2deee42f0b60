"""Carry out what people ask of jobs: cancel, hold, release, retry, report."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from attrs import define, evolve, field, frozen

from edgecore.engine import Engine
from edgecore.errors import EdgeError, StoreError
from edgecore.logs import about
from edgecore.models import Intent, Job, JobState
from edgecore.reader import Reader, Request
from edgecore.states import AT_BATCH_SYSTEM, SETTLED
from edgecore.store import Change, Store
from edgecore.store_file import wake_directory
from edgecore.wakeup import Bell

__all__ = ["Control", "RequestWatch", "objection"]

log = logging.getLogger(__name__)

_LOOK_ANYWAY_S: Final = 30.0
_RETRIED: Final = (JobState.JOB_FAILED, JobState.LOST, JobState.SUBMIT_DISABLED)


def objection(command: str, job: Job, *, from_start: bool = False) -> str | None:
    """Say why *command* makes no sense for a job as it is; None when it may be carried out."""
    if from_start and command != "retry":
        return f"from_start belongs to a retry, not to a {command}"
    if from_start and job.state is not JobState.JOB_FAILED:
        return f"it is {job.state}; a retry from the start is for JOB_FAILED"
    if command == "report":
        return None
    if command == "retry" and job.state not in _RETRIED:
        return f"it is {job.state}; a retry is for {', '.join(_RETRIED)}"
    if command == "retry" and job.state in SETTLED:
        return None
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
    retry: Callable[[Job, bool], Change | str]
    """Resumes a job where it failed or, where so asked, from its start."""
    fence: Callable[[Job], bool]
    can_hold: bool = True
    """Whether the batch system can hold what was submitted."""

    def carry_out(self, command: str, job: Job, *, operator: bool, from_start: bool = False) -> Future[None]:
        """Do *command* to *job*; what cannot be done is logged and changes nothing.

        The answer is done when what was asked is durable; a request may be forgotten only then.
        """
        refusal = objection(command, job, from_start=from_start)
        if refusal is not None:
            _refused(command, job, refusal)
            return _nothing_to_do()
        if command == "hold" and not self.can_hold and job.state in AT_BATCH_SYSTEM:
            _refused(command, job, "this batch system cannot hold what was submitted")
            return _nothing_to_do()
        log.info("%s job %d, as asked", command, job.id, extra=about(job))
        if command == "cancel":
            return self._cancel(job, operator)
        if command == "retry":
            return self._retry(job, operator, from_start)
        if command == "report":
            return self._report(job)
        return self.engine.want(job.id, Intent.HELD if command == "hold" else Intent.RUN)

    def _cancel(self, job: Job, operator: bool) -> Future[None]:
        if job.state is JobState.SUBMIT_DISABLED:
            return self.engine.change(job, self._cancelled)
        wanted = self.engine.want(job.id, Intent.CANCELLED)
        if job.state is JobState.LOST and operator:
            wanted.result()  # first: what a look makes of the token depends on what is wanted
            self.fence(job)  # an operator knows that nothing of it lives
        return wanted

    def _cancelled(self, job: Job) -> Change | None:
        if job.state is not JobState.SUBMIT_DISABLED:
            return None
        return Change(job, (job.moved(JobState.JOB_CANCELLED, self.store.now(), "cancelled"),))

    def _retry(self, job: Job, operator: bool, from_start: bool) -> Future[None]:
        def objected(now: Job) -> str | None:
            if now.state is JobState.LOST and not operator:
                return "it is LOST, and only an operator can know that nothing of it lives"
            return objection("retry", now, from_start=from_start)

        def make(now: Job) -> Change | None:
            outcome = objected(now) or self.retry(evolve(now, intent=Intent.RUN), from_start)
            if isinstance(outcome, Change):
                return outcome
            _refused("retry", now, outcome)
            return None

        if refusal := objected(job):  # nothing of it may change, also not what is wanted of it
            _refused("retry", job, refusal)
            return _nothing_to_do()
        self.engine.want(job.id, Intent.RUN, revive=True)
        return self.engine.change(job, make)

    def _report(self, job: Job) -> Future[None]:
        written = self.store.report(job)
        written.add_done_callback(lambda _: self.engine.on_commit())
        return written


def _refused(command: str, job: Job, refusal: str) -> None:
    log.warning("cannot %s job %d: %s", command, job.id, refusal, extra=about(job))


def _nothing_to_do() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done


@define(eq=False)
class RequestWatch:
    """Wait for requests that operators put into the store, and have them carried out."""

    store_path: Path
    store: Store
    control: Control
    _bell: Bell | None = None
    _stopping: bool = False
    _begun: set[int] = field(init=False, factory=set)
    """Requests that are being carried out, or were; also what only another start may do better."""

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own. Raises StoreUnusable."""
        reader = Reader(self.store_path)
        self._bell = Bell(wake_directory(self.store_path))
        thread = threading.Thread(target=self._run, args=(reader,), name="edgecore-requests", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Make the thread end soon."""
        self._stopping = True
        if self._bell is not None:
            self._bell.ring()

    def _run(self, reader: Reader) -> None:
        assert self._bell is not None
        with reader:
            while not self._stopping:
                try:
                    for request in reader.requests(0):
                        if request.id not in self._begun:
                            self._begun.add(request.id)
                            self._serve(request, reader)
                except EdgeError as error:  # the store's trouble of the moment must not end this for good
                    log.warning("requests cannot be read, and are looked for again: %s", error)
                self._bell.wait(_LOOK_ANYWAY_S)
        self._bell.close()

    def _serve(self, request: Request, reader: Reader) -> None:
        asked = f"{request.asked_by} asked to {request.command} job {request.job_id}"
        try:
            done = self._carried_out(request, reader, asked)
        except Exception as error:  # whatever one request meets, the next ones are served
            done = Future()
            done.set_exception(error)

        def forget(carried_out: Future[None]) -> None:
            error = carried_out.exception()
            if error is None:
                self.store.request_done(request.id)
                return
            passing = isinstance(error, StoreError)
            words = "%s, which failed and will be tried again%s: %s"
            log.error(
                words, asked, "" if passing else " at the next start", error, extra={"job": request.job_id}
            )
            if passing:  # trouble of the moment: found again at the next look
                self._begun.discard(request.id)

        done.add_done_callback(forget)

    def _carried_out(self, request: Request, reader: Reader, asked: str) -> Future[None]:
        job = self.control.engine.jobs.get(request.job_id) or reader.job(request.job_id)
        if job is None:
            log.warning("%s, which there is not", asked, extra={"job": request.job_id})
            return _nothing_to_do()
        return self.control.carry_out(request.command, job, operator=True, from_start=request.from_start)
