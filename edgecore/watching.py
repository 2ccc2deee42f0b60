"""Look at submitted attempts and carry out what the evidence decides.

One listing serves all jobs. Directories are read only of jobs that ended or left the list, or whose
user cancelled them, and now and then of what is listed as running: a batch system that was killed may
have forgotten an end that it was told of. The decision itself is `edgecore.evidence.decide`; here are the
renames that make it safe, and the status that follows.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import Factory, define, evolve, field

from edgecore import batch
from edgecore.clock import Clock, SteadyClock
from edgecore.drivers import SchedulingRelay
from edgecore.errors import Unavailable
from edgecore.evidence import Conclusion, Decision, Patience, WaitLimits, decide, outstays
from edgecore.logs import about
from edgecore.models import (
    Answer,
    Attempt,
    Intent,
    Job,
    JobState,
    NativeState,
    Observation,
    Reference,
    printable,
)
from edgecore.states import AT_BATCH_SYSTEM, SETTLED
from edgecore.store import Change

__all__ = ["Watching"]

log = logging.getLogger(__name__)
S = JobState

_STATES: Final[Mapping[NativeState, JobState]] = {
    NativeState.QUEUED: S.QUEUED,
    NativeState.HELD: S.HELD,
    NativeState.RUNNING: S.RUNNING,
}
_LOOKS: Final = 5
"""How often one visit looks at a token that moves under its hands."""


@define(eq=False, kw_only=True)
class Watching:
    """Turn what the batch system and the tokens say into changes of jobs."""

    scheduling: SchedulingRelay
    work: Path
    patience: Callable[[Job], Patience]
    limits: WaitLimits
    alarm: Callable[[str, str], None]
    clear: Callable[[str, str], None]
    give_up: Callable[[Job, JobState, str, Attempt | None], Change]
    """Ends a job at a step that failed for good, with what is known of its latest attempt."""
    wait_us: Callable[[Job], int]
    """How long to wait before a further attempt, after one that never started."""
    clock: Clock = field(factory=Clock)
    _steady: SteadyClock = field(
        init=False, default=Factory(lambda self: SteadyClock(self.clock), takes_self=True)
    )
    """For how long something has lasted, whatever becomes of the clock meanwhile."""
    _look_before: int = field(init=False, default=Factory(lambda self: self._steady.now(), takes_self=True))
    _look_now: int = field(init=False, default=Factory(lambda self: self._look_before, takes_self=True))
    """When this look began, and the one before it."""

    def look(self, jobs: Sequence[Job]) -> Mapping[int, Change]:
        """Look at all *jobs* at once; those without an answer stay as they are.

        Raises SchedulerUnavailable: nothing is known of any of them.
        """
        self._look_before, self._look_now = self._look_now, self._steady.now()
        seen, jobs = self._observations(jobs)
        changes: dict[int, Change] = {}
        for job in jobs:
            try:
                change = self._judge(job, seen.get(job.id))
            except OSError as error:
                words = "job %d: its run directory cannot be read: %s"
                log.warning(words, job.id, error, extra=about(job))
                continue
            if change is not None:
                changes[job.id] = change
        self._cancel(jobs, changes)
        self._hold_and_release(jobs, seen, changes)
        self._clear_alarms(changes.values())
        return changes

    # ------------------------------------------------------------------ asking the batch system

    def _observations(self, jobs: Sequence[Job]) -> tuple[Mapping[int, Observation], Sequence[Job]]:
        """Ask about all jobs; answers what was seen, and about which jobs the question was answered."""
        listed = [job for job in jobs if _attempt(job).batch_id is not None]
        unclear = [job for job in jobs if _attempt(job).batch_id is None]
        seen = self._listed(listed)
        try:
            seen.update(self._found(unclear))
        except Unavailable as error:
            if not listed:
                raise
            ids = [job.id for job in unclear]
            log.warning("%d jobs were not to be found by tag: %s", len(ids), error, extra={"jobs": ids})
            return seen, listed
        return seen, jobs

    def _listed(self, jobs: Sequence[Job]) -> dict[int, Observation]:
        if not jobs:
            return {}
        by_tag = {_attempt(job).tag: job.id for job in jobs}
        observations = self.scheduling.observe(references=[self._reference(job) for job in jobs])
        return {by_tag[tag]: _sound(seen) for tag, seen in observations.items() if tag in by_tag}

    def _found(self, jobs: Sequence[Job]) -> dict[int, Observation]:
        if not jobs:
            return {}
        found = self.scheduling.find(tags=sorted({_attempt(job).group_tag for job in jobs}))
        seen = {}
        for job in jobs:
            attempt = _attempt(job)
            mine = [o for o in found.get(attempt.group_tag, ()) if o.index == attempt.index]
            if mine:  # more than one when a submit command repeated itself: the token lets one run
                seen[job.id] = _sound(next((o for o in mine if o.state is not NativeState.ENDED), mine[0]))
        return seen

    def _reference(self, job: Job) -> Reference:
        attempt = _attempt(job)
        return Reference(
            tag=attempt.tag,
            group_tag=attempt.group_tag,
            index=attempt.index,
            batch_id=attempt.batch_id,
            directory=batch.run_directory(self.work, job.id, attempt.number).path,
            submitted=attempt.submitted or attempt.intended,
        )

    # ------------------------------------------------------------------------------ judging

    def _judge(self, job: Job, seen: Observation | None) -> Change | None:
        cancelled = job.intent is Intent.CANCELLED
        belied = seen is not None and self._is_belied(job, seen)
        if seen is not None and not cancelled and not belied and self._nothing_new(job, seen):
            return None
        alive = seen is not None and seen.state is not NativeState.ENDED
        attempt = self._updated(job, seen)
        decided = cancelled or attempt.given_up  # to take it back: that needs its token
        if (
            alive
            and not belied
            and not decided
            and seen is not None
            and seen.state is not NativeState.UNKNOWN
        ):
            return self._alive(job, self._borne(job, attempt, seen), seen)
        run = batch.run_directory(self.work, job.id, attempt.number)
        for _ in range(_LOOKS):
            token = run.token()
            attempt = self._wanted_again(job, attempt, token, seen)
            decision = decide(
                token,
                seen,
                missed=_attempt(job).missed,
                now=self._steady.now(),
                wall_clock=self.clock.now(),
                patience=self.patience(job),
                unwanted=cancelled or bool(attempt.given_up),
                unclear=_attempt(job).batch_id is None,
                started=attempt.started,
            )
            if token is not None and token.batch_id and token.batch_id != attempt.batch_id:
                # The submit command repeated itself, or we never learnt the id: the token is right.
                attempt = evolve(attempt, batch_id=token.batch_id)
            if decision.conclusion is Conclusion.REVOKE and not run.revoke():
                continue
            if decision.conclusion is Conclusion.FENCE and token is not None and not run.stop(token):
                continue
            return self._follow(job, attempt, decision, seen, run)
        return None

    def _is_belied(self, job: Job, seen: Observation) -> bool:
        """Tell whether what is listed as alive ended so long ago that the listing will not say so, nor why.

        Its token is looked at once in the time after which a job that is not listed counts as lost, each at another moment.
        """
        attempt, patience = _attempt(job), self.patience(job)
        if seen.state is not NativeState.RUNNING and attempt.started is None:
            return False
        every = max(1, patience.lost_after)
        if (self._look_before - job.id) // every == (self._look_now - job.id) // every:
            return False
        token = batch.run_directory(self.work, job.id, attempt.number).token()
        return (
            token is not None
            and token.state is batch.TokenState.ENDED
            and self._look_now - token.since >= patience.grace
        )

    def _updated(self, job: Job, seen: Observation | None) -> Attempt:
        """Take over what a listing tells about an attempt."""
        attempt = _attempt(job)
        alive = seen is not None and seen.state is not NativeState.ENDED
        missed = None if alive else attempt.missed or self._steady.now()
        if seen is None:
            return evolve(attempt, missed=missed)
        waiting, stuck = self._waits(job, seen)
        return evolve(
            attempt,
            missed=missed,
            waiting=waiting,
            stuck=stuck,
            batch_id=attempt.batch_id or seen.batch_id,
            submitted=attempt.submitted or seen.queued or attempt.intended,
            started=seen.started or attempt.started,
            ended=seen.ended or attempt.ended,
        )

    # ---------------------------------------------------------------- what waits for too long

    def _waits(self, job: Job, seen: Observation) -> tuple[int | None, int | None]:
        """Return since when it waits, and since when it does for what will never come; a hold of ours is neither."""
        attempt = _attempt(job)
        if seen.state in (NativeState.UNKNOWN, NativeState.ENDED):
            return attempt.waiting, attempt.stuck
        ours = job.intent is Intent.HELD or attempt.held
        if seen.state is NativeState.RUNNING or ours:
            return None, None
        stuck = (attempt.stuck or self._steady.now()) if seen.never_starts else None
        return attempt.waiting or self._steady.now(), stuck

    def _outstays(self, attempt: Attempt) -> str:
        now = self._steady.now()
        return outstays(stuck=attempt.stuck, waiting=attempt.waiting, now=now, limits=self.limits)

    def _borne(self, job: Job, attempt: Attempt, seen: Observation) -> Attempt:
        """Tell people of an attempt that will never start; note that it is given up, once it is time.

        Only noted: it is taken back at the next look, when that is durable, and if it waits still.
        """
        reason = seen.reason or seen.native_state
        why = self._outstays(attempt)
        if why or attempt.stuck is not None:
            self.alarm(
                f"job {job.id}", f"{why or 'the batch system says that it will never start it'}: {reason}"
            )
        return evolve(attempt, given_up=f"given up: {why}: {reason}") if why else attempt

    def _wanted_again(
        self, job: Job, attempt: Attempt, token: batch.Token | None, seen: Observation | None
    ) -> Attempt:
        """Forget that an attempt was given up where it has started after all, or need not be taken back."""
        if not attempt.given_up or (token is not None and token.state is batch.TokenState.REVOKED):
            return attempt
        alive = seen is not None and seen.state is not NativeState.ENDED
        skew = self.patience(job).clock_skew + abs(self._steady.jumped_us)
        # A token that began to run while it waited belies the listing; an older one was put back into the queue.
        starts = (
            token is not None
            and token.state is batch.TokenState.RUNNING
            and (attempt.waiting is None or token.since + skew >= attempt.waiting)
        )
        if starts or (alive and not self._outstays(attempt)):
            return evolve(attempt, given_up="")
        return attempt

    def _nothing_new(self, job: Job, seen: Observation) -> bool:
        """Tell whether a listing only confirms what is known, as it does for nearly every job at every poll."""
        attempt = _attempt(job)
        return (
            _STATES.get(seen.state) is job.state
            and attempt.missed is None
            and attempt.batch_id is not None
            and (attempt.started is not None or seen.started is None)
            and seen.reason in ("", job.message)
            and not seen.never_starts
            and not attempt.given_up
            and self._waits(job, seen) == (attempt.waiting, attempt.stuck)
            and (self.limits.overdue is None or not self._outstays(attempt))
        )

    def _clear_alarms(self, changes: Iterable[Change]) -> None:
        for change in changes:
            before, after = change.before, change.after
            if before is not None and _trouble(before) not in ("", _trouble(after)):
                self.clear(f"job {after.id}", f"it is {after.state} now")

    # ---------------------------------------------------------------------- what follows

    def _follow(
        self,
        job: Job,
        attempt: Attempt,
        decision: Decision,
        seen: Observation | None,
        run: batch.RunDirectory,
    ) -> Change | None:
        conclusion = decision.conclusion
        if conclusion is Conclusion.ENDED:
            return self._ended(job, attempt, decision, run)
        if conclusion in (Conclusion.REVOKE, Conclusion.NEVER_STARTED):
            return self._never_started(job, attempt, decision, seen)
        if conclusion in (Conclusion.FENCE, Conclusion.INTERRUPTED):
            return self._interrupted(job, attempt, decision)
        if conclusion is Conclusion.LOST:
            return self._lost(job, attempt, decision)
        return self._alive(job, attempt, seen)

    def _alive(self, job: Job, attempt: Attempt, seen: Observation | None) -> Change | None:
        state = _STATES.get(seen.state) if seen is not None else None
        if state is None:
            state = S.SUBMITTED if job.state is S.SUBMITTING and attempt.batch_id else job.state
        message = seen.reason if seen is not None else ""
        if state is not job.state:
            return Change(job, (job.moved(state, self.clock.now(), message, attempt=attempt),))
        noted = evolve(job, attempt=attempt, message=message or job.message)
        return None if noted == job else Change(job, (noted,))

    def _lost(self, job: Job, attempt: Attempt, decision: Decision) -> Change | None:
        self.alarm(f"job {job.id}", f"LOST: {decision.reason}")
        if job.state is S.LOST:
            return None if attempt == job.attempt else Change(job, (evolve(job, attempt=attempt),))
        return Change(job, (job.moved(S.LOST, self.clock.now(), decision.reason, attempt=attempt),))

    # ------------------------------------------------------------------------------- ends

    def _ended(self, job: Job, attempt: Attempt, decision: Decision, run: batch.RunDirectory) -> Change:
        record = run.end_record()
        attempt = evolve(
            attempt,
            batch_id=record.batch_id or attempt.batch_id,  # a submit command may have repeated itself
            started=record.started or attempt.started,
            ended=record.ended or attempt.ended,
            exit_code=decision.exit_code,
            reason=decision.reason,
            missed=None,
            given_up="",
        )
        if decision.exit_code == 0:
            return self._moved(job, S.EXECUTION_FINISHED, "", attempt)
        reason = f": {decision.reason}" if decision.reason else ""
        message = f"exit code {decision.exit_code}{_as_of_signal(decision.exit_code)}{reason}"
        return self._moved(job, S.EXECUTION_FAILED, message, attempt)

    def _never_started(
        self, job: Job, attempt: Attempt, decision: Decision, seen: Observation | None
    ) -> Change:
        attempt = evolve(
            attempt, ended=attempt.ended or self.clock.now(), reason=decision.reason, missed=None
        )
        if job.intent is Intent.CANCELLED:
            return self._moved(job, S.JOB_CANCELLED, "cancelled before it started", attempt)
        if attempt.given_up:
            attempt = evolve(attempt, reason=attempt.given_up)
            return self.give_up(job, S.SUBMIT_FAILED, attempt.given_up, attempt)
        if seen is not None and seen.state is NativeState.ENDED:
            return self._moved(
                job, S.EXECUTION_FAILED, f"ended before it started: {decision.reason}", attempt
            )
        message = f"attempt {attempt.number} never started: {decision.reason}"
        change = self._moved(job, S.PREPROCESSED, message, attempt)
        return evolve(change, path=(evolve(change.after, due=self.clock.now() + self.wait_us(change.after)),))

    def _interrupted(self, job: Job, attempt: Attempt, decision: Decision) -> Change:
        exit_code = attempt.exit_code if decision.exit_code is None else decision.exit_code
        reason = attempt.given_up or decision.reason or "the batch system ended it"
        attempt = evolve(attempt, exit_code=exit_code, reason=reason, missed=None)
        return self._moved(job, S.EXECUTION_FAILED, f"interrupted: {reason}", attempt)

    def _moved(self, job: Job, state: JobState, message: str, attempt: Attempt) -> Change:
        failed = S.EXECUTION_FAILED if state is S.EXECUTION_FAILED else None
        return Change(
            job, (job.moved(state, self.clock.now(), message, attempt=attempt, failed_state=failed),)
        )

    # --------------------------------------------------------------- what users want of them

    def _ask(self, request: Callable[..., Answer], jobs: Sequence[Job]) -> Sequence[Job] | None:
        """Ask the batch system for something, once for all *jobs*; answers for which it agreed.

        None when it could not be asked, so that it is to be asked again.
        """
        if not jobs:
            return ()
        try:
            answer = request(references=[self._reference(job) for job in jobs])
        except Unavailable as error:
            words = "the batch system was not to be asked about %d jobs: %s"
            log.warning(words, len(jobs), error, extra={"jobs": [job.id for job in jobs]})
            return None
        for job in jobs:
            if reason := answer.refused.get(_attempt(job).tag):
                log.warning("job %d: the batch system refused: %s", job.id, reason, extra=about(job))
        return [job for job in jobs if _attempt(job).tag not in answer.refused]

    def _cancel(self, jobs: Sequence[Job], changes: dict[int, Change]) -> None:
        """Ask to end what nobody wants: what runs, and what would come to its turn only to find it may not run.

        A job counts as ended once the batch system was asked: a revoked token is found again. That an attempt is
        given up must be durable before.
        """
        afters = [
            changes[job.id].after if job.id in changes else job
            for job in jobs
            if job.intent is Intent.CANCELLED or _attempt(job).given_up
        ]
        over = (S.EXECUTION_FINISHED, S.EXECUTION_FAILED)
        unwanted = [
            job
            for job in afters
            if _attempt(job).batch_id is not None
            and job.state not in over
            and (job.intent is Intent.CANCELLED or _attempt(job).given_up)
        ]
        if self._ask(self.scheduling.cancel, unwanted) is None:
            for job in unwanted:
                if job.state in SETTLED:
                    del changes[job.id]

    def _hold_and_release(
        self, jobs: Sequence[Job], seen: Mapping[int, Observation], changes: dict[int, Change]
    ) -> None:
        """Ask for what users want of waiting attempts; the state follows when a listing shows it."""
        if not self.scheduling.profile.can_hold:
            return
        hold, release, held = [], [], []
        for job in jobs:
            state = seen[job.id].state if job.id in seen else None
            after = changes[job.id].after if job.id in changes else job
            if job.intent is Intent.HELD and state is NativeState.QUEUED:
                hold.append(after)
            elif job.intent is Intent.HELD and state is NativeState.HELD:
                held.append(after)  # also when the answer to our asking was lost
            elif job.intent is Intent.RUN and state is NativeState.HELD and _attempt(after).held:
                release.append(after)  # what somebody else holds, he will release
        self._ask(self.scheduling.hold, hold)
        released = self._ask(self.scheduling.release, release) or ()
        for job in (*hold, *held, *released):
            attempt = evolve(_attempt(job), held=job not in released)
            if attempt != job.attempt:
                change = changes.get(job.id, Change(job, (job,)))
                changes[job.id] = evolve(change, path=(*change.path[:-1], evolve(job, attempt=attempt)))


def _attempt(job: Job) -> Attempt:
    assert job.attempt is not None, f"job {job.id} is {job.state} without an attempt"
    return job.attempt


def _as_of_signal(exit_code: int | None) -> str:
    """Name the signal that a shell tells with an exit code; a program may also choose such a code itself."""
    try:
        return f" (as of signal {signal.Signals((exit_code or 0) - 128).name})"
    except ValueError:
        return ""


def _trouble(job: Job) -> str:
    """Name what people are told of a job that is as this one; empty where that is nothing."""
    attempt = _attempt(job)
    if job.state is S.LOST:
        return "lost"
    waits = attempt.stuck is not None or attempt.given_up
    return "waits for what does not come" if waits and job.state in AT_BATCH_SYSTEM else ""


def _sound(seen: Observation) -> Observation:
    """Return an observation whose words can be stored."""
    return seen if seen.reason.isascii() else evolve(seen, reason=printable(seen.reason))
