"""Move jobs along a graph of states: run each step's action when it is due, and write what came of it.

The engine owns clock and wake-ups and does no work of its own: what a state means is in the `Graph`
that it is given, what happens is in the graph's actions, which a `Crew` does on its threads, and
what may become of one job is for `Moves` to say. It is event driven: a new job, a finished action, a
due retry or a due look wakes it; nothing waits for a fixed cycle. At most one action works on a job
at a time. Every action may be run again, so that the answer to any crash is to load the jobs and go on.

All decisions are made on one thread, which receives events; actions run on the threads of
bounded lanes, so that slow transfers never hold up submissions.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from attrs import Factory, define, evolve, field

from edgecore.alarms import STORE, Alarms, HostTrouble, Silence
from edgecore.backoff import Backoff
from edgecore.clock import Clock
from edgecore.crew import Crew, Task
from edgecore.errors import EdgeError, StoreError
from edgecore.graph import WAITS, Failed, Graph, Outcome, Postponed, Step, Watch
from edgecore.logs import about
from edgecore.loop import Loop
from edgecore.models import Intent, Job, JobState
from edgecore.moves import MISTAKE, Listener, Moves
from edgecore.states import SETTLED
from edgecore.store import Change, Store

__all__ = ["Engine"]

log = logging.getLogger(__name__)


_SOON_S: Final = 0.2
_BEAT_S: Final = 20.0


@define(eq=False)
class Engine:
    """Run a graph over the jobs of a store."""

    store: Store
    graph: Graph
    lanes: Mapping[str, int]
    """Lane -> how many threads; the lane of the graph's watch has one."""
    listeners: Listener
    clock: Clock = field(factory=Clock)
    backoff: Backoff = field(factory=Backoff)
    alarm_after_s: float = 1_800.0
    on_commit: Callable[[], None] = lambda: None
    """Called whenever status messages became durable."""
    beat: Callable[[], None] = lambda: None
    """Called by the loop every so often, so that people see that it moves."""

    jobs: dict[int, Job] = field(init=False, factory=dict)
    """Every job in which something is left to do, as last committed."""
    alarms: Alarms = field(init=False, default=Factory(lambda self: Alarms(self.listeners), takes_self=True))
    _moves: Moves = field(
        init=False,
        default=Factory(
            lambda self: Moves(self.graph, self.listeners, self.alarms, self.clock, self.backoff),
            takes_self=True,
        ),
    )
    _early: dict[int, Intent] = field(init=False, factory=dict)
    """What users want of jobs that are durable and come to us in a moment."""
    _busy: set[int] = field(init=False, factory=set)
    _counts: Counter[JobState] = field(init=False, factory=Counter)
    _writes: int = field(init=False, default=0)
    """How many changes were handed to the store and not heard of again."""
    _stopping: threading.Event = field(init=False, factory=threading.Event)
    _look_again: set[int] = field(init=False, factory=set)
    _kept_out: dict[int, str] = field(init=False, factory=dict)
    """Jobs that their step does not let in, and why; some may have ended."""
    _poll_set: bool = field(init=False, default=False)
    _crew: Crew = field(init=False)
    _loop: Loop = field(
        init=False, default=Factory(lambda self: Loop(self.clock, self._mistaken), takes_self=True)
    )
    _silence: Silence = field(init=False)
    """Of the batch system."""
    _host: HostTrouble = field(
        init=False, default=Factory(lambda self: HostTrouble(self.alarms), takes_self=True)
    )

    @_silence.default
    def _make_silence(self) -> Silence:
        return Silence(
            subject="batch system",
            begins="the batch system does not answer",
            ends="it answers again",
            alarms=self.alarms,
            alarm_after_s=self.alarm_after_s,
            clock=self.clock,
        )

    @_crew.default
    def _make_crew(self) -> Crew:
        def worked(tasks: Sequence[Task], outcomes: Mapping[int, Outcome], error: Exception | None) -> None:
            self._loop.put(lambda: self._worked(tasks, outcomes, error))

        return Crew(self.graph, self.jobs, self._counts, self.unwanted, worked)

    # ------------------------------------------------------------- called from any thread

    def add(self, jobs: Iterable[Job]) -> None:
        """Take jobs that are in the store and that this engine does not know yet."""
        taken = list(jobs)
        self._loop.put(lambda: self._add(taken))

    def begun(self, job: Job) -> Change:
        """Return the change that makes a new job, and moves it on as far as there is nothing to do."""
        return self._moves.begun(job)

    def add_new(self, changes: Iterable[Change]) -> None:
        """Take jobs that became durable by such changes, and tell of them."""
        made = list(changes)
        self._loop.put(lambda: self._add_new(made))

    def want(self, job_id: int, intent: Intent, *, revive: bool = False) -> Future[None]:
        """Note what the user wants of a job, and act on it; the answer is done when that is durable.

        A cancel is never taken back, but to *revive* a job.
        """
        done: Future[None] = Future()

        def written(future: Future[None]) -> None:
            if not future.exception():
                self._loop.put(lambda: self._wanted(job_id, intent, revive))
            _pass_on(future, done)

        self.store.set_intent(job_id, intent, revive=revive).add_done_callback(written)
        return done

    def change(self, job: Job, make: Callable[[Job], Change | None]) -> Future[None]:
        """Make a change that no action asked for, such as an operator's retry, once nothing works on the job.

        *make* gets the job as it is then, and may want no change after all. It runs on the loop's thread. The
        answer is done when the change is durable.
        """
        done: Future[None] = Future()
        self._loop.put(lambda: self._change_outside(job, make, done))
        return done

    def reconsider(self, missing: str = "") -> None:
        """Ask anew whether the jobs may go on that steps keep out for a reason that begins so."""
        if self._kept_out:
            self._loop.put(lambda: self._let_in(f"{WAITS}{missing}"))

    def stop(self) -> None:
        """Begin nothing more; `run` returns when what was begun has ended."""
        self._stopping.set()
        self._loop.put(lambda: None)

    @property
    def stopping(self) -> bool:
        """Whether the engine was told to stop."""
        return self._stopping.is_set()

    def unwanted(self, job_id: int) -> bool:
        """Tell a long action that nobody wants it to go on now."""
        job = self.jobs.get(job_id)
        return self.stopping or job is None or job.intent is not Intent.RUN

    def commit(self, changes: Sequence[Change]) -> Mapping[int, Job]:
        """Write changes in the middle of an action and wait until they are durable.

        Answers job id -> the job as it is now; a job that is missing had moved on or was vetoed.
        """
        allowed = [change for change in changes if self._moves.allowed(change)]
        written = self.store.apply(allowed).result()
        done = [change for change, ok in zip(allowed, written, strict=True) if ok]
        self._loop.put(lambda: self._committed(done))
        return {change.after.id: change.after for change in done}

    # -------------------------------------------------------------------------- the loop

    def run(self, drain_s: float = 60.0) -> None:
        """Work until `stop`, then wait up to *drain_s* seconds for what was begun."""
        self._crew.start(self.lanes)
        self._beat()
        try:
            while not self.stopping:
                self._loop.turn()
        finally:
            self._drain(drain_s)

    def _beat(self) -> None:
        self.beat()
        self._loop.after(_BEAT_S, self._beat)
        self._crew.look_again()  # where a thread could not be started, nothing else may ever happen

    def _mistaken(self, error: Exception) -> None:
        """Alarm people of what must not end the service for all other jobs."""
        self.alarms.raise_once("engine", f"{MISTAKE}: {error!r}")

    def _drain(self, drain_s: float) -> None:
        deadline = self.clock.monotonic() + drain_s
        self._crew.stop()
        while self._unfinished() and self.clock.monotonic() < deadline:
            self.beat()
            self._loop.take(0.05)
        if self._unfinished():
            log.warning("stopped with unfinished actions; they will be done again")
        while self._loop.take(0):
            pass

    def _unfinished(self) -> bool:
        return self._writes > 0 or self._crew.busy

    # ------------------------------------------------------- decisions, on the loop's thread

    def _add(self, jobs: Sequence[Job]) -> None:
        unknown = [job for job in jobs if job.id not in self.jobs]
        for job in unknown:
            self._keep(job)
        self._dispatch(job.id for job in unknown)

    def _add_new(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._keep(change.after)
            for job in change.path:
                self._tell(job)
        self._dispatch(change.after.id for change in changes)

    def _tell(self, job: Job) -> None:
        if log.isEnabledFor(logging.INFO):
            log.info("job %d (%s): %s %s", job.id, job.name, job.state, job.message, extra=about(job))
        self.listeners.job_changed(job=job)

    def _keep(self, job: Job) -> None:
        known = self.jobs.get(job.id)
        intent = known.intent if known else self._early.pop(job.id, job.intent)
        if intent is not job.intent:
            job = evolve(job, intent=intent)
        # A lane that asks for room in between must see the job at least once.
        if job.state in SETTLED:
            self.jobs.pop(job.id, None)
        else:
            self._counts[job.state] += 1
            self.jobs[job.id] = job
        if known is not None:
            self._counts[known.state] -= 1

    def _wanted(self, job_id: int, intent: Intent, revive: bool) -> None:
        job = self.jobs.get(job_id)
        if job is None:
            if self._early.get(job_id) is not Intent.CANCELLED or revive:
                self._early[job_id] = intent
            return
        if job.intent is Intent.CANCELLED and not revive:
            return
        self.jobs[job_id] = evolve(job, intent=intent)
        if job_id in self._busy and self._crew.withdraw(job):
            self._busy.discard(job_id)
        if job_id in self._busy:
            self._look_again.add(job_id)
        elif job.state in self.graph.watch.states:
            self._look([job_id])
        else:
            self._dispatch([job_id])

    def _dispatch(self, job_ids: Iterable[int]) -> None:
        """Decide what is next for jobs that nothing works on; the trouble of one must be no other's."""
        for job_id in job_ids:
            try:
                self._go_on(job_id)
            except Exception as error:
                log.exception("job %d cannot go on", job_id, extra={"job": job_id})
                self.alarms.raise_once(f"job {job_id}", f"it cannot go on: {error!r}")
                self._busy.add(job_id)
                self._again_later(job_id)
        self._crew.send()

    def _go_on(self, job_id: int) -> None:
        job = self.jobs.get(job_id)
        if job is None or job_id in self._busy or self.stopping:
            return
        if job.state in self.graph.watch.states:
            if job_id in self._look_again:
                self._look_again.discard(job_id)
                self._look([job_id])
            self._plan_poll()
            return
        self._look_again.discard(job_id)
        if job.intent is Intent.CANCELLED and (ended := self.graph.cancelled(job)) is not None:
            self._write([Change(job, (ended,))])
        elif job.intent is Intent.RUN:
            self._begin(job)

    def _begin(self, job: Job) -> None:
        wait_us = job.due - self.clock.now()
        # A longer wait is never asked for: the clock was set back.
        if 0 < wait_us <= 2e6 * self.backoff.longest_s:
            self._loop.after(wait_us / 1e6, lambda: self._dispatch([job.id]))
            return
        if path := self._moves.at_once(job):
            self._write([Change(job, path)])
            return
        if missing := self.graph.steps[job.state].kept_out(job):
            self._keep_out(job, f"{WAITS}{missing}")
            return
        if self._kept_out.pop(job.id, None) or job.message.startswith(WAITS):
            self._waits_no_more(job)
        self._crew.gather(job)
        self._busy.add(job.id)

    def _keep_out(self, job: Job, reason: str) -> None:
        """Let a job wait until `reconsider` is called, and note why."""
        if reason not in (job.message, self._kept_out.get(job.id)):
            log.info("job %d waits in %s: %s", job.id, job.state, reason, extra=about(job))
            self.store.note(job, reason)
        self._kept_out[job.id] = reason

    def _waits_no_more(self, job: Job) -> None:
        """Take back what was noted of a wait, by us or before a restart: the job may be long in its lane."""
        message = "" if job.message.startswith(WAITS) else job.message
        self.jobs[job.id] = evolve(job, message=message)
        self.store.note(job, message)

    def _let_in(self, reason: str) -> None:
        for job_id in [job_id for job_id in self._kept_out if job_id not in self.jobs]:
            del self._kept_out[job_id]
        self._dispatch([job_id for job_id, why in self._kept_out.items() if why.startswith(reason)])

    def _look(self, job_ids: Iterable[int]) -> None:
        jobs = [self.jobs[job_id] for job_id in job_ids if job_id not in self._busy]
        if jobs:
            self._busy.update(job.id for job in jobs)
            self._crew.look(jobs)

    def _plan_poll(self) -> None:
        if not self._poll_set:
            self._poll_set = True
            wait_s = self.graph.watch.interval_s
            if self._silence.failures:
                wait_s = max(wait_s, self.backoff.after(self._silence.failures))
            self._loop.after(wait_s, self._poll)

    def _poll(self) -> None:
        self._poll_set = False
        if not self.stopping:
            self._look([job.id for job in self.jobs.values() if job.state in self.graph.watch.states])

    # -------------------------------------------------------------------- what came of it

    def _worked(
        self, tasks: Sequence[Task], outcomes: Mapping[int, Outcome], error: Exception | None
    ) -> None:
        step, ids = tasks[0].step, [task.job.id for task in tasks]
        self._crew.done(tasks)
        host_to_blame = self._host.worked(step.lane, error)
        if isinstance(step, Watch) and not host_to_blame:
            self._silence.failed(error) if error else self._silence.answered()
        elif isinstance(error, EdgeError | OSError):
            log.warning("%s of jobs %s: %s", step.lane, ids, error, extra={"jobs": ids})
        elif error is not None:
            log.error(
                "unexpected error in lane %s of jobs %s", step.lane, ids, exc_info=error, extra={"jobs": ids}
            )
        if isinstance(error, StoreError):
            self.alarms.raise_once(STORE, str(error))
        changes, unchanged = [], []
        for task in tasks:
            job = self.jobs.get(task.job.id, task.job)
            outcome = outcomes.get(job.id)
            if outcome is None or isinstance(outcome, Failed):
                met, outcome = error if outcome is None else outcome.error, None
                if isinstance(step, Step) and job.state is task.job.state and not self.unwanted(job.id):
                    outcome = self._moves.unanswered(met, step, job)
            if outcome is None:
                unchanged.append(job.id)
            else:
                changes.append(
                    self._moves.postponed(job, outcome) if isinstance(outcome, Postponed) else outcome
                )
        self._busy.difference_update(unchanged)
        self._dispatch(unchanged)
        if changes:
            self._write(changes)

    def _change_outside(self, job: Job, make: Callable[[Job], Change | None], done: Future[None]) -> None:
        if job.id in self._busy:
            self._loop.after(_SOON_S, lambda: self._change_outside(job, make, done))
            return
        try:
            change = make(self.jobs.get(job.id, job))
            written = None if change is None else self._write([change])
        except Exception as error:
            done.set_exception(error)
            return
        if written is None:
            done.set_result(None)
        else:
            written.add_done_callback(lambda future: _pass_on(future, done))

    def _write(self, changes: Sequence[Change]) -> Future[list[bool]] | None:
        """Write changes; their jobs are busy until that is done. None when all are vetoed."""
        allowed = []
        for change in changes:
            self._busy.add(change.after.id)
            if self._moves.allowed(change):
                allowed.append(change)
            else:
                self._again_later(change.after.id)
        return self._hand_over(allowed) if allowed else None

    def _hand_over(self, changes: Sequence[Change]) -> Future[list[bool]]:
        self._writes += 1
        future = self.store.apply(changes)
        future.add_done_callback(lambda done: self._loop.put(lambda: self._written(changes, done)))
        return future

    def _written(self, changes: Sequence[Change], future: Future[list[bool]]) -> None:
        self._writes -= 1
        error = future.exception()
        if error is not None and len(changes) > 1:  # one that cannot be written must not stop the others
            middle = len(changes) // 2
            for part in (changes[:middle], changes[middle:]):
                self._hand_over(part)
            return
        if error is not None:
            self.alarms.raise_once(STORE, str(error))
            self._again_later(changes[0].after.id)
            return
        self.alarms.clear(STORE, "changes are written again")
        written = [change for change, ok in zip(changes, future.result(), strict=True) if ok]
        for change in changes:
            self._busy.discard(change.after.id)
        self._committed(written)
        self._dispatch(change.after.id for change in changes)

    def _committed(self, changes: Sequence[Change]) -> None:
        self.on_commit()
        for change in changes:
            sequence = change.before.sequence if change.before else 0
            self._keep(change.after)
            for job in change.path:
                if job.sequence > sequence:
                    sequence = job.sequence
                    self._tell(job)
        self._crew.look_again()

    def _again_later(self, job_id: int) -> None:
        """Free a job whose change was not made; what it needs is found out anew after a while."""

        def free() -> None:
            self._busy.discard(job_id)
            self._dispatch([job_id])

        self._loop.after(self.backoff.first_s, free)


def _pass_on(future: Future[Any], done: Future[None]) -> None:
    """Let *done* end as *future* did, whose result nobody needs."""
    error = future.exception()
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(None)
