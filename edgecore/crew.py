"""Have the actions of a graph done on the threads of its lanes, and hand back what came of them.

The engine decides what is due for which job, and sends all that it has decided at once, so that what is alike
gathers. The threads see the jobs as they are when their turn has come.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from attrs import define, field, frozen

from edgecore.errors import ActionStopped
from edgecore.graph import Graph, Outcome, Step, Watch
from edgecore.lanes import Lane
from edgecore.models import Job, JobState

__all__ = ["Crew", "Task"]

log = logging.getLogger(__name__)

_ALL: Final = 1_000_000_000
"""More jobs than there can be: one look serves all that wait for one."""


@frozen(eq=False)
class Task:
    """One job on its way through a lane, as it was when it was sent there."""

    step: Step | Watch
    job: Job


@define(eq=False)
class Crew:
    """Work on the jobs of a graph. All is for the thread that decides, but what the lanes call."""

    graph: Graph
    jobs: Mapping[int, Job]
    """Every job in which something is left to do, as last committed."""
    counts: Counter[JobState]
    """How many of them there are in each state."""
    unwanted: Callable[[int], bool]
    """Tells whether nobody wants anything done with a job now."""
    worked: Callable[[Sequence[Task], Mapping[int, Outcome], Exception | None], None]
    """Hears on a lane's thread what came of tasks."""
    lanes: dict[str, Lane[Task]] = field(init=False, factory=dict)
    _leaving: dict[tuple[str, Hashable], tuple[int, list[Task]]] = field(init=False, factory=dict)
    """What goes when all jobs of an event are decided about: lane and key -> how many at once, tasks."""

    def start(self, lanes: Mapping[str, int]) -> None:
        """Open the lanes, each with at most so many threads."""
        limited = {step.lane: partial(self._room, step) for step in self.graph.steps.values() if step.room}
        for name, threads in lanes.items():
            self.lanes[name] = Lane(name, threads, self._work, limited.get(name))

    def gather(self, job: Job) -> None:
        """Have the step of a job's state done when `send` is called."""
        step = self.graph.steps[job.state]
        self._leaving.setdefault((step.lane, step.key(job)), (step.largest, []))[1].append(Task(step, job))

    def send(self) -> None:
        """Let all that was gathered go to the lanes."""
        leaving, self._leaving = self._leaving, {}
        for (lane, key), (largest, tasks) in leaving.items():
            self.lanes[lane].put(tasks, key, largest)

    def look(self, jobs: Iterable[Job]) -> None:
        """Have jobs looked at that only evidence from outside can move."""
        watch = self.graph.watch
        self.lanes[watch.lane].put([Task(watch, job) for job in jobs], "look", _ALL)

    def withdraw(self, job: Job) -> bool:
        """Take a job out of the lane that it waits in; tell whether it waited."""
        step = self.graph.steps.get(job.state)
        return step is not None and self.lanes[step.lane].withdraw(
            step.key(job), lambda task: task.job.id == job.id
        )

    def done(self, tasks: Sequence[Task]) -> None:
        """Note that it is known what came of these tasks."""
        self.lanes[tasks[0].step.lane].done(tasks)

    def look_again(self) -> None:
        """Note that there may be more room in the lanes now, or threads to be had."""
        for lane in self.lanes.values():
            lane.look_again()

    def stop(self) -> None:
        """Begin nothing more."""
        for lane in self.lanes.values():
            lane.stop()

    @property
    def busy(self) -> bool:
        """Whether anything was begun and is not done."""
        return any(lane.busy for lane in self.lanes.values())

    # ------------------------------------------------------------------ on a lane's thread

    def _room(self, step: Step, at_work: Sequence[Task]) -> int:
        """Tell a lane how many jobs may enter, counting those on their way in as being in."""
        assert step.room is not None
        known = (self.jobs.get(task.job.id) for task in at_work)
        entering = sum(
            job is not None and job.state is task.job.state for job, task in zip(known, at_work, strict=True)
        )
        return step.room(self.counts.copy()) - entering

    def _work(self, tasks: Sequence[Task]) -> None:
        """Run an action and hand back what came of it."""
        step = tasks[0].step
        jobs = [self.jobs.get(task.job.id, task.job) for task in tasks]
        outcomes: Mapping[int, Outcome] = {}
        failure: Exception | None = None
        try:
            if isinstance(step, Watch):
                outcomes = step.look(jobs)
            elif wanted := [job for job in jobs if not self.unwanted(job.id)]:
                outcomes = step.action(wanted)
        except ActionStopped:
            log.debug("%s: stopped on the way", step.lane, extra={"jobs": [job.id for job in jobs]})
        except (Exception, SystemExit) as error:  # a driver that calls exit() must not end the lane
            failure = error if isinstance(error, Exception) else RuntimeError(f"{error!r}")
        self.worked(tasks, outcomes, failure)
