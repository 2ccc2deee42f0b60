"""Say what must hold of a campaign: each rule is a function from the evidence to what breaks it.

The application's own notes decide what happened. What the service says is held against them, never the other way
round; and where an application has no end, slurmctld's log must say that Slurm took it away.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from attrs import frozen

from campaigns.evidence import Evidence, Kept
from campaigns.programs import Execution
from edgecore.batch import Token, TokenState
from edgecore.models import JobState
from edgecore.states import TERMINAL

__all__ = ["RULES", "Loss", "losses", "names_by_birth"]


@frozen(kw_only=True)
class Loss:
    """An execution that has no end, and the words by which Slurm took it away; none: nobody knows why."""

    job: str
    state: JobState
    attempt: int
    batch_id: str
    proof: str


def losses(evidence: Evidence) -> Sequence[Loss]:
    """Return every execution that noted no end."""
    kept = {each.job.id: each for each in evidence.kept}
    return [
        Loss(
            job=kept[each.job].job.name,
            state=kept[each.job].job.state,
            attempt=each.attempt,
            batch_id=each.batch_id,
            proof=_proof(evidence, kept[each.job], each.batch_id, each.started),
        )
        for each in evidence.executions
        if each.ended is None and each.job in kept
    ]


def _proof(evidence: Evidence, kept: Kept, batch_id: str, since: float) -> str:
    """Say how Slurm came not to run it to its end; empty where its logs tell of nothing."""
    numbers = evidence.cluster.numbers(batch_id)
    words = evidence.cluster.loss(*numbers, since=since)
    if not words and kept.job.name in evidence.cancelled:
        killed = any(killed == batch_id and time > since for time, killed in evidence.cluster.kills)
        words = "its sender had it cancelled" if killed else ""
    return words


def _taken_away(evidence: Evidence, kept: Kept, execution: Execution | None) -> bool:
    """Tell whether Slurm took away the latest attempt of a job, of which *execution* is the only start, if any."""
    attempt = kept.job.attempt
    if execution is not None:
        return bool(_proof(evidence, kept, execution.batch_id, execution.started))
    if attempt is None or attempt.batch_id is None or attempt.submitted is None:
        return False
    return bool(_proof(evidence, kept, attempt.batch_id, attempt.submitted / 1e6))


# ------------------------------------------------------------------------------------- the rules


def _taken_once(evidence: Evidence) -> Iterator[str]:
    """Each definition that the broker confirmed is one job, and there are no others."""
    names = Counter(each.job.name for each in evidence.kept)
    for name in evidence.asked.keys() | names.keys():
        if (1 if name in evidence.asked else 0) != names[name]:
            yield f"{name}: asked for {int(name in evidence.asked)} times, {names[name]} jobs"


def _started_once(evidence: Evidence) -> Iterator[str]:
    """No attempt started twice."""
    starts = Counter((each.job, each.attempt) for each in evidence.executions)
    for (job, attempt), count in starts.items():
        if count > 1:
            yield f"job {job}, attempt {attempt}: started {count} times"


def _alone(evidence: Evidence) -> Iterator[str]:
    """No two executions of a job overlap, by their lock and by their times."""
    last: dict[int, Execution] = {}
    for each in sorted(evidence.executions, key=lambda each: each.started):
        before = last.get(each.job)
        if not each.alone:
            yield f"job {each.job}, attempt {each.attempt}: another execution of it lived when it started"
        elif before is not None and before.ended is not None and each.started < before.ended:
            yield f"job {each.job}, attempt {each.attempt}: started before attempt {before.attempt} had ended"
        last[each.job] = each


def _worked_once(evidence: Evidence) -> Iterator[str]:
    """Nothing of a job starts after an execution that did its work, nor after its retries are used up."""
    for kept, executions in _by_job(evidence):
        for each in executions[:-1]:
            if each.exit_code == 0 and not _proof(evidence, kept, each.batch_id, each.started):
                yield f"{kept.job.name}: started again after attempt {each.attempt} had done its work"
        failed = sum(each.exit_code not in (0, None) for each in executions)
        if failed > 1 + kept.job.definition.retries:
            yield f"{kept.job.name}: failed {failed} times with {kept.job.definition.retries} retries"


def _told_as_it_was(evidence: Evidence) -> Iterator[str]:
    """What ended is told with its exit code; what is told to have ended did."""
    for kept, executions in _by_job(evidence):
        job, token, last = kept.job, _token(kept), _latest(kept, executions)
        code, told = last.exit_code if last else None, job.attempt.exit_code if job.attempt else None
        where = f"{job.name} is {job.state}, exit code {told}"
        if job.state is JobState.JOB_FINISHED and code != 0:
            yield f"{where}; its last execution ended with {code}"
        if token is None or token.state is not TokenState.ENDED:
            continue
        expected = JobState.JOB_FINISHED if token.exit_code == 0 else JobState.JOB_FAILED
        # What is told to stop before it could note its end has one all the same.
        silenced = code is None and _taken_away(evidence, kept, last)
        if token.exit_code != told or not (silenced or token.exit_code == code):
            yield f"{where}; the end record says {token.exit_code}, the application {code}"
        elif job.state is not expected and job.name not in evidence.cancelled:
            yield f"{where}; its end record is {token.exit_code}"


def _settled(evidence: Evidence) -> Iterator[str]:
    """Each job is at its end or LOST, cancelled only where that was asked."""
    for kept in evidence.kept:
        job = kept.job
        if job.state not in TERMINAL and job.state is not JobState.LOST:
            yield f"{job.name} is {job.state}: {job.message}"
        if job.state is JobState.JOB_CANCELLED and job.name not in evidence.cancelled:
            yield f"{job.name} is cancelled, which nobody asked for"


def _lost_by_slurm(evidence: Evidence) -> Iterator[str]:
    """What has no end, Slurm took away; what is LOST has no end that anybody could know."""
    for loss in losses(evidence):
        if not loss.proof:
            yield f"{loss.job}, attempt {loss.attempt}, batch id {loss.batch_id}: no end and no reason"
    for kept, executions in _by_job(evidence):
        last = _latest(kept, executions)
        if kept.job.state is JobState.LOST and last is None:
            yield f"{kept.job.name} is LOST and its attempt never started"
        elif kept.job.state is JobState.LOST and not _taken_away(evidence, kept, last):
            yield f"{kept.job.name} is LOST, and its attempt ended with {last and last.exit_code}"


def _failed_for_a_reason(evidence: Evidence) -> Iterator[str]:
    """What failed without an end record of its own was ended by Slurm, whose logs say so."""
    for kept, executions in _by_job(evidence):
        token = _token(kept)
        if kept.job.state is not JobState.JOB_FAILED or (token and token.state is TokenState.ENDED):
            continue
        if not _taken_away(evidence, kept, _latest(kept, executions)):
            yield f"{kept.job.name}: {kept.job.message}; token {token and token.file}; nothing in Slurm's logs"


def _told_in_order(evidence: Evidence) -> Iterator[str]:
    """Status messages came without a gap, in order, all of them, from the site's own user."""
    came: dict[str, dict[int, JobState]] = defaultdict(dict)
    for each in evidence.statuses:
        if each.sender != "theta":
            yield f"{each.name}: status {each.sequence} is from {each.sender}"
        came[each.name].setdefault(each.sequence, each.state)
    for kept in evidence.kept:
        expected = [(entry.sequence, entry.state) for entry in kept.history]
        got = list(came[kept.job.name].items())
        if [sequence for sequence, _ in expected] != list(range(1, kept.job.sequence + 1)):
            yield f"{kept.job.name}: history {expected}"
        if expected != got:
            yield f"{kept.job.name}: status came as {got}, history is {expected}"


