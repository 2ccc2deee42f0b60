"""Run jobs at one site: the actions behind each state of a job.

Every action may be run again after a crash at any point, and decides nothing by what it remembers:
only by the job as committed, the token of its attempt and the batch system's answers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from attrs import define, field

from edgecore import applications, batch, commands, serial
from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.credentials import Credentials
from edgecore.drivers import SchedulingRelay, TransferRelay
from edgecore.engine import Engine
from edgecore.errors import ActionFailed, DefinitionError, StoreError
from edgecore.evidence import Patience, WaitLimits
from edgecore.graph import Graph, Outcome, Step, Watch
from edgecore.logs import about
from edgecore.models import Application, Attempt, Job, JobState
from edgecore.parts import new_file
from edgecore.settings import find_configuration
from edgecore.staging import Staging
from edgecore.states import AT_BATCH_SYSTEM, RESUMES_AT
from edgecore.store import Change, Store
from edgecore.submitting import Submitting, alike
from edgecore.watching import Watching
from edgecore.workplace import Workplace

__all__ = ["Actions"]

log = logging.getLogger(__name__)
S = JobState
T = TypeVar("T")

LANES: Final = ("staging", "processing", "submitting", "observing")
_FOR_EVER_US: Final = 2**62


@define(eq=False, kw_only=True)
class Actions:
    """What Balsam does with a job, state by state."""

    config: SiteConfig
    store: Store
    scheduling: SchedulingRelay
    transfers: Mapping[str, TransferRelay]
    """Prefix -> the driver that is configured for it."""
    catalogue: Callable[[str], Application | None]
    clock: Clock = field(factory=Clock)
    check_place: Callable[[], None] = lambda: None
    """Raises OSError where the work directory cannot be used at present; asked before every action."""
    credentials: Credentials = field(factory=Credentials)
    said: Callable[[Job, JobState], str] = lambda job, state: job.message
    """Returns what was reported when a job last came to a state; its message may tell of a wait since then."""
    engine: Engine = field(init=False)
    """Set by who makes the engine from our graph."""
    _place: Workplace = field(init=False)

    @_place.default
    def _make_place(self) -> Workplace:
        return Workplace(config=self.config, catalogue=self.catalogue, clock=self.clock)

    # -------------------------------------------------------------------------- the graph

    def graph(self) -> Graph:
        """Return the way of a job through this site."""
        profile = self.scheduling.profile
        watching, submitting, staging = self._watching(), self._submitting(), self._staging()
        return Graph(
            steps={
                S.CREATED: Step(
                    lane="staging",
                    action=self._each(self.credentials.awaited(staging.stage_in, _source)),
                    failed=S.STAGE_IN_FAILED,
                    kept_out=lambda job: self.credentials.missing(_source(job)),
                    instant=self._no_input,
                ),
                S.STAGED_IN: Step(
                    lane="processing",
                    action=self._each(self._preprocess),
                    failed=S.PREPROCESS_FAILED,
                    instant=self._no_preprocess,
                ),
                S.PREPROCESSED: Step(
                    lane="submitting",
                    action=self._in_place(submitting.submit),
                    failed=S.SUBMIT_FAILED,
                    alike=alike,
                    largest=profile.max_group,
                    room=submitting.room if self.config.limits.max_queued else None,
                ),
                S.EXECUTION_FINISHED: Step(
                    lane="processing",
                    action=self._each(self._postprocess),
                    failed=S.POSTPROCESS_FAILED,
                    instant=self._no_postprocess,
                ),
                S.EXECUTION_FAILED: Step(
                    lane="staging",
                    action=self._each(self.credentials.awaited(staging.stage_out_failed, _target)),
                    kept_out=lambda job: self.credentials.missing(_target(job)),
                    failed=S.JOB_FAILED,
                    instant=self._after_failure,
                ),
                S.POSTPROCESSED: Step(
                    lane="staging",
                    action=self._each(self.credentials.awaited(staging.stage_out, _target)),
                    kept_out=lambda job: self.credentials.missing(_target(job)),
                    failed=S.STAGE_OUT_FAILED,
                    instant=self._no_output,
                ),
                S.STAGED_OUT: Step(
                    lane="staging",
                    action=self._each(self._finish),
                    failed=S.JOB_FAILED,
                    instant=self._finished,
                ),
            },
            watch=Watch(
                states=AT_BATCH_SYSTEM | {S.SUBMITTING},
                look=self._in_place(watching.look),
                interval_s=self.config.timing.poll_interval_s or profile.poll_interval_s,
            ),
            cancelled=self._cancelled,
            give_up=self.give_up,
        )

    def _watching(self) -> Watching:
        return Watching(
            scheduling=self.scheduling,
            work=self.config.work_directory,
            clock=self.clock,
            patience=self._patience,
            limits=self._wait_limits(),
            alarm=lambda subject, message: self.engine.alarms.raise_once(subject, message),
            clear=lambda subject, message: self.engine.alarms.clear(subject, message),
            give_up=self.give_up,
            wait_us=self._wait_us,
        )

    def _submitting(self) -> Submitting:
        return Submitting(
            place=self._place,
            scheduling=self.scheduling,
            commit=lambda changes: self.engine.commit(changes),
            give_up=self.give_up,
            wait_us=self._wait_us,
        )

    def _staging(self) -> Staging:
        return Staging(
            config=self.config,
            place=self._place,
            transfers=self.transfers,
            clock=self.clock,
            unwanted=lambda job_id: self.engine.unwanted(job_id),
            note=self.store.note,
            why_failed=self._why_failed,
        )

    def lanes(self) -> Mapping[str, int]:
        """Return how many threads each lane has."""
        limits = self.config.limits
        threads = (limits.staging, limits.processing, self.scheduling.profile.parallel_submits, 1)
        return dict(zip(LANES, threads, strict=True))

    def _each(self, action: Callable[[Job], Outcome]) -> Callable[[Sequence[Job]], Mapping[int, Outcome]]:
        return self._in_place(lambda jobs: {job.id: action(job) for job in jobs})

    def _in_place(self, action: Callable[[Sequence[Job]], T]) -> Callable[[Sequence[Job]], T]:
        """Let an action begin only where the work directory is what it was."""

        def checked(jobs: Sequence[Job]) -> T:
            self.check_place()
            return action(jobs)

        return checked

    def _patience(self, job: Job) -> Patience:
        timing = self.config.timing
        walltime_s = job.definition.wall_time_minutes * 60 + timing.walltime_margin_s
        return Patience(
            grace=round(timing.grace_s * 1e6),
            lost_after=round(timing.lost_after_s * 1e6),
            walltime=round(walltime_s * 1e6) if self.scheduling.profile.enforces_walltime else _FOR_EVER_US,
        )

    def _wait_limits(self) -> WaitLimits:
        timing = self.config.timing
        overdue_s = timing.overdue_after_s
        return WaitLimits(
            stuck=round(timing.stuck_after_s * 1e6),
            overdue=None if overdue_s is None else round(overdue_s * 1e6),
        )

    # ------------------------------------------------------------------------- both ends

    def give_up(self, job: Job, failed: JobState, reason: str, attempt: Attempt | None = None) -> Change:
        """End a job at a step that failed for good; *attempt* replaces what is known of its latest."""
        if job.state is S.EXECUTION_FAILED:
            message = f"{self._why_failed(job)}; and its output was not staged out: {reason}"
            return Change(job, (job.moved(S.JOB_FAILED, self.clock.now(), message),))
        at = job.moved(failed, self.clock.now(), reason, failed_state=failed, attempt=attempt)
        return Change(job, (at, at.moved(S.JOB_FAILED, self.clock.now(), reason)))

    def _why_failed(self, job: Job) -> str:
        """Return why the execution of a job failed, whatever it has waited for since."""
        try:
            return self.said(job, S.EXECUTION_FAILED)
        except StoreError as error:
            log.warning("job %d: why it failed cannot be read: %s", job.id, error, extra=about(job))
            return job.message

    def retry(self, job: Job, from_start: bool = False) -> Change | str:
        """Return the change that resumes a job where it failed or *from_start*, or why that cannot be."""
        now = self.clock.now()
        if job.state is S.JOB_FAILED and job.failed_state is not None:
            if from_start:
                return Change(job, (job.moved(S.CREATED, now, "retried by an operator, from its input on"),))
            state, message = RESUMES_AT[job.failed_state], "retried by an operator"
            if state is not S.CREATED and not self._place.directory(job).is_dir():
                why = "its directory was removed" if _had_directory(job) else "it has no directory"
                state, message = S.CREATED, f"{message}, from its input on: {why}"
            return Change(job, (job.moved(state, now, message),))
        if job.state is S.SUBMIT_DISABLED:
            return Change(job, (job.moved(S.PREPROCESSED, now, "retried by an operator"),))
        if job.state is S.LOST:
            fenced = self.fence(job)
            if fenced:
                self.engine.alarms.clear(f"job {job.id}", "declared dead by an operator")
                ended = job.moved(S.EXECUTION_FAILED, now, "declared dead by an operator")
                return Change(job, (ended, ended.moved(S.PREPROCESSED, now, "retried by an operator")))
            return "it has moved on just now; look again"
        return f"it is {job.state}; a retry is for JOB_FAILED, LOST and SUBMIT_DISABLED"

    def fence(self, job: Job) -> bool:
        """Take the token of a lost attempt away, on an operator's word that nothing of it lives."""
        run = self._place.run(job)
        token = run.token()
        if token is None:
            return run.abandon()
        if token.state is batch.TokenState.READY:
            return run.revoke()
        return token.state in (batch.TokenState.RUNNING, batch.TokenState.PAUSED) and run.stop(token)

    def _cancelled(self, job: Job) -> Job | None:
        return job.moved(S.JOB_CANCELLED, self.clock.now(), "cancelled")

    def _finished(self, job: Job) -> Job:
        return job.moved(S.JOB_FINISHED, self.clock.now())

    def _finish(self, job: Job) -> Change:
        return Change(job, (self._finished(job),))

    # --------------------------------------------------------------------------- staging

    def _no_input(self, job: Job) -> Job | None:
        return None if job.definition.input_url else job.moved(S.STAGED_IN, self.clock.now())

    def _no_output(self, job: Job) -> Job | None:
        return None if job.definition.output_url else job.moved(S.STAGED_OUT, self.clock.now())

    # ------------------------------------------------------------------------ processing

    def _no_preprocess(self, job: Job) -> Job | None:
        """Plan a job at once where neither a program of the operator nor a file of the user has a say in it."""
        definition, application = job.definition, self.catalogue(job.definition.application)
        if application is None or application.preprocess or application.config_script:
            return None
        if definition.config_file or definition.scheduler_config or definition.not_after:
            return None
        try:
            return self._planned(job, application, None)
        except DefinitionError:  # the action says why
            return None

    def _preprocess(self, job: Job) -> Change:
        self._place.check_in_time(job)
        application = self._place.application(job)
        data = self._place.data(job)
        if application.preprocess:
            self._script(job, application, application.preprocess)
        arguments = self._arguments(job, application, data) if application.config_script else None
        return Change(job, (self._planned(job, application, arguments),))

    def _planned(self, job: Job, application: Application, arguments: tuple[str, ...] | None) -> Job:
        data = batch.data_directory(self.config.work_directory, job.id)
        try:
            plan = applications.make_plan(
                application, job.definition, data, self.config.scheduling.options, arguments=arguments
            )
        except DefinitionError as error:
            if error.__cause__ is not None:
                log.warning("job %d cannot be prepared: %s", job.id, error.__cause__, extra=about(job))
            raise
        return job.moved(S.PREPROCESSED, self.clock.now(), plan=plan)

    def _arguments(self, job: Job, application: Application, data: Path) -> tuple[str, ...]:
        """Let the operator's config_script build the argument list from the user's file."""
        assert application.config_script is not None
        files = []
        if job.definition.config_file:
            place = Path(application.directory) if application.directory else None
            found = find_configuration(job.definition.config_file, data, place)
            # A copy of ours: nobody can exchange it between our look and the script's.
            copy = self._place.directory(job) / "config_file"
            with new_file(copy) as opened:
                opened.write(found.content)
            files = [str(copy)]
        output = self._script(job, application, application.config_script, *files)
        return applications.parse_config_script_output(output, application.config_script)

    def _no_postprocess(self, job: Job) -> Job | None:
        application = self.catalogue(job.definition.application)
        if application is None or application.postprocess:
            return None
        return job.moved(S.POSTPROCESSED, self.clock.now())

    def _postprocess(self, job: Job) -> Change:
        application = self._place.application(job)
        if application.postprocess:
            self._script(job, application, application.postprocess)
        return Change(job, (job.moved(S.POSTPROCESSED, self.clock.now()),))

    def _script(self, job: Job, application: Application, program: str, *files: str) -> bytes:
        """Run an operator's program for a job: argument job.json, then *files*; in its data directory."""
        description = self._place.directory(job) / "job.json"
        data = self._place.data(job)
        with new_file(description) as opened:
            opened.write(json.dumps(self._description(job), indent=1).encode())
        result = commands.run(
            [program, str(description), *files],
            timeout_s=application.script_timeout_s,
            environment=self._place.program_environment(job),
            directory=data,
            unwanted=lambda: self.engine.unwanted(job.id),
        )
        if result.exit_code != 0:
            raise ActionFailed(result.complaint())
        return result.output

    def _description(self, job: Job) -> Mapping[str, object]:
        """Return what ``job.json`` holds, as documented for operators' programs."""
        attempt = job.attempt
        return {
            "id": job.id,
            "owner": job.owner,
            "state": job.state,
            "definition": serial.unstructure(job.definition),
            "data_directory": str(self._place.data(job)),
            "attempt": attempt.number if attempt else 0,
            "batch_id": attempt.batch_id if attempt else None,
            "exit_code": attempt.exit_code if attempt else None,
        }

    # ------------------------------------------------------------------- further attempts

    def _wait_us(self, job: Job) -> int:
        """Return how long to wait after an attempt that never started; the more of them, the longer."""
        assert job.attempt is not None
        return round(self.engine.backoff.after(job.attempt.number - job.retries_used) * 1e6)

    def _after_failure(self, job: Job) -> Job | None:
        """Begin a new attempt where retries are left; else end, once there is nothing to bring home.

        What was given up is not tried again by itself: it would wait for the same thing.
        """
        given_up = job.attempt is not None and job.attempt.given_up
        if job.retries_used < job.definition.retries and not given_up:
            used = job.retries_used + 1
            message = f"retry {used} of {job.definition.retries}"
            return job.moved(S.PREPROCESSED, self.clock.now(), message, retries_used=used)
        if job.definition.output_url is None:
            return job.moved(S.JOB_FAILED, self.clock.now(), job.message, failed_state=S.EXECUTION_FAILED)
        return None


def _had_directory(job: Job) -> bool:
    """Tell whether a failed job certainly had a directory: one that brought no input may have got none."""
    fetched = job.definition.input_url is not None and job.failed_state is not S.STAGE_IN_FAILED
    return fetched or job.attempt is not None


def _source(job: Job) -> str | None:
    return job.definition.input_url


def _target(job: Job) -> str | None:
    return job.definition.output_url
