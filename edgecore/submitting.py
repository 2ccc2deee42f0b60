"""Submit jobs: commit the intent, hand them to the batch system, and take its answer.

The order is what keeps an attempt from being submitted twice: its directory with the token, then the durable
intent, then the one call. Without a clear answer the job stays SUBMITTING, and `edgecore.watching` finds out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from attrs import evolve, field, frozen

from edgecore import applications, batch
from edgecore.drivers import SchedulingRelay
from edgecore.errors import ActionFailed, SchedulerUnavailable
from edgecore.graph import Failed, Outcome, Postponed
from edgecore.models import (
    Application,
    Attempt,
    Group,
    Job,
    JobState,
    Plan,
    Refusal,
    Refused,
    Submission,
    SubmissionAnswer,
    Submitted,
)
from edgecore.states import COUNTS_AS_QUEUED
from edgecore.store import Change
from edgecore.trouble import of_host
from edgecore.workplace import Workplace

__all__ = ["Submitting", "alike"]

log = logging.getLogger(__name__)
S = JobState


@frozen(kw_only=True)
class Submitting:
    """Turn jobs that are ready into attempts at the batch system."""

    place: Workplace
    scheduling: SchedulingRelay
    commit: Callable[[Sequence[Change]], Mapping[int, Job]]
    """Makes changes durable; answers which were made."""
    give_up: Callable[[Job, JobState, str, Attempt | None], Change]
    """Ends a job at a step that failed for good, with what is known of its latest attempt."""
    wait_us: Callable[[Job], int]
    """How long to wait before a further attempt, after one that never started."""
    _refused_until: dict[str | None, tuple[float, str]] = field(init=False, factory=dict)
    """Batch queue -> until when it is left alone, on the monotonic clock, and why."""

    def room(self, counts: Counter[JobState]) -> int:
        """Return how many more jobs may wait at the batch system, which is limited."""
        limit = self.place.config.limits.max_queued
        assert limit is not None
        return limit - sum(counts[state] for state in COUNTS_AS_QUEUED)

    def submit(self, jobs: Sequence[Job]) -> Mapping[int, Outcome]:
        """Commit the intent to submit, submit, and answer with what the batch system said."""
        outcomes: dict[int, Outcome] = {}
        intended = self._intend(jobs, outcomes)
        if not intended:
            return outcomes
        group = self._group(intended)
        try:
            answers = self.scheduling.submit(group=group)
        except SchedulerUnavailable as error:
            words = "no clear answer to submitting %s: %s; it will be looked for"
            log.warning(words, group.tag, error, extra={"jobs": [job.id for job in intended]})
            return outcomes
        for job in intended:
            assert job.attempt is not None
            answer = answers.get(job.attempt.tag)
            outcome = None if answer is None else self._answered(job, answer)
            if outcome is not None:
                outcomes[job.id] = outcome
        return outcomes

    def _intend(self, jobs: Sequence[Job], outcomes: dict[int, Outcome]) -> Sequence[Job]:
        """Make the tokens, then commit the intents; answers the jobs that may be submitted now."""
        now = self.place.clock.now()
        changes = []
        for job in jobs:
            number = (job.attempt.number if job.attempt else 0) + 1
            until, reason = self._refused_until.get(job.definition.queue, (0.0, ""))
            left_s = until - self.place.clock.monotonic()
            if left_s > 0:  # another job of this queue was refused for load: an attempt would be wasted
                due = now + round(left_s * 1e6)
                outcomes[job.id] = Postponed(f"its queue takes nothing now: {reason}", due)
                continue
            try:
                self.place.check_in_time(job)
                if number > batch.MAX_ATTEMPTS:
                    raise ActionFailed(f"{batch.MAX_ATTEMPTS} attempts were made")
                self._prepare(job, number)
            except ActionFailed as error:
                outcomes[job.id] = self.give_up(job, S.SUBMIT_FAILED, str(error), None)
                continue
            except OSError as error:
                if len(jobs) == 1 or of_host(error):
                    raise
                outcomes[job.id] = Failed(error)  # the others of its group are not to blame
                continue
            tag = batch.attempt_tag(job.id, number)
            attempt = Attempt(number=number, tag=tag, group_tag=tag, intended=now)
            changes.append(Change(job, (job.moved(S.SUBMITTING, now, attempt=attempt),)))
        for change in changes:
            self.place.run(change.after).make_durable()
        if len(changes) > 1:
            changes = [_grouped(change, changes[0], index) for index, change in enumerate(changes)]
        return list(self.commit(changes).values())

    def _prepare(self, job: Job, number: int) -> None:
        """Make an attempt's directory, with its script and its token."""
        application = self.place.application(job)
        data = self.place.data(job)
        for name in (f"stdout.{number}.txt", f"stderr.{number}.txt"):
            # Whatever a stranger staged in under this name must not receive or redirect the output.
            try:
                (data / name).unlink(missing_ok=True)
            except IsADirectoryError:
                raise ActionFailed(f"the input has a directory {name}, where the output must go") from None
        run = self.place.run(job, number)
        values = batch.ScriptValues(
            title=f"site {self.place.config.site}, job {job.id} ({job.name}), attempt {number}",
            run=run.path,
            data=data,
            attempt=number,
            batch_id_text=self.scheduling.profile.batch_id_text,
            restartable=application.restartable,
            command=self._command(job, application),
            environment={
                **self.place.config.environment.set,
                **self.place.environment(job),
                "EDGECORE_ATTEMPT": str(number),
            },
            prologue=self.place.config.script.prologue,
            epilogue=self.place.config.script.epilogue,
        )
        run.prepare(batch.render_script(values))

    def _command(self, job: Job, application: Application) -> Sequence[str]:
        definition = job.definition
        launcher: Sequence[str] = ()
        if application.launcher is not None:
            table = self.place.config.launchers.get(application.launcher)
            if table is None:
                raise ActionFailed(
                    f"the site has no launcher {application.launcher}; see [launchers] in its file"
                )
            launcher = applications.launcher_arguments(
                table.arguments,
                num_nodes=definition.num_nodes,
                processes_per_node=definition.processes_per_node,
            )
        plan = job.plan or Plan()
        return [*launcher, application.executable, *plan.arguments]

    def _group(self, jobs: Sequence[Job]) -> Group:
        definition, plan = jobs[0].definition, jobs[0].plan or Plan()
        application = self.place.application(jobs[0])
        submissions = []
        for job in jobs:
            assert job.attempt is not None
            run = self.place.run(job)
            comment = f"edgecore site={self.place.config.site} job={job.id} attempt={job.attempt.number}"
            submissions.append(
                Submission(
                    tag=job.attempt.tag,
                    index=job.attempt.index,
                    script=run.script,
                    directory=run.path,
                    comment=comment,
                )
            )
        assert jobs[0].attempt is not None
        return Group(
            tag=jobs[0].attempt.group_tag,
            submissions=tuple(submissions),
            num_nodes=definition.num_nodes,
            processes_per_node=definition.processes_per_node,
            wall_time_minutes=definition.wall_time_minutes,
            queue=definition.queue,
            project=definition.project,
            options=plan.options,
            restartable=application.restartable,
        )

    def _answered(self, job: Job, answer: SubmissionAnswer) -> Outcome | None:
        assert job.attempt is not None
        now = self.place.clock.now()
        if isinstance(answer, Submitted):
            attempt = evolve(job.attempt, batch_id=answer.batch_id, submitted=now)
            return Change(job, (job.moved(S.SUBMITTED, now, f"batch id {answer.batch_id}", attempt=attempt),))
        run = self.place.run(job)
        if not run.revoke():  # refused, and yet it started: the token is right
            return None
        return self._refused(job, evolve(job.attempt, ended=now, reason=answer.reason), answer)

    def _refused(self, job: Job, attempt: Attempt, answer: Refused) -> Outcome:
        now = self.place.clock.now()
        if answer.kind is Refusal.DISABLED:
            return Change(job, (job.moved(S.SUBMIT_DISABLED, now, answer.reason, attempt=attempt),))
        if answer.kind is Refusal.PERMANENT:
            return self.give_up(job, S.SUBMIT_FAILED, answer.reason, attempt)
        waiting = job.moved(S.PREPROCESSED, now, f"refused for now: {answer.reason}", attempt=attempt)
        wait_us = self.wait_us(waiting)
        until = self.place.clock.monotonic() + wait_us / 1e6
        self._refused_until[job.definition.queue] = (until, answer.reason)
        return Change(job, (evolve(waiting, due=now + wait_us),))


def alike(job: Job) -> Hashable:
    """Return what jobs have in common that may be submitted as one group."""
    definition, plan = job.definition, job.plan or Plan()
    return (
        definition.application,
        definition.num_nodes,
        definition.processes_per_node,
        definition.wall_time_minutes,
        definition.queue,
        definition.project,
        tuple(sorted((key, str(value)) for key, value in plan.options.items())),
    )


def _grouped(change: Change, first: Change, index: int) -> Change:
    job, leader = change.after, first.after
    assert job.attempt is not None
    assert leader.attempt is not None
    return evolve(
        change, path=(evolve(job, attempt=evolve(job.attempt, group_tag=leader.attempt.tag, index=index)),)
    )