def _strangers_untouched(evidence: Evidence) -> Iterator[str]:
    """No job of somebody else was told to stop, held up or ended by anybody but Slurm."""
    ran = {each.name: each for each in evidence.strangers}
    for stranger in evidence.asked_strangers:
        run = ran.get(stranger.name)
        if evidence.cluster.loss(stranger.number, since=stranger.time):
            continue  # that ends it, and may tell it to stop
        if run is not None and run.told:
            yield f"{stranger.name}, job {stranger.number}: was told to stop"
        elif run is None or run.ended is None:
            yield f"{stranger.name}, job {stranger.number}: has no end, and Slurm did not lose it"
    names = names_by_birth(evidence)
    strange = {each.name for each in evidence.asked_strangers}
    for time, batch_id in evidence.cluster.kills:
        number = batch_id.partition("_")[0]
        name = names.get((number, evidence.cluster.born(number, time)))
        if name in strange:
            yield f"{name}, job {batch_id}: somebody asked Slurm to end it"


def _ended_only_on_demand(evidence: Evidence) -> Iterator[str]:
    """Slurm was asked to end only jobs of ours whose sender wanted that."""
    for time, batch_id in evidence.cluster.kills:
        owners = [
            (attempt.intended, kept.job.name)
            for kept in evidence.kept
            for attempt in kept.attempts
            if attempt.batch_id == batch_id and attempt.intended / 1e6 < time
        ]
        if not owners or max(owners)[1] not in evidence.cancelled:
            yield f"job {batch_id}: somebody asked Slurm to end it, and not for its sender; ours: {owners}"


def names_by_birth(evidence: Evidence) -> Mapping[tuple[str, float | None], str]:
    """Return number and birth -> the name under which it was submitted."""
    born = evidence.cluster.born
    given = [(each.number, each.time, each.name) for each in evidence.submissions if each.number]
    given += [(each.number, each.time, each.name) for each in evidence.asked_strangers]
    return {(number, born(number, time)): name for number, time, name in given}


def _token(kept: Kept) -> Token | None:
    return kept.tokens.get(kept.job.attempt.number) if kept.job.attempt else None


def _latest(kept: Kept, executions: Sequence[Execution]) -> Execution | None:
    """Return the start of the latest attempt, where it has started."""
    number = kept.job.attempt.number if kept.job.attempt else 0
    return next((each for each in reversed(executions) if each.attempt == number), None)


def _by_job(evidence: Evidence) -> Iterator[tuple[Kept, Sequence[Execution]]]:
    executions: dict[int, list[Execution]] = defaultdict(list)
    for each in evidence.executions:
        executions[each.job].append(each)
    for kept in evidence.kept:
        yield kept, sorted(executions[kept.job.id], key=lambda each: each.started)


RULES: Final[Mapping[str, Callable[[Evidence], Iterator[str]]]] = {
    "each definition was taken once": _taken_once,
    "no attempt started twice": _started_once,
    "no two executions of a job overlap": _alone,
    "no job did its work twice": _worked_once,
    "each end is told as it was": _told_as_it_was,
    "each job is settled or LOST": _settled,
    "what has no end was lost by Slurm": _lost_by_slurm,
    "what failed did so for a reason": _failed_for_a_reason,
    "status without gap, in order": _told_in_order,
    "strangers' jobs untouched": _strangers_untouched,
    "ended only where its sender asked": _ended_only_on_demand,
}
