"""Say what keeps a job from going on now, as far as the store and the site's file can tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgecore.cli.output import lasted, moment
from edgecore.config import SiteConfig
from edgecore.graph import WAITS
from edgecore.models import Attempt, Intent, Job, JobState
from edgecore.reader import Reader
from edgecore.states import AT_BATCH_SYSTEM, COUNTS_AS_QUEUED, SETTLED
from edgecore.store_file import is_running

__all__ = ["waits_for"]

_S = JobState
_STAGED: Final = (_S.CREATED, _S.POSTPROCESSED)
_PROCESSED: Final = (_S.STAGED_IN, _S.EXECUTION_FINISHED)


def waits_for(config: SiteConfig, reader: Reader, job: Job, now: int) -> tuple[str, ...]:
    """Say everything that keeps a job from going on now, as far as it can be known; none for one that works."""
    if job.state in SETTLED:
        return ()
    return tuple(_waits(config, reader, job, now))


def _waits(config: SiteConfig, reader: Reader, job: Job, now: int) -> Iterator[str]:
    if not is_running(config.store):
        yield f"the service of site {config.site}, which is not running here"
    held_there = job.state is _S.HELD and job.attempt is not None and job.attempt.held  # which is said below
    if job.intent is Intent.HELD and job.state not in (_S.RUNNING, _S.LOST) and not held_there:
        yield f"its release, since somebody asked to hold it: edgecore release {job.id}"
    if job.due > now:
        again = f" after {job.failures} failures in a row" if job.failures else ""
        yield f"its next try at {moment(job.due)}, in {lasted(job.due - now)}{again}: {job.message}"
    elif job.message.startswith(WAITS):
        yield job.message.removeprefix(WAITS)
    elif job.state in _STAGED:
        yield from _queue(reader, job, _STAGED, config.limits.staging, "transfers at once (staging)")
    elif job.state in _PROCESSED:
        yield from _queue(reader, job, _PROCESSED, config.limits.processing, "programs at once (processing)")
    elif job.state is _S.PREPROCESSED and config.limits.max_queued is not None:
        there = sum(reader.counts().get(state, 0) for state in COUNTS_AS_QUEUED)
        if there >= config.limits.max_queued:
            allowed = f"this site lets {config.limits.max_queued} jobs wait there (max_queued)"
            yield f"room in the batch system: {allowed}, and {there} do"
    if job.state in AT_BATCH_SYSTEM and job.attempt is not None:
        yield from _at_batch_system(config, job, job.attempt)


def _queue(reader: Reader, job: Job, states: tuple[JobState, ...], most: int, words: str) -> Iterator[str]:
    others = sum(reader.counts().get(state, 0) for state in states) - 1
    if others >= most:
        yield f"its turn, unless it works now: this site has {most} {words}, and {others} other jobs want the same"


def _at_batch_system(config: SiteConfig, job: Job, attempt: Attempt) -> Iterator[str]:
    reason = f": {job.message}" if job.message else ", which gives no reason"
    if job.state is _S.QUEUED:
        yield f"the batch system{reason}"
    elif job.state is _S.HELD and attempt.held:
        yield f"its release in the batch system, where we hold it as asked: edgecore release {job.id}"
    elif job.state is _S.HELD:
        yield f"whoever holds it in the batch system{reason}"
    elif job.state is _S.LOST:
        yield "an operator, or any sign of life"
    if attempt.stuck is not None:
        given_up = attempt.stuck + round(config.timing.stuck_after_s * 1e6)
        yield f"somebody to mend what keeps it from starting; it is given up at {moment(given_up)}"
