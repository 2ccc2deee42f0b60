"""Decide how one job may move: where it comes to at once, what a failed action means for it, and what may not be.

What is decided here takes no thread and no time; the engine carries it out.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from attrs import evolve, frozen

from edgecore.alarms import AlarmListener, Alarms
from edgecore.backoff import Backoff
from edgecore.clock import Clock
from edgecore.errors import EdgeError, SchedulerUnavailable, StoreError, Unavailable, Veto
from edgecore.graph import Graph, Postponed, Step
from edgecore.logs import about
from edgecore.models import Job
from edgecore.states import SETTLED, is_legal
from edgecore.store import Change
from edgecore.trouble import of_host

__all__ = ["MISTAKE", "Listener", "Moves"]

log = logging.getLogger(__name__)

MISTAKE: Final = "a mistake in edgecore, please report it"
_HOST_TRIES: Final = 4
"""What no job is to blame for is tried again as if for so-manieth time, ever again."""


class Listener(AlarmListener, Protocol):
    """What the engine tells of its changes; `edgecore.drivers.Listeners` is one."""

    @property
    def may_forbid(self) -> bool: ...
    def job_changing(self, *, before: Job, after: Job) -> None: ...
    def job_changed(self, *, job: Job) -> None: ...


@frozen(eq=False)
class Moves:
    """Know the rules by which the jobs of a graph move."""

    graph: Graph
    listeners: Listener
    alarms: Alarms
    clock: Clock
    backoff: Backoff

    def begun(self, job: Job) -> Change:
        """Return the change that makes a new job, and moves it on as far as there is nothing to do.

        Who may forbid that is asked about jobs that there are, and this one may yet be found to be a repetition.
        """
        path = [job]
        for moved in () if self.listeners.may_forbid else self.at_once(job):
            if not self.allowed(Change(path[-1], (moved,))):
                break
            path.append(moved)
        return Change(None, tuple(path))

    def at_once(self, job: Job) -> tuple[Job, ...]:
        """Return what a job comes to, one state after the other, where there is nothing to do."""
        path: tuple[Job, ...] = ()
        while job.state not in SETTLED and (moved := self._instantly(job)) is not None:
            path = (*path, moved)
            job = moved
        return path

    def _instantly(self, job: Job) -> Job | None:
        """Return the job moved on where there is nothing to do; where that cannot be told, leave it to the action."""
        try:
            return self.graph.steps[job.state].instant(job)
        except Exception as error:
            log.warning("job %d: %s: %s", job.id, job.state, error, extra=about(job))
            return None

    def allowed(self, change: Change) -> bool:
        """Tell whether neither the states nor a listener forbid a change; people hear of it where one does."""
        before = change.before
        assert before is not None, "new jobs come from the intake"
        for after in change.path:
            if after.state is not before.state and not is_legal(before.state, after.state):
                mistake = f"{MISTAKE}: no way from {before.state} to {after.state}"
                self.alarms.raise_once(f"job {after.id}", mistake)
                return False
            try:
                self.listeners.job_changing(before=before, after=after)
            except Veto as veto:
                log.warning("job %d stays %s: %s", after.id, before.state, veto, extra=about(before))
                return False
            before = after
        return True

    def unanswered(self, error: Exception | None, step: Step, job: Job) -> Change | Postponed:
        """Tell what an action without an answer means for its job: try again, or give up."""
        if error is None:
            return Postponed("stopped on the way")
        passing = isinstance(error, Unavailable | StoreError) or not isinstance(error, EdgeError)
        reason = of_host(error) or str(error)
        if not isinstance(error, EdgeError | OSError):
            reason = f"internal error: {error!r}"
        if not passing:
            return self.graph.give_up(job, step.failed, reason)
        if of_host(error) or isinstance(
            error, SchedulerUnavailable | StoreError
        ):  # not its fault: not counted
            return Postponed(reason, self.clock.now() + round(self.backoff.after(_HOST_TRIES) * 1e6))
        if job.failures + 1 >= self.backoff.tries:
            return self.graph.give_up(job, step.failed, f"gave up after {job.failures + 1} tries: {reason}")
        return Postponed(reason)

    def postponed(self, job: Job, outcome: Postponed) -> Change:
        """Return the change that notes why a job waits, and until when."""
        failures, due = job.failures, outcome.due
        if due is None:
            failures += 1
            due = self.clock.now() + round(self.backoff.after(failures) * 1e6)
        log.warning("job %d waits in %s: %s", job.id, job.state, outcome.reason, extra=about(job))
        return Change(job, (evolve(job, failures=failures, due=due, message=outcome.reason),))
