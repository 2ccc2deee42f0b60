"""Say as tables what an engine needs to know of a way of jobs through states.

A `Graph` names for each state the action that is due there and what its failure means. The engine
knows no state by name; whoever makes the graph knows no thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final, TypeAlias

from attrs import frozen

from edgecore.models import Job, JobState
from edgecore.store import Change

__all__ = ["WAITS", "Action", "Failed", "Graph", "Outcome", "Postponed", "Step", "Watch"]

WAITS: Final = "it waits for "
"""How the message of a job begins that its step does not let in."""


@frozen
class Postponed:
    """An action could not be done now; it is tried again after a back-off, or at *due*."""

    reason: str
    due: int | None = None
    """Microseconds UTC, which counts as no failure; None for the usual back-off."""


@frozen
class Failed:
    """An action failed for one job of a group only, as if it had raised that *error* for this job alone."""

    error: Exception


Outcome: TypeAlias = Change | Postponed | Failed
Action: TypeAlias = Callable[[Sequence[Job]], Mapping[int, Outcome]]
"""Works on jobs (several where the step groups) and answers by job id."""


@frozen(kw_only=True)
class Step:
    """What is done with a job in one state."""

    lane: str
    action: Action
    failed: JobState
    """The state that says that this step failed."""
    instant: Callable[[Job], Job | None] = lambda job: None
    """The job moved on at once where there is nothing to do, else None."""
    kept_out: Callable[[Job], str] = lambda job: ""
    """What a job must wait for before it enters the lane, asking nobody; empty where it need not. `Engine.reconsider` has it asked anew."""
    alike: Callable[[Job], Hashable] | None = None
    """Jobs with equal answers may be worked on as one group; None: each alone."""
    largest: int = 1
    """How many jobs a group has at most."""
    room: Callable[[Counter[JobState]], int] | None = None
    """How many more jobs may enter, given how many are in each state; None: any number."""

    def key(self, job: Job) -> Hashable:
        """Return what jobs have in common that may be worked on together."""
        return (job.state, self.alike(job)) if self.alike else job.id


@frozen(kw_only=True)
class Watch:
    """What is done with jobs that only evidence from outside can move."""

    states: frozenset[JobState]
    look: Action
    """Looks at all given jobs at once; a job without an answer stays as it is."""
    interval_s: float
    lane: str = "observing"


@frozen(kw_only=True)
class Graph:
    """A way of jobs through states, as tables."""

    steps: Mapping[JobState, Step]
    watch: Watch
    cancelled: Callable[[Job], Job | None]
    """The job as cancelled where that takes no more than saying so, else None."""
    give_up: Callable[[Job, JobState, str], Change]
    """The change that ends a step for good: in that *_FAILED state, for that reason."""
